"""How many cells a grid has, their references and their cost, counted axis by axis instead of cell by cell.

    classes of the axes so far: (selectors of `exclude` that allow for all of them, what tells their cost) -> points
    one axis more: every class times every value, classes that became equal added up

So the work grows with what tells points apart, not with the points.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normstab.errors import NormstabError
from normstab.experiment.scenario.checking.checks import canonical, path_of
from normstab.experiment.scenario.document import VARIANT
from normstab.experiment.scenario.grid import Span, selector_bits, spans_of
from normstab.experiment.scenario.settings import loc_of, value_at
from normstab.numerics.precision import Precision

__all__ = ["COSTLY", "GridCounts", "counts_of", "has_point"]

COSTLY = ("train.epochs", "train.batch", "dataset.name", "dataset.size", "dataset.train")
"""The settings that decide how many steps a cell takes."""
HISTOGRAM = "numerics.histogram"  # the one setting of numerics that a reference has too

Classes = Counter[tuple[int, Any]]
Costly = tuple[tuple[str, Any], ...]


@dataclass
class GridCounts:
    """Trained cells that a grid lists, references beside them, cells of a sweep; `by_cost`: trained ones by settings.

    `is_most`: there are no more than these; some may be the same (entries of `include`, variants and noise that train
    alike).
    """

    listed: int = 0
    references: int = 0
    swept: int = 0
    is_most: bool = False
    by_cost: Counter[Costly] = field(default_factory=Counter)

    @property
    def cells(self) -> int:
        """All cells."""
        return self.listed + self.references + self.swept


def counts_of(document: Mapping[str, Any]) -> GridCounts:
    """Return the counts of a document that was checked; recordings that the grid does not list are left out."""
    found = GridCounts()
    spans = spans_of(document)
    for span in spans:
        _count(document, span, found)
    sweep = document.get("sweep")
    found.swept = sum(_classes(sweep["grid"], (), 0).values()) if sweep else 0
    is_noisy = "norm_noise" in str([document.get(name) for name in ("model", "grid", "include", "variants")])
    found.is_most = len(spans) > 1 or is_noisy or any(VARIANT in span.axes for span in spans)
    return found


def has_point(document: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Return whether a trained point has a value that `where` allows for on each axis of the grid that it names.

    What it says of other settings is not looked at. Every point has a cell of the precision `native`: its reference.
    """
    for span in spans_of(document):
        narrowed = {axis: _allowed(axis, values, where) for axis, values in span.axes.items()}
        if any(not bits & span.within for bits, _ in _classes(narrowed, span.excluded, span.within)):
            return True
    return False


def _allowed(axis: str, values: Sequence[Any], where: Mapping[str, Any]) -> Sequence[Any]:
    """Return the values of an axis that `where` allows for."""
    if axis not in where:
        return values
    path, listed = path_of(axis), where[axis]
    allowed = {_key(path, value) for value in (listed if isinstance(listed, list) else [listed])}
    is_reference = axis == "precision" and _key(path, "native") in allowed
    return values if is_reference else [value for value in values if _key(path, value) in allowed]


def _key(path: str, value: Any) -> tuple[bool, Any]:
    """Return what tells a value from others: True is not 1 here."""
    spelling = canonical(path, value)
    return isinstance(spelling, bool), spelling


def _count(document: Mapping[str, Any], span: Span, found: GridCounts) -> None:
    """Add the cells of one product of axes: at each setting of the others, those that differ in their numerics.

    Wide ones do not: a wide cell has no numerics but `histogram`, so there is one, or else a reference is added.
    """
    inner = {axis: values for axis, values in span.axes.items() if _is_of_numerics(path_of(axis))}
    outer = {axis: values for axis, values in span.axes.items() if axis not in inner}
    every = (1 << len(span.excluded)) - 1
    variants = document.get("variants") or {}
    # What a variant makes of the numerics is not looked into: each of its cells counts as emulated, with a reference.
    is_told = VARIANT not in outer or not any(_is_of_numerics(path) for each in variants.values() for path in each)
    own_is_wide = is_told and all(
        _is_wide(path, value_at(document, loc_of(path)))
        for path in ("numerics.precision", "numerics.rules", "model.norm_noise")
        if path not in map(path_of, inner)
    )

    def arithmetic(is_wide: bool, axis: str, value: Any) -> bool:
        return is_wide and _is_wide(path_of(axis), value)

    def cost(kept: Costly, axis: str, value: Any) -> Costly:
        settings = variants[value] if axis == VARIANT else {path_of(axis): value}
        return tuple((path, settings.get(path, old)) for path, old in kept)

    arithmetics = _classes(inner, span.excluded, every, arithmetic, own_is_wide)
    base = tuple((path, value_at(document, loc_of(path))) for path in COSTLY)
    for (bits, costly), points in _classes(outer, span.excluded, span.within, cost, base).items():
        kept = [(is_wide, n) for (own, is_wide), n in arithmetics.items() if not bits & own]
        emulated = sum(n for is_wide, n in kept if not is_wide)
        wide = int(any(is_wide for is_wide, _ in kept))
        references = int(bool(emulated) and not wide)
        found.listed += points * (emulated + wide)
        found.references += points * references
        found.by_cost[costly] += points * (emulated + wide + references)
    found.by_cost = +found.by_cost


def _same(kept: Any, axis: str, value: Any) -> Any:
    """Return what is kept of a class whatever the value."""
    return kept


def _classes(
    axes: Mapping[str, Sequence[Any]],
    excluded: Sequence[Mapping[str, Any]],
    start: int,
    change: Callable[[Any, str, Any], Hashable] = _same,
    kept: Hashable = (),
) -> Classes:
    """Return how many points of the axes allow for which selectors, of those in `start`, and have which `kept`.

    `change` says what a value of an axis makes of what is kept.
    """
    found: Classes = Counter({(start, kept): 1})
    for axis, values in axes.items():
        grown: Classes = Counter()
        told = list(zip(values, selector_bits(axis, values, excluded), strict=True))
        for (bits, known), n in found.items():
            for value, own in told:
                grown[bits & own, change(known, axis, value)] += n
        found = grown
    return found


def _is_of_numerics(path: str) -> bool:
    """Whether a setting is one that a reference does not have."""
    return (path.startswith("numerics.") and path != HISTOGRAM) or path.startswith("model.norm_noise")


def _is_wide(path: str, value: Any) -> bool:
    """Whether a setting leaves a cell a reference that is one otherwise."""
    if path == "numerics.rules":
        return all(map(_is_native, (value or {}).values()))
    if path == "numerics.precision" or path.startswith("numerics.rules."):
        return value is None or _is_native(value)
    return value is None or not path.startswith("model.norm_noise")


def _is_native(text: Any) -> bool:
    """Whether a precision rounds nothing."""
    try:
        return str(Precision.parse(str(text))) == "native"
    except NormstabError:
        return False
