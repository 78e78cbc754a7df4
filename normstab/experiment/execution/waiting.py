"""The cells that wait: which can start next, and which never will, without asking each of them every time."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from normstab.experiment.scenario.spec import Cell

__all__ = ["WaitingCells"]


class WaitingCells:
    """Cells that have no record yet, in their order; a cell is ready once those that it depends on have theirs.

    `has_record` is asked of cells that others depend on and that are neither among `cells` nor `reused`, once each.
    """

    def __init__(self, cells: Sequence[Cell], *, reused: Collection[str], has_record: Callable[[str], bool]) -> None:
        self._cells = cells
        names = {cell.id for cell in cells}
        self._needs: dict[int, int] = {}
        self._dependents: dict[str, list[int]] = defaultdict(list)
        self._ready: list[int] = []
        self._lost: list[tuple[int, str]] = []
        outside: dict[str, bool] = {}
        absent: dict[int, str] = {}
        for place, cell in enumerate(cells):
            self._needs[place] = 0
            for needed in cell.depends_on:
                if needed in names:
                    self._needs[place] += 1
                    self._dependents[needed].append(place)
                elif needed not in reused:
                    if needed not in outside:
                        outside[needed] = has_record(needed)
                    if not outside[needed]:
                        absent.setdefault(place, needed)
        for place, needed in absent.items():
            if place in self._needs:
                self._lose(place, needed)
        self._ready = [place for place, needs in self._needs.items() if not needs]  # in order, which makes it a heap

    def __len__(self) -> int:
        return len(self._needs) + len(self._lost)

    def first_ready(self) -> Cell | None:
        """Return the first cell that can start, which still waits; None where none can."""
        return self._cells[self._ready[0]] if self._ready else None

    def start_first(self) -> None:
        """Let the first cell that can start wait no more."""
        del self._needs[heapq.heappop(self._ready)]

    def lost(self) -> list[tuple[Cell, str]]:
        """Return the cells that can never start, each once and with the cell that it needs: they wait no more."""
        told, self._lost = sorted(self._lost), []
        return [(self._cells[place], needed) for place, needed in told]

    def note_record(self, name: str) -> None:
        """Take in that a cell has its record."""
        for place in self._dependents.pop(name, ()):
            if place in self._needs:
                self._needs[place] -= 1
                if not self._needs[place]:
                    heapq.heappush(self._ready, place)

    def note_failure(self, name: str) -> None:
        """Take in that a cell will have no record: those that depend on it will not start, nor those behind them."""
        failed = [name]
        while failed:
            needed = failed.pop()
            for place in self._dependents.pop(needed, ()):
                if place in self._needs:
                    del self._needs[place]
                    self._lost.append((place, needed))
                    failed.append(self._cells[place].id)

    def _lose(self, place: int, needed: str) -> None:
        """Let a cell that can never start wait no more, nor those behind it."""
        del self._needs[place]
        self._lost.append((place, needed))
        self.note_failure(self._cells[place].id)
