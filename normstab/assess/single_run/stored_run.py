"""Runs that stay in their files: what a report asks of every run is kept, the rest is read when it is asked for.

    report --asks--> StoredRun --has it--> a few short facts, kept
                         `---has it not--> Shelf: the last runs that were read, up to so many bytes of files

So the memory of a report does not grow with the curves, tallies and predictions of its cells.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from normstab.assess.single_run.one_run import Run, point_of, seed_of
from normstab.errors import RecordError, StrayRecord
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.records.step_log import NAME as STEPS
from normstab.experiment.records.step_log import read_steps
from normstab.experiment.scenario.spec import Cell

__all__ = ["Shelf"]

# Of files; as objects they take some five times as much.
MOST_BYTES, MOST_RUNS = 24 * 2**20, 128
# Values that many runs share, of each of which one is kept.
MOST_SHARED = 4096

# What is kept of a run: short, and asked of all of them when cells are grouped, selected or listed.
AT_ONCE = ("coordinates", "cell", "scenario", "is_reference", "reference_id", "is_swept", "code_sha256")
ON_DEMAND = (
    *("is_nonfinite", "accuracy", "is_at_chance", "is_of_tokens", "chance", "is_emulated", "has_exponents", "spikes"),
    *("notes", "unrecognised", "data", "environment", "model", "steps_per_epoch", "numerics_version"),
)
KEPT = frozenset({*AT_ONCE, *ON_DEMAND})


class Shelf:
    """The runs in a directory, of which the last ones that were asked for are in memory."""

    def __init__(self, directory: Path, *, most_bytes: int = MOST_BYTES, most_runs: int = MOST_RUNS) -> None:
        self.records = directory / "records"
        self._most_bytes, self._most_runs, self._bytes = most_bytes, most_runs, 0
        self._runs: dict[str, tuple[Run, int]] = {}
        self._shared: dict[str, Any] = {}

    def stored(self, name: str) -> Run:
        """Return the run of that name, with its files left where they are; raise RecordError for one that is damaged.

        A step log that is not the one its record was made with is damage: judged without its losses, a run that
        diverged would look stable. A record in a folder that does not have its id is a copy, which would count as a
        seed: a StrayRecord.
        """
        signature = _signature(self.records / name)
        return cast(Run, StoredRun(self._read(name, signature), self, signature))

    def run(self, name: str, signature: tuple[int, ...]) -> Run:
        """Return the run in memory; raise RecordError where its files are not those that were read at first."""
        if name not in self._runs:
            return self._read(name, signature)
        self._runs[name] = self._runs.pop(name)  # the last one asked for stands last
        return self._runs[name][0]

    def shared(self, value: Any) -> Any:
        """Return a value equal to this one, the same object for all runs that have it."""
        if isinstance(value, str):
            return sys.intern(value)
        if isinstance(value, bool | int | float | None):
            return value
        if len(self._shared) >= MOST_SHARED:
            self._shared.clear()
        return self._shared.setdefault(repr(value), value)

    def _read(self, name: str, signature: tuple[int, ...]) -> Run:
        """Return the run from its files, put on the shelf in the place of those asked for longest ago."""
        place = self.records / name
        if _signature(place) != signature:
            raise RecordError(f"{place}: changed while it was judged; give the same command again")
        record = read_record(place)
        if record.id != name:
            told = f"it is a record of {record.id[:200]!r}, not of its folder's name"
            raise StrayRecord(f"{place / 'record.json'}: ignored: {told}")
        run = Run(record, read_steps(place, steps=record.steps, sha256=record.steps_sha256))
        size = signature[0] + signature[2]
        self._runs[name], self._bytes = (run, size), self._bytes + size
        while len(self._runs) > 1 and (self._bytes > self._most_bytes or len(self._runs) > self._most_runs):
            self._bytes -= self._runs.pop(next(iter(self._runs)))[1]
        return run


class StoredRun:
    """What stands for a `Run` whose files stay where they are: it has every attribute of that run."""

    __slots__ = ("_shelf", "_signature", "id", *sorted(KEPT))

    def __init__(self, run: Run, shelf: Shelf, signature: tuple[int, ...]) -> None:
        self.id = run.id
        self._shelf, self._signature = shelf, signature
        for name in AT_ONCE:
            self._keep(name, getattr(run, name))

    def __eq__(self, other: object) -> bool:
        """Return whether two runs are equal, the short facts first."""
        is_other = isinstance(other, StoredRun) and other.id != self.id
        return not is_other and (self.record, self.steps) == (  # read from the files
            getattr(other, "record", None),
            getattr(other, "steps", None),
        )

    @property
    def point(self) -> Mapping[str, Any]:
        """The cell's place in its grid, without the seed."""
        return point_of(self.coordinates)  # type: ignore[attr-defined]  # one of KEPT

    @property
    def seed(self) -> Any:
        """The value of the seed axis; None where the grid has none."""
        return seed_of(self.coordinates)  # type: ignore[attr-defined]  # one of KEPT

    def __getattr__(self, name: str) -> Any:
        """Return what was not kept, or not yet, from the files."""
        if name.startswith("__"):  # a protocol of Python's that a run does not have
            raise AttributeError(name)
        value = getattr(self._shelf.run(self.id, self._signature), name)
        return self._keep(name, value) if name in KEPT else value

    def _keep(self, name: str, value: Any) -> Any:
        """Keep a short fact, in the form that others share."""
        if name == "coordinates":
            value = {self._shelf.shared(axis): self._shelf.shared(place) for axis, place in value.items()}
        elif name == "cell":
            value = self._slim(value)
        elif name != "spikes":
            value = self._shelf.shared(value)
        setattr(self, name, value)
        return value

    def _slim(self, cell: Cell) -> Cell:
        """Return the cell with the specs that it shares with others."""
        parts = {name: self._shelf.shared(getattr(cell, name)) for name in ("dataset", "model", "train", "numerics")}
        place = {"coordinates": self.coordinates}  # type: ignore[attr-defined]  # kept before the cell
        return replace(cell, **place, **parts)


def _signature(place: Path) -> tuple[int, ...]:
    """Return the sizes and times of a record and its log, which tell whether one was written anew."""
    found: list[int] = []
    for name in ("record.json", STEPS):
        try:
            told = os.stat(place / name)
            found += [told.st_size, told.st_mtime_ns]
        except OSError:
            found += [0, 0]
    return tuple(found)
