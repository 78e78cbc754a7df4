"""The Triton kernels: rounding and the six operations on CUDA tensors."""
