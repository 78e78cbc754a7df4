"""Formats with shared scales: what they are, and how a tensor is brought to them."""
