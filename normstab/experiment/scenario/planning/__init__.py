"""What a grid would run, by arithmetic on its axes: a million cells are counted without making one."""
