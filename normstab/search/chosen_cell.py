"""Which cell of a scenario a short name means: `l2,fp16,256`, with its repetitions over seeds."""

from __future__ import annotations

from collections.abc import Sequence

from normstab.assess.points import point_words, varying_axes
from normstab.assess.runs import SEED_AXES
from normstab.errors import NormstabError
from normstab.experiment.scenario.spec import Cell, Scalar
from normstab.numerics.precision import Precision

__all__ = ["chosen_cells", "has_values"]


def chosen_cells(cells: Sequence[Cell], text: str) -> list[Cell]:
    """Return the cells, one per seed, that `text` means: comma-separated values, each bare or as `axis=value`.

    Raises NormstabError where none or more than one point of the grid has all of these values.
    """
    grid = [cell for cell in cells if cell.is_listed and not cell.is_reference and cell.sweep is None]
    found = [cell for cell in grid if has_values(cell, text)]
    points = list(dict.fromkeys(point_words(cell.coordinates, without=SEED_AXES) for cell in found))
    if len(points) == 1:
        return found
    if not found:
        offered = dict.fromkeys(point_words(cell.coordinates, without=SEED_AXES) for cell in grid)
        raise NormstabError(f"--cell {text!r}: no cell of the grid has these values ({'; '.join(offered)})")
    axes = varying_axes(cell.coordinates for cell in found)
    raise NormstabError(
        f"--cell {text!r}: {len(points)} points of the grid have these values; "
        f"add one of {', '.join(axes)} ({'; '.join(points)})"
    )


def has_values(cell: Cell, text: str) -> bool:
    """Return whether the cell has all the comma-separated values, each bare or as `axis=value`."""
    return all(_has(cell, word.strip()) for word in text.split(",") if word.strip())


def _has(cell: Cell, word: str) -> bool:
    """Return whether the cell has the value, on the axis that `word` names or on any."""
    axis, equals, value = word.partition("=")
    if equals and axis in cell.coordinates:
        return _is(cell.coordinates[axis], axis, value)
    return any(_is(found, axis, word) for axis, found in cell.coordinates.items() if axis not in SEED_AXES)


def _is(found: Scalar, axis: str, word: str) -> bool:
    """Return whether `word` is a spelling of the value."""
    if axis.endswith("precision"):
        try:
            return Precision.parse(word) == Precision.parse(str(found))
        except NormstabError:
            return False
    if isinstance(found, int | float) and not isinstance(found, bool):
        try:
            return float(word) == found
        except ValueError:
            return False
    return str(found).lower() == word.lower()
