"""Exact sums and products on the CPU."""
