"""What runs the passes of a norm on the CPU: numba functions on blocks that stay in the first-level cache."""
