"""The runs in a directory: records with their step logs. Never YAML, never torch."""

from __future__ import annotations

from pathlib import Path

from normstab.assess.runs import Run
from normstab.errors import RecordError
from normstab.experiment.records.record_reader import read_records
from normstab.experiment.records.step_log import read_steps

__all__ = ["read_runs"]


def read_runs(directory: Path) -> tuple[list[Run], list[RecordError]]:
    """Return every readable run under `directory`, by cell id, and the problems of the others.

    A cell whose step log is not the one its record was made with is among the problems: judged without its losses,
    a run that diverged would look stable.
    """
    records, problems = read_records(directory)
    runs = []
    for record in records:
        try:
            place = directory / "records" / record.id
            runs.append(Run(record, read_steps(place, steps=record.steps, sha256=record.steps_sha256)))
        except RecordError as problem:
            problems.append(problem)
    return runs, problems
