"""From a Cell to its Record: the training loop and the parts that a cell may vary."""
