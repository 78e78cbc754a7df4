"""Ordered sums and products with an emulated accumulator on the CPU."""
