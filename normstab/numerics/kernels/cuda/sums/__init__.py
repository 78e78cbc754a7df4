"""Sums in a stated order and format on CUDA tensors, in Triton."""
