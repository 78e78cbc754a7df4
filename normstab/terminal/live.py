"""What people see while cells run: a line per finished cell, and on a terminal a table of the cells under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from normstab.experiment.execution.progress import Event

__all__ = ["LiveTable", "line_of", "shown_duration", "watching"]


@contextmanager
def watching(say: Callable[[str], None], *, is_live: bool) -> Iterator[Callable[[Event], None]]:
    """Yield what to call with each event; `say` gets a line per cell that ended, above the table where `is_live`."""
    if not is_live:
        yield lambda event: say(line) if (line := line_of(event)) else None
        return
    table = LiveTable()
    console = Console(stderr=True, highlight=False)

    def show(event: Event) -> None:
        table.note(event)
        if line := line_of(event):
            say(line)

    # Live redirects what is written to stderr meanwhile, so that a line lands above the table.
    with Live(table, console=console, refresh_per_second=4, transient=True):
        yield show


def shown_duration(seconds: float) -> str:
    """Return a duration as people say it: 7.3 s, 2:05, 1:02:05."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{whole} s"


def line_of(event: Event) -> str | None:
    """Return the line for a cell that ended, or None for an event that needs no line in a log."""
    if event.kind not in ("reused", "finished", "failed"):
        return None
    width = len(str(event.total))
    line = f"[{event.done:{width}}/{event.total}] {event.cell.id}: {_ending(event)}"
    if event.kind != "reused" and event.eta_s is not None and event.done < event.total:
        line += f", about {shown_duration(event.eta_s)} to go"
    return line


def _ending(event: Event) -> str:
    if event.failure is not None:
        return f"{event.failure.kind}: {event.failure.message}"
    return "reused, its record is there" if event.kind == "reused" else "finished"


@dataclass
class LiveTable:
    """The cells under way; `note` each event, then render."""

    events: dict[str, Event] = field(default_factory=dict)
    latest: Event | None = None

    def note(self, event: Event) -> None:
        """Take an event in."""
        self.latest = event
        if event.kind in ("started", "progress"):
            self.events[event.cell.id] = event
        else:
            self.events.pop(event.cell.id, None)

    def __rich__(self) -> Table:
        """Return the table: one row per cell under way, the sum of all in the title."""
        table = Table(title=self._title(), title_justify="left", box=None, pad_edge=False)
        for column in ("cell", "", "step", "loss", "accuracy"):
            table.add_column(column, justify="right" if column in ("step", "loss", "accuracy") else "left")
        for event in self.events.values():
            table.add_row(*_cells_of(event))
        return table

    def _title(self) -> str:
        if self.latest is None:
            return ""
        left = "" if self.latest.eta_s is None else f", about {shown_duration(self.latest.eta_s)} to go"
        return f"{self.latest.done} of {self.latest.total} cells, {shown_duration(self.latest.elapsed_s)}{left}"


def _cells_of(event: Event) -> tuple[str | ProgressBar, ...]:
    """Return the columns of one cell under way."""
    found = event.progress
    if found is None:
        return event.cell.id, ProgressBar(total=1, completed=0, width=20), "", "", ""
    loss = "" if found.loss is None else f"{found.loss:.3f}"
    accuracy = "" if found.accuracy is None else f"{found.accuracy:.3f}"
    bar = ProgressBar(total=max(found.steps, 1), completed=found.step, width=20)
    return event.cell.id, bar, f"{found.step}/{found.steps}", loss, accuracy
