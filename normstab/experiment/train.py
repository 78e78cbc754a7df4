"""The name under which records and executors of every version know the training of a cell."""

from normstab.experiment.training.train_cell import run_cell

__all__ = ["run_cell"]
