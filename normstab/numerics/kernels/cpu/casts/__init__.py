"""Shortcuts of casts to all formats, and casts of tensors whose memory lies in another order."""
