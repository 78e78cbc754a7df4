"""What happened in a cell, as files that are whole or absent: records, step logs, checkpoints."""
