"""What is wrong with a scenario: checks of values and of parts against each other, every problem shown at once."""
