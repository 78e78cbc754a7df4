"""Whether the records that an expectation speaks of are there: what is judged without them proves nothing.

Knows selectors and the cells of the resolved grid; judges no number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from normstab.assess.expected.outcome import Finding, Outcome
from normstab.assess.swept import SWEPT
from normstab.experiment.scenario.cell_selection import selects
from normstab.experiment.scenario.spec import Cell

__all__ = ["absent_evidence"]

MOST_NAMED = 3
"""Cells beyond this number are counted, not named."""


def absent_evidence(expectation: Any, cells: Sequence[Cell], missing: frozenset[str]) -> Finding | None:
    """Return why `expectation` cannot be judged by the `cells` of the grid, of which `missing` have no record.

    Not evaluated where one of its selectors means no cell of the grid as resolved, not met where a cell that it
    means, or the reference of one, has no record; None where everything is there, and of a grid that is not known.
    """
    if not cells:
        return None
    swept = getattr(expectation, "metric", None) in SWEPT
    meant: dict[str, Cell] = {}
    for where in sides_of(expectation):
        found = [cell for cell in cells if selects(where, cell, swept=swept)]
        if not found:
            point = ", ".join(f"{axis} {value}" for axis, value in where.items()) or "any axis"
            return Finding(Outcome.NOT_EVALUATED, f"the grid as resolved has no cell with {point}")
        meant |= {cell.id: cell for cell in found}
    needed = dict.fromkeys(name for cell in meant.values() for name in (cell.reference_id, cell.id) if name is not None)
    lost = [name for name in needed if name in missing]
    if not lost:
        return None
    more = f" and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
    found_text = f"no evidence: {len(lost)} of {len(needed)} records it rests on"
    named = ", ".join(lost[:MOST_NAMED])
    return Finding(
        Outcome.NOT_MET, f"{found_text} are missing ({named}{more}); run the scenario to make them", "no evidence"
    )


def sides_of(expectation: Any) -> list[Mapping[str, Any]]:
    """Return a selector for each set of cells that an expectation of any form compares or bounds."""
    where = getattr(expectation, "where", None) or {}
    others = getattr(expectation, "of", None)
    if isinstance(others, Mapping):
        rest = {axis: value for axis, value in where.items() if axis not in others}
        return [where, {**rest, **others}]
    named = [getattr(expectation, side, None) for side in ("better", "worse", "recovered", "low", "high")]
    sides = [side for side in named if side is not None] or list(getattr(expectation, "identical", ()))
    return [{**where, **side} for side in sides] or [where]
