"""The numba kernels: rounding, pointwise operations, sums and products on CPU tensors."""
