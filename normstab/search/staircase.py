"""The walk along a staircase: which cells of a grid hold, if wider is never worse, in some X + Y questions.

It knows nothing of formats: `holds(x, y)` says whether a cell does. What contradicts the assumption is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Staircase", "walk"]

Place = tuple[int, int]


@dataclass(frozen=True)
class Staircase:
    """The least y that holds for each x, None where none does, and every answer."""

    xs: tuple[int, ...]
    ys: tuple[int, ...]
    least: Mapping[int, int | None]
    asked: Mapping[Place, bool]

    @property
    def corners(self) -> tuple[Place, ...]:
        """The cells that hold although no narrower one does."""
        found: list[Place] = []
        before: int | None = None
        for x in self.xs:
            y = self.least[x]
            if y is not None and (before is None or y < before):
                found.append((x, y))
                before = y
        return tuple(found)

    @property
    def violations(self) -> tuple[tuple[Place, Place], ...]:
        """The pairs that contradict the assumption: (a cell that holds, a wider one that does not)."""
        good = [place for place, answer in self.asked.items() if answer]
        bad = [place for place, answer in self.asked.items() if not answer]
        return tuple((g, b) for g in good for b in bad if b[0] >= g[0] and b[1] >= g[1])

    def holds(self, x: int, y: int) -> bool:
        """Return whether the cell holds: as asked, else as the staircase implies."""
        if (x, y) in self.asked:
            return self.asked[x, y]
        least = self.least[x]
        return least is not None and y >= least


def walk(xs: Sequence[int], ys: Sequence[int], holds: Callable[[int, int], bool]) -> Staircase:
    """Return the staircase of a grid, both axes ascending.

    From the least x and the greatest y: where a cell holds, go to the next lesser y, else to the next greater x. Each
    question ends a row or a column, so that there are at most X + Y of them. For a greater x the least y found so far
    still holds, by assumption; the assumption is probed by the cell one x wider than each corner, at most X more.
    """
    columns, rows = tuple(sorted(set(xs))), tuple(sorted(set(ys)))
    asked: dict[Place, bool] = {}
    least: dict[int, int | None] = {}
    found: int | None = None
    row = len(rows) - 1
    for x in columns:
        while row >= 0:
            answer = asked[x, rows[row]] = holds(x, rows[row])
            if not answer:
                break
            found = rows[row]
            row -= 1
        least[x] = found
    found_corners = Staircase(columns, rows, least, asked).corners
    for x, y in found_corners:
        wider = next((other for other in columns if other > x), None)
        if wider is not None and (wider, y) not in asked:
            asked[wider, y] = holds(wider, y)
    return Staircase(columns, rows, least, asked)
