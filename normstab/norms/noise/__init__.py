"""Noise in the place of rounding: what a norm layer does when its numbers are disturbed and nothing is rounded."""
