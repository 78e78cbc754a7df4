"""Traced programs of norm layers, run: on whole tensors by plain torch, and walk by walk by a device's kernels."""
