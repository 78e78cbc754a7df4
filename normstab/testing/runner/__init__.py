"""What a test runner adds: it hears what assertions find, and compares it with a baseline."""
