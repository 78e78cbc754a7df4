"""Normalization layers whose every operation is rounded, counted and named."""
