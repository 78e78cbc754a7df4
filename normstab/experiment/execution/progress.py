"""What a run tells while it goes on: a worker's progress in a cell, and the executor's events for a live table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from normstab.experiment.scenario.spec import Cell

__all__ = ["Event", "EventKind", "Failure", "Outcome", "Progress"]


@dataclass(frozen=True)
class Progress:
    """How far a cell is: `step` of `steps` done, the epochs done, and the last loss and accuracy where known.

    `note` is something for `run.json`, such as that a checkpoint of another thread count was not resumed.
    """

    step: int
    steps: int
    epoch: int = 0
    loss: float | None = None
    accuracy: float | None = None
    note: str | None = None

    @property
    def fraction(self) -> float:
        """The share of the steps that is done."""
        return self.step / self.steps if self.steps else 0.0


@dataclass(frozen=True)
class Failure:
    """A cell without a record, and why.

    `crashed`: its worker died or raised; `refused`: its input was wrong, or the disk was full; `blocked`: a
    cell it depends on has no record. `detail` is the traceback, where there is one.
    """

    id: str
    kind: Literal["crashed", "refused", "blocked"]
    message: str
    detail: str = ""


# What can happen to a cell.
EventKind = Literal["reused", "started", "progress", "finished", "failed"]


@dataclass(frozen=True)
class Event:
    """Something happened to `cell`; `done` of `total` cells have ended, `eta_s` seconds are left, if known."""

    kind: EventKind
    cell: Cell
    done: int
    total: int
    elapsed_s: float
    eta_s: float | None = None
    progress: Progress | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run of cells ended: the ids with a finished record, those of them that were there before, the rest."""

    finished: tuple[str, ...]
    reused: tuple[str, ...]
    failures: tuple[Failure, ...]
    is_interrupted: bool
    elapsed_s: float
