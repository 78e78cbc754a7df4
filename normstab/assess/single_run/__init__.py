"""One run: its record and its steps, in memory, or in files that are read when they are asked for."""
