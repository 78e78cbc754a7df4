"""Whether every expectation of a scenario selects a cell: one that selects none would hold of nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from normstab.experiment.scenario.checking.checks import canonical, path_of
from normstab.experiment.scenario.checking.problems import Problem
from normstab.experiment.scenario.document import Scenario
from normstab.experiment.scenario.expectation import selectors
from normstab.experiment.scenario.metric_names import SWEEP_METRICS
from normstab.experiment.scenario.planning.grid_counts import has_point
from normstab.experiment.scenario.spec import Cell, Scalar

__all__ = ["vacuous_expectations", "vacuous_in_grid"]


def vacuous_expectations(scenario: Scenario, cells: Sequence[Cell]) -> Iterator[Problem]:
    """Yield a problem for each selector of an expectation that no cell matches.

    Of a scenario changed by overrides or by a profile other than `smoke` nothing is asked; under `smoke`, only
    of the expectations that are judged then.
    """
    kinds = {swept: _Bits([cell for cell in cells if (cell.sweep is not None) == swept]) for swept in (False, True)}
    yield from _asked(scenario, lambda swept, where: bool(kinds[swept].select(where)))


def vacuous_in_grid(scenario: Scenario) -> Iterator[Problem]:
    """Yield the same for a grid whose cells are too many to be made: by the values on its axes, `exclude` included."""
    sweep = {"grid": (scenario.document.get("sweep") or {}).get("grid") or {}}
    documents = {False: scenario.document, True: sweep}
    yield from _asked(scenario, lambda swept, where: has_point(documents[swept], where))


Has = Callable[[bool, Mapping[str, Any]], bool]  # whether a trained, or swept, cell is where a selector says


def _asked(scenario: Scenario, has: Has) -> Iterator[Problem]:
    """Yield the problems of the expectations that are judged in this form of the scenario."""
    if scenario.overrides or set(scenario.profiles) - {"smoke"}:
        return
    for index, plain in enumerate(scenario.document.get("expect") or ()):
        if plain.get("smoke") or not scenario.is_smoke:
            yield from _vacuous(plain, ("expect", index), has)


def _vacuous(plain: dict[str, Any], loc: tuple[str | int, ...], has: Has) -> Iterator[Problem]:
    """Yield the selectors of one expectation, joined with its `where`, that no cell matches."""
    for index, inner in enumerate(plain.get("any") or ()):
        yield from _vacuous(inner, (*loc, "any", index), has)
    swept = plain.get("metric") in SWEEP_METRICS
    common = plain.get("where") or {}
    for inner_loc, selector in selectors(plain):
        where = {**common, **selector}
        if not has(swept, where):
            axes = ", ".join(f"{axis} {value}" for axis, value in where.items()) or "any axis"
            yield Problem((*loc, *inner_loc), f"no cell has {axes} at once; such an expectation holds of nothing")


class _Bits:
    """Cells by the values of their axes, bit i for cell i: which ones a selector means, without meeting each.

    The meaning is that of `cell_selection.selects`.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._every = (1 << len(cells)) - 1
        self._listed = sum(1 << index for index, cell in enumerate(cells) if cell.is_listed)
        self._having: dict[str, dict[Any, int]] = {}
        for index, cell in enumerate(cells):
            for axis, value in cell.coordinates.items():
                having = self._having.setdefault(axis, {})
                having[_key(value)] = having.get(_key(value), 0) | 1 << index

    def select(self, where: Mapping[str, Any]) -> int:
        """Return the bits of the cells that `where` means; 0 for none."""
        chosen = self._every if "precision" in where else self._listed
        for axis, allowed in where.items():
            options = allowed if isinstance(allowed, list) else [allowed]
            having, either = self._having.get(axis, {}), 0
            for option in options:
                either |= having.get(_key(canonical(path_of(axis), option)), 0)
            chosen &= either
        return chosen


def _key(value: Scalar) -> tuple[bool, Scalar]:
    """Return what tells a value from others: True is not 1 here."""
    return isinstance(value, bool), value
