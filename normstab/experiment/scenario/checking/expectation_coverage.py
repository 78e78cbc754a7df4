"""Whether every expectation of a scenario selects a cell: one that selects none would hold of nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from normstab.experiment.scenario.cell_selection import selects
from normstab.experiment.scenario.checking.problems import Problem
from normstab.experiment.scenario.document import Scenario
from normstab.experiment.scenario.expectation import selectors
from normstab.experiment.scenario.metric_names import SWEEP_METRICS
from normstab.experiment.scenario.spec import Cell

__all__ = ["vacuous_expectations"]


def vacuous_expectations(scenario: Scenario, cells: Sequence[Cell]) -> Iterator[Problem]:
    """Yield a problem for each selector of an expectation that no cell matches.

    Of a scenario changed by overrides or by a profile other than `smoke` nothing is asked; under `smoke`, only
    of the expectations that are judged then.
    """
    if scenario.overrides or set(scenario.profiles) - {"smoke"}:
        return
    for index, plain in enumerate(scenario.document.get("expect") or ()):
        if plain.get("smoke") or not scenario.is_smoke:
            yield from _vacuous(plain, ("expect", index), cells)


def _vacuous(plain: dict[str, Any], loc: tuple[str | int, ...], cells: Sequence[Cell]) -> Iterator[Problem]:
    """Yield the selectors of one expectation, joined with its `where`, that no cell matches."""
    for index, inner in enumerate(plain.get("any") or ()):
        yield from _vacuous(inner, (*loc, "any", index), cells)
    swept = plain.get("metric") in SWEEP_METRICS
    common = plain.get("where") or {}
    for inner_loc, selector in selectors(plain):
        where = {**common, **selector}
        if not any(selects(where, cell, swept=swept) for cell in cells):
            axes = ", ".join(f"{axis} {value}" for axis, value in where.items()) or "any axis"
            yield Problem((*loc, *inner_loc), f"no cell has {axes} at once; such an expectation holds of nothing")
