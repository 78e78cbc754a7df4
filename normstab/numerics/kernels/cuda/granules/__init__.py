"""Scaled formats on CUDA devices."""
