"""`run.json`: when, where and with what the cells were run. Outside every comparison of records."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normstab.errors import RecordError
from normstab.experiment.execution.progress import Failure
from normstab.experiment.records.files import json_text, read_json, write_atomically

__all__ = ["RunLog", "start_log"]

LEAST_SHARE = 20.0  # of the time that writing took, before it is written again
LIBRARIES = ("normstab", "torch", "numpy", "numba", "triton")


@dataclass
class RunLog:
    """One entry of `run.json`, written again as cells end.

    Writing takes at most a twentieth of the time, so that of a long one not every cell is; its end always is.
    """

    path: Path
    earlier: list[Any]
    entry: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    total_s: float = 0.0
    next_s: float = 0.0

    def note_time(self, name: str, seconds: float) -> None:
        """Note how long a cell took."""
        self.seconds[name] = seconds
        self.total_s += seconds

    def write(self, *, ended: str | None = None, at_once: bool = False) -> None:
        """Write the file, unless one was written just now; raise RecordError where the directory takes no more.

        With `at_once` it is written however short ago that was: a full disk is told then.
        """
        started_s = time.monotonic()
        if ended is None and not at_once and started_s < self.next_s:
            return
        failures = [
            {"cell": found.id, "kind": found.kind, "message": found.message, "detail": found.detail}
            for found in self.failures
        ]
        now = {**self.entry, "ended": ended, "seconds": self.seconds, "notes": self.notes, "failures": failures}
        write_atomically(self.path, json_text({"version": 1, "runs": [*self.earlier, now]}))
        ended_s = time.monotonic()
        self.next_s = ended_s + LEAST_SHARE * (ended_s - started_s)

    def close(self, how: str) -> None:
        """Write the file a last time, with the time and how the run ended."""
        self.write(ended=f"{_now()} {how}")


def start_log(out_dir: Path, settings: dict[str, Any]) -> RunLog:
    """Return the log of a run that starts now, behind the entries of the runs before it, and write it."""
    path = out_dir / "run.json"
    try:
        earlier = read_json(path)["runs"] if path.exists() else []
    except (RecordError, KeyError, TypeError):
        earlier = []
    if not isinstance(earlier, list):
        earlier = []
    entry = {
        "started": _now(),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "command": sys.argv,
        **settings,
    }
    log = RunLog(path, earlier, entry)
    log.write()
    return log


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version(name: str) -> str | None:
    """Return the installed version of a library, or None; nothing is imported."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
