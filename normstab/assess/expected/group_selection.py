"""Which groups of runs an expectation speaks of, and how groups pair up across a difference in some axes.

Selects and pairs; judges nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from normstab.assess.runs import Group, Run
from normstab.experiment.scenario.cell_selection import selects

__all__ = ["contexts", "paired_runs", "selected"]


def selected(groups: Sequence[Group], where: Mapping[str, Any] | None) -> list[Group]:
    """Return the groups whose cells `where` selects; an empty or missing selector means every listed cell.

    Of a group of which only some seeds are selected, a group of those.
    """
    found = []
    for group in groups:
        meant = [run for run in group.runs if _is_meant(run, where or {})]
        if meant:
            found.append(group if len(meant) == len(group.runs) else group.with_runs(meant))
    return found


def _is_meant(run: Run, where: Mapping[str, Any]) -> bool:
    """Whether `where` selects the cell of a run."""
    return selects(where, run.cell, swept=run.cell.sweep is not None)


def contexts(
    groups: Sequence[Group], where: Mapping[str, Any] | None, sides: Sequence[Mapping[str, Any]]
) -> list[tuple[Group, ...]]:
    """Return the tuples of groups, one for each selector of `sides`, that agree in every axis no side names.

    `where` narrows all sides. A context in which one side has no group is left out. A variant may set any field:
    where sides name one and agree nowhere, their precisions may differ.
    """
    named = {axis for side in sides for axis in side}
    found = _agreeing(groups, where, sides, named)
    return found if found or "variant" not in named else _agreeing(groups, where, sides, named | {"precision"})


def _agreeing(
    groups: Sequence[Group],
    where: Mapping[str, Any] | None,
    sides: Sequence[Mapping[str, Any]],
    named: set[str],
) -> list[tuple[Group, ...]]:
    """Return the tuples of groups, one for each side, that agree in every axis but the `named` ones."""
    found: list[dict[tuple[Any, ...], list[Group]]] = []
    for side in sides:
        found.append({})
        for group in selected(groups, {**(where or {}), **side}):
            found[-1].setdefault(_rest(group, named), []).append(group)
    shared = [key for key in found[0] if all(key in other for other in found[1:])]
    return [combined for key in shared for combined in itertools.product(*(side[key] for side in found))]


def _rest(group: Group, named: set[str]) -> tuple[Any, ...]:
    """Return the coordinates of a group that are not among the `named` axes."""
    return tuple((axis, repr(value)) for axis, value in group.coordinates.items() if axis not in named)


def paired_runs(sides: Sequence[Group]) -> list[tuple[Run, ...]]:
    """Return the tuples of runs, one of each side, that share their seed."""
    by_seed = [{run.seed: run for run in side.runs} for side in sides]
    return [tuple(runs[seed] for runs in by_seed) for seed in by_seed[0] if all(seed in runs for runs in by_seed)]
