"""The networks that a scenario may name, and their layers."""
