"""What rounding alone may leave in a result: the bounds of single operations, carried to what a network returns."""
