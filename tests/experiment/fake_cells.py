"""Cells that train nothing: `run_cell` does what the coordinate `act` says. Imported by the executor's workers."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normstab.errors import NormstabError
from normstab.experiment.execution.progress import Progress
from normstab.experiment.records.cell_record import DataFacts, Environment, Record, write_record
from normstab.experiment.scenario.spec import Cell, DatasetSpec, ModelSpec, NumericsSpec, TrainSpec

RUN_CELL = "tests.experiment.fake_cells:run_cell"


def cell(act: str = "finish", number: int = 0, **fields: Any) -> Cell:
    specs = (DatasetSpec("synthetic"), ModelSpec("mlp"), TrainSpec(seed=number), NumericsSpec(rules={act: "native"}))
    return Cell("fake", {"act": act, "seed": number}, *specs, **fields)


def run_cell(cell: Cell, directory: Path, *, threads: int, device: str, report: Callable[[Progress], None]) -> Record:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "starts").open("a") as file:
        file.write(f"{os.getpid()} {threads} {device}\n")
    act = cell.coordinates["act"]
    report(Progress(1, 4, note="begun"))
    if act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if act in ("fork and die", "fork in C and die"):
        if (os.fork if act == "fork and die" else ctypes.CDLL(None).fork)() == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "exit":
        os._exit(7)
    if act == "raise":
        raise ZeroDivisionError("a bug")
    if act == "refuse":
        raise NormstabError("the data set is not there")
    if act == "nap":
        time.sleep(0.5)
    if act == "sleep":
        time.sleep(60)
    if act == "unwritable":
        directory.parent.parent.chmod(0o500)
    return _recorded(cell, directory, threads=threads, device=device)


def _recorded(cell: Cell, directory: Path, *, threads: int, device: str) -> Record:
    """Leave the record of a cell that did nothing."""
    record = Record(
        cell.id,
        cell.to_json(),
        1,
        DataFacts("synthetic", "0" * 64, 8, 8, 10),
        Environment(device, threads, "AVX2", "2"),
        "finished",
        0,
        0,
    )
    write_record(directory, record)
    return record


def run_short_cell(
    cell: Cell, directory: Path, *, threads: int, device: str, report: Callable[[Progress], None]
) -> Record:
    """Take a millisecond: what is measured is what runs the cell."""
    report(Progress(1, 1))
    return _recorded(cell, directory, threads=threads, device=device)


def run_lent_cell(
    cell: Cell, directory: Path, *, threads: int, device: str, report: Callable[[Progress], None]
) -> Record:
    """Refuse to run unless the data were lent to this process, in memory that it shares with others."""
    from normstab.experiment.data.loans import lent

    source = lent((cell.dataset.name, cell.dataset.root, cell.dataset.size))
    if source is None or source.train.flags.writeable:
        raise NormstabError("the data are this process's own")
    return _recorded(cell, directory, threads=threads, device=device)


def run_real_cell(
    cell: Cell, directory: Path, *, threads: int, device: str, report: Callable[[Progress], None]
) -> Record:
    """Train in earnest, with a checkpoint after every step."""
    from normstab.experiment.training.train_cell import run_cell as train

    return train(cell, directory, threads=threads, device=device, report=report, checkpoint_s=0.0)
