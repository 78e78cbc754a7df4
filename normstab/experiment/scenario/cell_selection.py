"""Which cells a selector of a scenario means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from normstab.experiment.scenario.checking.checks import canonical, path_of
from normstab.experiment.scenario.spec import Cell, Scalar

__all__ = ["selects"]


def selects(where: Mapping[str, Any], cell: Cell, *, swept: bool = False) -> bool:
    """Return whether `where` means this cell: every axis it names has one of its values there.

    Values are compared in their canonical spelling, so that `fp16` means `fp16/nearest/fp32`. A cell that the
    grid does not list itself is meant only where `where` names the axis `precision`. `swept` chooses between
    trained cells (False) and those of a sweep.
    """
    if (cell.sweep is not None) != swept or (not cell.is_listed and "precision" not in where):
        return False
    return all(axis in cell.coordinates and _has(cell.coordinates[axis], axis, where[axis]) for axis in where)


def _has(value: Scalar, axis: str, allowed: Any) -> bool:
    """Return whether `value` is `allowed`, or in the list `allowed`; True is not 1 here."""
    options = [canonical(path_of(axis), option) for option in (allowed if isinstance(allowed, list) else [allowed])]
    return any(value == option and isinstance(value, bool) == isinstance(option, bool) for option in options)
