"""Where a training is forked: shortly before its first offence, so that what is tried need not train up to there."""

from __future__ import annotations

from dataclasses import replace

from normstab.assess.judgement import Judgement
from normstab.experiment.scenario.spec import Cell, ForkSpec

__all__ = ["LEAD_STEPS", "fork_step", "forked", "stopping"]

LEAD_STEPS = 5
"""How many steps before the first offence a training is forked: a cure has a few steps to take hold."""


def fork_step(failing: Judgement) -> int:
    """Return the step LEAD_STEPS before the first offence that the failing cell is blamed on; 0 is the start.

    A cell that became NONFINITE without an offence is forked before that; one without either from the start.
    """
    nonfinite = failing.run.record.nonfinite
    steps = [failing.first_step] if failing.first_step is not None else []
    steps += [nonfinite.step] if nonfinite is not None else []
    return max(0, min(steps, default=0) - LEAD_STEPS)


def stopping(cell: Cell, stop: int, *, leaves_snapshot: bool = False) -> Cell:
    """Return the cell that trains `stop` steps from the start."""
    return replace(cell, fork=ForkSpec(stop=stop, leaves_snapshot=leaves_snapshot))


def forked(cell: Cell, origin: Cell | None, stop: int | None) -> Cell:
    """Return the cell that goes on where `origin` stopped, up to step `stop`; from the start without an origin."""
    if origin is None:
        return cell if stop is None else stopping(cell, stop)
    fork = ForkSpec(of=origin.id, stop=stop)
    return replace(cell, fork=fork, depends_on=(*cell.depends_on, origin.id))
