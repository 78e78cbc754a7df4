"""What helps to write a scenario file: its JSON Schema, its fields as tables, a first file."""
