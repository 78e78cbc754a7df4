"""The runs in a directory: records with their step logs, read one at a time. Never YAML, never torch."""

from __future__ import annotations

from pathlib import Path

from normstab.assess.runs import Run
from normstab.assess.single_run.stored_run import Shelf
from normstab.errors import RecordError
from normstab.experiment.records.record_reader import names_of_records

__all__ = ["read_runs"]


def read_runs(directory: Path, shelf: Shelf | None = None) -> tuple[list[Run], list[RecordError]]:
    """Return every readable run under `directory`, by cell id, and the problems of the others.

    Their files are read once here, so that every problem is known, and again where more than short facts is asked for:
    `shelf` holds the last few of them.
    """
    shelf = shelf or Shelf(directory)
    runs: list[Run] = []
    problems: list[tuple[str, RecordError]] = []
    for name in names_of_records(directory):
        try:
            runs.append(shelf.stored(name))
        except RecordError as problem:
            problems.append((name, problem))
    runs.sort(key=lambda run: run.id)
    return runs, [problem for _, problem in sorted(problems, key=lambda pair: pair[0])]
