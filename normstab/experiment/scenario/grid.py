"""The points of a scenario's grid: the product of its axes, less `exclude`, with `include`; values as written.

What a point means for a cell is `expand`'s business.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normstab.experiment.scenario.checking.checks import canonical, path_of

__all__ = [
    "MOST_CELLS",
    "MOST_CHARACTERS",
    "MOST_RUN",
    "Point",
    "Span",
    "axis_names",
    "characters_resolved",
    "is_large",
    "point_count",
    "points",
    "points_of",
    "selector_bits",
    "shown_point",
    "spans_of",
    "swept_points",
]

# Axis -> value, as written in the file.
Point = dict[str, Any]
# Making as many takes under a second: a larger grid is checked and shown by arithmetic, and made when it is run.
MOST_CELLS = 5_000
# Made one after another and held by the run: a kilobyte and a tenth of a millisecond each.
MOST_RUN = 1_000_000
# Of settings, over MOST_CELLS cells: each cell's are hashed for its id. Those of an ordinary file have a third as many.
MOST_CHARACTERS = 20_000_000


@dataclass(frozen=True)
class Span:
    """A product of axes, and the selectors of the points to leave out; bit i of `within` is set where i may select any.

    A selector that names an axis which the product does not have selects nothing.
    """

    axes: Mapping[str, Sequence[Any]]
    excluded: Sequence[Mapping[str, Any]] = ()

    @property
    def within(self) -> int:
        """The bits of the selectors that name axes of this product alone."""
        return sum(1 << index for index, selector in enumerate(self.excluded) if selector.keys() <= self.axes.keys())


def spans_of(document: Mapping[str, Any]) -> list[Span]:
    """Return the products whose points are trained: the grid's, and that of each entry of `include`.

    Without a grid there is one empty point; a scenario with a sweep and without a grid trains nothing.
    """
    grid = document.get("grid") or {}
    spans = [Span(grid, document.get("exclude") or ())] if grid or not document.get("sweep") else []
    included = document.get("include") or ()
    return spans + [Span({**grid, **{axis: _listed(values) for axis, values in e.items()}}) for e in included]


def is_large(document: Mapping[str, Any]) -> bool:
    """Return whether the points are too many to be made for a look at them."""
    return point_count(document) > MOST_CELLS


def points(document: Mapping[str, Any]) -> Iterator[Point]:
    """Yield the trained points in the file's order, the last axis fastest."""
    for span in spans_of(document):
        yield from points_of(span)


def swept_points(document: Mapping[str, Any]) -> Iterator[Point]:
    """Yield the points of the sweep."""
    sweep = document.get("sweep")
    if sweep:
        yield from _product(sweep["grid"])


def axis_names(document: Mapping[str, Any]) -> list[str]:
    """Return the axes of the trained cells in the file's order, those of `include` last."""
    entries: list[Mapping[str, Any]] = [document.get("grid") or {}, *(document.get("include") or ())]
    return list(dict.fromkeys(axis for entry in entries for axis in entry))


def point_count(document: Mapping[str, Any]) -> int:
    """Return how many points the grid, `include` and the sweep span before any is excluded, without making them."""
    grid = document.get("grid")
    grid = grid if isinstance(grid, dict) else {}
    listed = document.get("include")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    spans = [grid, *({**grid, **entry} for entry in entries)]
    sweep = document.get("sweep")
    if isinstance(sweep, dict) and isinstance(sweep.get("grid"), dict):
        spans.append(sweep["grid"])
    return sum(math.prod(len(_listed(values)) for values in span.values()) for span in spans)


def _product(grid: Mapping[str, Sequence[Any]]) -> Iterator[Point]:
    """Yield every combination of the axes' values."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def points_of(span: Span) -> Iterator[Point]:
    """Yield the combinations that no selector of `excluded` has a value for on each of its axes.

    Bit i of a number stands for selector i. Each value of the grid has the number of the selectors that allow for it,
    so that a point is in some selector where the numbers of its values share a bit: no point meets a selector.
    """
    told = ((values, selector_bits(axis, values, span.excluded)) for axis, values in span.axes.items())
    columns = [list(zip(values, bits, strict=True)) for values, bits in told]
    within = span.within
    for pairs in itertools.product(*columns):
        shared = within
        for _, selectors in pairs:
            shared &= selectors
        if not shared:
            yield {axis: value for axis, (value, _) in zip(span.axes, pairs, strict=True)}


def selector_bits(axis: str, values: Sequence[Any], excluded: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return, for each value of the axis, the bits of the selectors that have it or do not name the axis."""
    path, silent = path_of(axis), 0
    naming: dict[Any, int] = {}
    for index, selector in enumerate(excluded):
        if axis not in selector:
            silent |= 1 << index
            continue
        for spelling in {canonical(path, value) for value in _listed(selector[axis])}:
            naming[spelling] = naming.get(spelling, 0) | 1 << index
    return [silent | naming.get(canonical(path, value), 0) for value in values]


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def characters_resolved(document: Mapping[str, Any]) -> int:
    """Return how many characters of settings all points have together: what their ids cost, before any is made."""
    shared = [document.get(name) for name in (*_RESOLVED, "variants")]
    listed = document.get("include")
    spans = [document.get("grid"), *(listed if isinstance(listed, list) else ())]
    nested = [
        value
        for span in spans
        if isinstance(span, dict)
        for values in span.values()
        for value in _listed(values)
        if isinstance(value, str | list | dict)
    ]
    longest = max((len(json.dumps(value)) for value in nested), default=0)
    return point_count(document) * (longest + sum(len(json.dumps(section)) for section in shared))


_RESOLVED = ("dataset", "model", "train", "numerics", "sweep")


def shown_point(point: Point) -> str:
    """Return a point for a message."""
    return ", ".join(f"{axis}={value}" for axis, value in point.items()) or "the only cell"
