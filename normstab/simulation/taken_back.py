"""Steps of a simulation that are taken back: what they counted and noted is as if they had never been.

The tensors of the network and of its optimizer, and the step, are the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from normstab.simulation.run import Run

__all__ = ["Mark", "go_back", "mark"]


class Mark(NamedTuple):
    """What a run had counted and noted at one moment, beyond the counts of its ledger, which were read then."""

    stamp: int
    unrecognised: Mapping[str, int]
    results: int
    notes: int
    ignored_upcasts: Mapping[str, int]
    broken: frozenset[str]


def mark(run: Run) -> Mark:
    """Return what `go_back` needs; the ledger has to have been drained before, or its counts are lost then."""
    unknown = run.unrecognised
    broken = frozenset(held.name for held in run.updated if held.is_broken)
    return Mark(run.ledger.stamped, dict(unknown), unknown.results, len(run.notes), dict(run.ignored_upcasts), broken)


def go_back(run: Run, to: Mark) -> None:
    """Forget what was counted and noted since."""
    run.ledger.forget_after(to.stamp)
    run.unrecognised.clear()
    run.unrecognised.update(to.unrecognised)
    run.unrecognised.results = to.results
    del run.notes[to.notes :]
    run.ignored_upcasts.clear()
    run.ignored_upcasts.update(to.ignored_upcasts)
    for held in run.updated:
        held.is_broken = held.name in to.broken
