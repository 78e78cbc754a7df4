"""Embedded data: the sample, its licence, and the script that made it."""
