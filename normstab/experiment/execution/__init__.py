"""Who runs the cells: local worker processes, their lock, progress and run log."""
