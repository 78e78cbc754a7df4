"""What a run costs in core hours and bytes, from the records and times of an earlier run; needs no torch.

Times are in `run.json`, outside the records. Without one, hours are not known; bytes are those of an ordinary record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normstab.errors import RecordError
from normstab.experiment.records.files import read_json

__all__ = ["Rates", "rates_of"]

MOST_READ = 24  # records, spread over the cells that were timed
BYTES_OF_STEP, BYTES_OF_RECORD = 100, 20_000
"""Of an ordinary record: a line of its log; its ledger, and predictions of 2,000 images. Source: the committed ones."""


@dataclass(frozen=True)
class Rates:
    """Core seconds for each image or sequence (None: not known), bytes of a step and of a record, and where from."""

    seconds: float | None = None
    bytes_of_step: float = BYTES_OF_STEP
    bytes_of_record: float = BYTES_OF_RECORD
    source: str = ""

    def core_hours(self, images: int | None) -> float | None:
        """Return the core hours of so many images."""
        return None if images is None or self.seconds is None else images * self.seconds / 3600

    def bytes(self, cells: int, steps: int | None) -> int | None:
        """Return the bytes of the records of so many cells and steps."""
        return None if steps is None else round(cells * self.bytes_of_record + steps * self.bytes_of_step)


def rates_of(directories: Iterable[Path]) -> Rates:
    """Return the rates of the first of these runs that has times and their records; else those of ordinary records."""
    for directory in directories:
        timed = list(_timed(directory))
        read = [found for each in timed[:: max(1, len(timed) // MOST_READ)] if (found := _costs_of(*each)) is not None]
        images, steps = sum(each[1] for each in read), sum(each[2] for each in read)
        if images and steps:
            log, rest = sum(each[3] for each in read) / steps, sum(each[4] for each in read) / len(read)
            return Rates(sum(each[0] for each in read) / images, log, rest, f"{len(read)} cells in {directory}")
    return Rates()


def _timed(directory: Path) -> Iterator[tuple[Path, float]]:
    """Yield the folder of each cell that `run.json` has the time of, and its core seconds."""
    try:
        runs = read_json(directory / "run.json")["runs"]
        for run in runs:
            for name, seconds in run["seconds"].items():
                yield directory / "records" / name, float(seconds) * int(run.get("threads", 1))
    except (RecordError, KeyError, TypeError, ValueError, AttributeError):
        return


def _costs_of(place: Path, seconds: float) -> tuple[float, int, int, int, int] | None:
    """Return core seconds, images, steps, bytes of the log and of the rest; None without a record that reads."""
    try:
        record: Any = read_json(place / "record.json")
        train, is_fork = record["cell"]["train"], record["cell"].get("fork") is not None
        steps, batch, ranks = int(record["steps"]), int(train["batch"]), int(train.get("ranks", 1))
        sizes = {path.name: path.stat().st_size for path in place.rglob("*") if path.is_file()}
    except (RecordError, KeyError, TypeError, ValueError, OSError):
        return None
    log = sizes.pop("steps.jsonl", 0)
    # A fork began where another training was: its time is not that of its steps.
    return (seconds * ranks, steps * batch, steps, log, sum(sizes.values())) if steps and not is_fork else None
