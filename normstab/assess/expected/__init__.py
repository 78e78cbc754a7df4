"""What a scenario expected, and whether the runs met it."""
