"""Scaled formats on the CPU: granules that share a scale."""
