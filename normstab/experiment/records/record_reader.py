"""Records as they are read back: strictly, since a damaged one that is still JSON must not be judged.

Needs no torch.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normstab.errors import RecordError, StrayRecord
from normstab.experiment.records.cell_record import VERSION, Record
from normstab.experiment.records.files import read_json
from normstab.experiment.scenario.spec import Cell

__all__ = ["names_of_records", "read_record", "read_records"]

# The name of a site: module, operation and direction.
SITE = re.compile(r".+\[(forward|backward|optimizer)\]\Z", re.DOTALL)


def read_record(directory: Path) -> Record:
    """Return the record in `directory/record.json`; raise RecordError, naming the file and the field."""
    path = directory / "record.json"
    document = read_json(path)
    if not isinstance(document, dict) or "version" not in document:
        raise RecordError(f"{path}: not a record: expected an object with 'version'; remove it and run again")
    if document["version"] != VERSION:
        raise RecordError(
            f"{path}: record version {document['version']!r}, this normstab reads {VERSION}; redo it with --fresh"
        )
    return _validated(path, document)


def names_of_records(out_dir: Path) -> Iterator[str]:
    """Yield the names of the folders under `out_dir/records` with a record, in no order: a directory may be long."""
    try:
        entries = os.scandir(out_dir / "records")
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return
    with entries:
        yield from (entry.name for entry in entries if os.path.exists(os.path.join(entry.path, "record.json")))


def read_records(out_dir: Path) -> tuple[list[Record], list[RecordError]]:
    """Return every readable record under `out_dir/records`, by cell id, and the problems of the others.

    One in a folder that does not have its id is a copy, which would count as a seed: a StrayRecord.
    """
    records: list[Record] = []
    problems: list[RecordError] = []
    for name in sorted(names_of_records(out_dir)):
        path = out_dir / "records" / name / "record.json"
        try:
            record = read_record(path.parent)
            if record.id != path.parent.name:
                raise StrayRecord(f"{path}: ignored: it is a record of {record.id[:200]!r}, not of its folder's name")
            records.append(record)
        except RecordError as problem:
            problems.append(problem)
    return records, problems


@functools.cache
def _adapter() -> Any:
    """Return pydantic's validator of Record, built once and on first use."""
    from pydantic import TypeAdapter

    return TypeAdapter(Record)


def _validated(path: Path, document: dict[str, Any]) -> Record:
    """Return the Record in `document`; raise RecordError with the first wrong field."""
    from pydantic import ValidationError

    try:
        record: Record = _adapter().validate_python(document)
        _check_values(record)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in wrong["loc"])
        raise RecordError(f"{path}: {where}: {wrong['msg']}; remove the file and run the same command again") from error
    except ValueError as error:
        raise RecordError(f"{path}: {error}; remove the file and run the same command again") from error
    return record


def _check_values(record: Record) -> None:
    """Raise ValueError for values that no run has: they would be judged, or divided by."""
    epochs, layers = record.epochs, record.norm_layers.values()
    counts = {
        "steps": (record.steps, record.steps_per_epoch),
        "data": (record.data.train, record.data.test, record.data.classes - 1),
        "epochs.updates": [count for epoch in epochs for count in (epoch.updates, epoch.updates_zero)],
        "norm_layers": [count for layer in layers for count in (layer.n, layer.channels, layer.collapsed_channels)],
        "first": [offence.step for offence in record.first.values()],
    }
    wrong = [name for name, values in counts.items() if any(value < 0 for value in values)]
    if not all(0.0 <= epoch.accuracy <= 1.0 for epoch in epochs):
        wrong.append("epochs.accuracy")
    language = record.language
    shares = () if language is None else (language.chance, language.word_accuracy or 0.0, language.chrf or 0.0)
    if not all(0.0 <= share <= 1.0 for share in shares):
        wrong.append("language")
    if record.status not in ("finished", "nonfinite"):
        wrong.append("status")
    sites = [offence.site for offence in record.first.values()] + [site for epoch in epochs for site in epoch.sites]
    if not all(SITE.match(site) for site in sites):
        wrong.append("a site")
    if wrong:
        raise ValueError(f"{wrong[0]}: a value that no run has")
    try:
        labels, predicted = record.predictions.label_array, record.predictions.predicted_array
    except ValueError as error:
        raise ValueError(f"predictions: {error}") from error
    if labels.shape != predicted.shape or (labels.size and labels.max() >= record.data.classes):
        raise ValueError("predictions: labels and predicted classes do not go together")
    try:
        Cell.from_json(record.cell)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"cell: not a cell: {str(error).splitlines()[0]}") from error
