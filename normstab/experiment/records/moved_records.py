"""Finished records under other names: a cell is known by its hash, and its slug changes with the axes of a grid.

`records/l2-fp16-1-0f3a...` of a grid of norm, precision and seed is `records/l2-fp16-1-sgd-0f3a...` once the optimizer
is an axis too, where its value is the one that it had before. Scenarios of one command find each other's records too:
networks that differ in their formats alone have the same wide references.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from normstab.errors import RecordError
from normstab.experiment.records.cell_record import Record, write_record
from normstab.experiment.records.files import read_plain_file, remove_path, write_atomically
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.records.step_log import check_log, copy_log
from normstab.experiment.scenario.cell_identity import hash_of
from normstab.experiment.scenario.spec import Cell

__all__ = ["copy_records", "move_records"]

PROBES = "probes"


def move_records(missing: Mapping[str, Cell], records: Path, *, kept: Collection[str]) -> dict[str, str]:
    """Give each cell of `missing` its record where that lies in `records` under another name; return new -> old names.

    `missing` is by id; the folders named in `kept` stay. A record's place in the grid becomes the cell's.
    """
    by_hash = {hash_of(name): cell for name, cell in missing.items()}
    found: dict[str, str] = {}
    for old in _names_of(records, by_hash):
        cell = by_hash[hash_of(old)]
        if cell.id in found or (old in kept and old != cell.id):
            continue
        record = _whole_record(records / old)
        # Where the names are the same, a kill came between the two writes below.
        if record is None or record.id == cell.id or hash_of(record.id) != hash_of(cell.id):
            continue
        if old != cell.id:
            remove_path(records / cell.id)  # at most what is not finished
            os.replace(records / old, records / cell.id)
        write_record(records / cell.id, replace(record, id=cell.id, cell=cell.to_json()))
        found[cell.id] = record.id
    return found


def copy_records(missing: Mapping[str, Cell], records: Path, *, others: Iterable[Path]) -> dict[str, str]:
    """Give each cell of `missing` a copy of its record in one of the folders `others`; return new -> old names.

    Copied are a record, its log and the probes of a reference. Sweeps are not, nor cells that leave more or go on from
    others.
    """
    by_hash: dict[str, list[Cell]] = defaultdict(list)
    for name, cell in missing.items():
        if cell.fork is None and cell.record is None and cell.sweep is None:
            by_hash[hash_of(name)].append(cell)
    found: dict[str, str] = {}
    for folder in others:
        for old in _names_of(folder, by_hash):
            record = _whole_record(folder / old)
            if record is None or record.id != old:
                continue
            for cell in by_hash[hash_of(old)]:
                if cell.id not in found and _has_probes(cell, folder / old):
                    _copy(record, folder / old, records / cell.id, cell)
                    found[cell.id] = f"{folder.parent.name}/{old}"
    return found


def _has_probes(cell: Cell, directory: Path) -> bool:
    """Return whether other cells can be compared with the record there, where `cell` is a reference."""
    return not (cell.is_reference and cell.train.probe_every) or any((directory / PROBES).glob("*.npz"))


def _copy(record: Record, source: Path, target: Path, cell: Cell) -> None:
    """Copy what lies beside a record, and the record last: without it the rest counts for nothing."""
    remove_path(target)
    copy_log(source, target, steps=record.steps)
    for path in sorted((source / PROBES).glob("*.npz")):
        write_atomically(target / PROBES / path.name, read_plain_file(path))
    write_record(target, replace(record, id=cell.id, cell=cell.to_json()))


def _names_of(records: Path, wanted: Collection[str]) -> list[str]:
    """Return the names of folders whose hash is wanted, in order; of many others nothing is kept."""
    if not wanted or not records.is_dir():
        return []
    with os.scandir(records) as entries:
        return sorted(entry.name for entry in entries if hash_of(entry.name) in wanted)


def _whole_record(directory: Path) -> Record | None:
    """Return the record in `directory`, with a whole log beside it; None where there is none."""
    try:
        record = read_record(directory)
        check_log(directory, steps=record.steps, sha256=record.steps_sha256)
    except RecordError:
        return None
    return record
