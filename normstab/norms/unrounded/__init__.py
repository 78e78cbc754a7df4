"""Norms under `native`, where nothing is rounded to a format: float32 as it is, in as few passes as there can be."""
