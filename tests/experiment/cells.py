"""Small cells that the tests of training run: an MLP or a small ResNet on a part of the synthetic set."""

from dataclasses import replace
from typing import Any

from normstab.experiment.scenario.spec import Cell, DatasetSpec, ModelSpec, NumericsSpec, OptimizerSpec, TrainSpec


def small_cell(precision: str = "native", **changes: Any) -> Cell:
    """Return a cell of seven steps in each of two epochs; `changes` are fields of its four specs, by dotted path."""
    cell = Cell(
        scenario="test",
        coordinates={"precision": precision},
        dataset=DatasetSpec("synthetic", train=104, test=40),
        model=ModelSpec("mlp", width=16),
        train=TrainSpec(
            epochs=2, batch=16, optimizer=OptimizerSpec(lr=0.05, momentum=0.9, weight_decay=1e-3), probe_every=3
        ),
        numerics=NumericsSpec(precision=precision),
    )
    for path, value in changes.items():
        section, _, name = path.partition("__")
        if section == "cell":
            cell = replace(cell, **{name: value})
        elif section == "optimizer":
            optimizer = replace(cell.train.optimizer, **{name: value})
            cell = replace(cell, train=replace(cell.train, optimizer=optimizer))
        else:
            cell = replace(cell, **{section: replace(getattr(cell, section), **{name: value})})
    return cell
