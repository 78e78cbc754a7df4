"""The log of a cell's steps: `steps.jsonl`, one line per step, appended as the run goes.

A torn last line, as `kill -9` leaves it, is dropped on reading and cut off on resuming.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from normstab.errors import RecordError
from normstab.experiment.records.files import jsonable, open_plain_file, read_plain_file, write_atomically

__all__ = ["NoLog", "Step", "StepLog", "check_log", "copy_log", "kept_sha256", "log_sha256", "read_steps"]

NAME = "steps.jsonl"


@dataclass(frozen=True)
class Step:
    """One training step: its loss before the update, the gradient's norm, and the learning rate used."""

    step: int
    loss: float
    gradient_norm: float
    lr: float
    loss_scale: float | None = None


class StepLog:
    """Appends steps to `directory/steps.jsonl`, after the first `keep` lines of what is there already."""

    def __init__(self, directory: Path, *, keep: int = 0) -> None:
        self.path = directory / NAME
        self._pending: list[str] = []
        try:
            directory.mkdir(parents=True, exist_ok=True)
            kept = _whole_lines(self.path)[:keep] if keep else []
            if len(kept) < keep:
                raise RecordError(f"{self.path}: {keep} steps were logged, {len(kept)} are there")
            self._file = open_plain_file(self.path, "r+b" if kept else "wb")
            self._file.truncate(sum(len(line) for line in kept))
            self._file.seek(0, 2)
            self._hash = hashlib.sha256(b"".join(kept))
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def extend(self, steps: Iterable[Step]) -> None:
        """Add steps, in order."""
        for step in steps:
            self.append(step)

    def append(self, step: Step) -> None:
        """Add a step; it reaches the file on `flush` or on leaving."""
        plain = jsonable({name: value for name, value in asdict(step).items() if value is not None})
        self._pending.append(json.dumps(plain, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Write what is pending."""
        content = "".join(self._pending).encode("ascii")
        self._pending = []
        self._hash.update(content)
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    @property
    def sha256(self) -> str:
        """The hash of everything that was flushed."""
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._file.close()


class NoLog:
    """Stands for the log in a process that writes none: another one of those that train the cell does."""

    sha256 = ""

    def extend(self, steps: Iterable[Step]) -> None:
        """Keep nothing."""

    def flush(self) -> None:
        """Write nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close nothing."""


def log_sha256(directory: Path) -> str:
    """Return the sha256 of the log in `directory`; of nothing where there is none."""
    return _sha256(_whole_lines(directory / NAME))


def kept_sha256(directory: Path, steps: int) -> str:
    """Return the sha256 of the first `steps` steps of the log in `directory`."""
    return _sha256(_whole_lines(directory / NAME)[:steps])


def copy_log(origin: Path, directory: Path, *, steps: int) -> None:
    """Begin the log in `directory` with the first `steps` steps of the one in `origin`."""
    write_atomically(directory / NAME, b"".join(_whole_lines(origin / NAME)[:steps]))


def check_log(directory: Path, *, steps: int, sha256: str | None) -> None:
    """Raise RecordError unless the log in `directory` is the one that a record was made with.

    The record tells how many `steps` there are; one of an earlier version knows no hash.
    """
    _checked(directory / NAME, _whole_lines(directory / NAME), steps, sha256)


def read_steps(directory: Path, *, steps: int | None = None, sha256: str | None = None) -> tuple[Step, ...]:
    """Return the steps in `directory/steps.jsonl`, without a torn last line; empty when there is no file.

    With `steps`, and `sha256` where it is known, a log that is not the record's raises RecordError.
    """
    path = directory / NAME
    lines = _whole_lines(path)
    if steps is not None:
        _checked(path, lines, steps, sha256)
    return _parsed(path, lines)


def _checked(path: Path, lines: list[bytes], steps: int, sha256: str | None) -> None:
    """Raise RecordError unless there are as many lines as `steps`, with this hash."""
    if len(lines) != steps:
        what = f"{len(lines)} steps are there, the record is of {steps}"
    elif sha256 is not None and _sha256(lines) != sha256:
        what = "not the log that the record was made with"
    else:
        return
    raise RecordError(f"{path}: {what}; run the same command again, which makes the cell anew")


def _sha256(lines: list[bytes]) -> str:
    """Return the sha256 of the lines of a log."""
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _parsed(path: Path, lines: list[bytes]) -> tuple[Step, ...]:
    """Return the steps that the lines of `path` describe."""
    try:
        # Parsed at once, which takes a third of the time; one by one where that fails, to name the line.
        found = json.loads(b"[" + b",".join(lines) + b"]")
        if len(found) == len(lines):
            return tuple(map(_step, found))
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    steps: list[Step] = []
    for number, line in enumerate(lines, 1):
        try:
            steps.append(_step(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordError(f"{path}:{number}: not a step: {error}; run the cell again with --fresh") from error
    return tuple(steps)


def _step(plain: dict[str, Any]) -> Step:
    """Return the Step that one line's object describes."""
    floats = {name: None if value is None else float(value) for name, value in plain.items() if name != "step"}
    return Step(int(plain["step"]), **floats)  # type: ignore[arg-type]


def _whole_lines(path: Path) -> list[bytes]:
    """Return the lines of `path` that end in a newline, or none where there is no file."""
    if not path.exists():
        return []
    try:
        content = read_plain_file(path)
    except OSError as error:
        raise RecordError(f"{path}: cannot read: {error.strerror or error}") from error
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def _cannot_write(path: Path, error: OSError) -> RecordError:
    """Return the error that says why the log cannot grow."""
    return RecordError(f"{path}: cannot write: {error.strerror or error}; make room, then run the same command again")
