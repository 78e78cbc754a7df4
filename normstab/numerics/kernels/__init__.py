"""The fast implementations, one folder per device, and what both share."""
