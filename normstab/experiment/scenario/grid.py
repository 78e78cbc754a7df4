"""The points of a scenario's grid: the product of its axes, less `exclude`, with `include`; values as written.

What a point means for a cell is `expand`'s business.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from normstab.experiment.scenario.checking.checks import canonical, path_of

__all__ = [
    "MOST_CELLS",
    "MOST_EXCLUSIONS",
    "Point",
    "axis_names",
    "exclusion_count",
    "point_count",
    "points",
    "swept_points",
]

# Axis -> value, as written in the file.
Point = dict[str, Any]
# A report of as many cells still renders in under half a minute.
MOST_CELLS = 10_000
# Of points with values of `exclude`: a second's work.
MOST_EXCLUSIONS = 2_000_000


def points(document: Mapping[str, Any]) -> Iterator[Point]:
    """Yield the trained points in the file's order, the last axis fastest; one empty point without a grid.

    A scenario with a sweep and without a grid trains nothing.
    """
    grid = document.get("grid") or {}
    excluded = [_canonical_selector(selector) for selector in document.get("exclude") or ()]
    if grid or not document.get("sweep"):
        yield from (point for point in _product(grid) if not excluded or not _is_excluded(point, excluded))
    for entry in document.get("include") or ():
        yield from _product({**grid, **{axis: _listed(values) for axis, values in entry.items()}})


def swept_points(document: Mapping[str, Any]) -> Iterator[Point]:
    """Yield the points of the sweep."""
    sweep = document.get("sweep")
    if sweep:
        yield from _product(sweep["grid"])


def axis_names(document: Mapping[str, Any]) -> list[str]:
    """Return the axes of the trained cells in the file's order, those of `include` last."""
    entries: list[Mapping[str, Any]] = [document.get("grid") or {}, *(document.get("include") or ())]
    return list(dict.fromkeys(axis for entry in entries for axis in entry))


def exclusion_count(document: Mapping[str, Any]) -> int:
    """Return how many comparisons of a point with a value of `exclude` the grid asks for, without making them."""
    grid, excluded = document.get("grid"), document.get("exclude")
    if not isinstance(grid, dict) or not isinstance(excluded, list):
        return 0
    selectors = [selector for selector in excluded if isinstance(selector, dict)]
    values = sum(max(1, len(_listed(values))) for selector in selectors for values in selector.values())
    return values * math.prod(len(_listed(values)) for values in grid.values())


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


def _canonical_selector(selector: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {axis: [canonical(path_of(axis), value) for value in _listed(values)] for axis, values in selector.items()}


def _is_excluded(point: Point, selectors: Sequence[Mapping[str, list[Any]]]) -> bool:
    """Return whether the point has one of a selector's values on each of its axes, for one of the selectors."""
    place = {axis: canonical(path_of(axis), value) for axis, value in point.items()}
    return any(
        all(axis in place and place[axis] in values for axis, values in selector.items()) for selector in selectors
    )


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]
