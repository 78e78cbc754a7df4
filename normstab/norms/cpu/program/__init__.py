"""The passes of any traced program on a CPU, block by block: one interpreter, compiled once for all norms."""
