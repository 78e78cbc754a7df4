"""Checkpoints within a cell: everything that a bit-identical resume needs, in one atomically written file.

It begins with the hash of what follows, and is read back with `weights_only`, so that it cannot run code. It is
valid only for the same cell, device, thread count, CPU capability, torch build and code of normstab.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from normstab.errors import RecordError
from normstab.experiment.records.cell_record import Environment
from normstab.experiment.records.files import (
    CHECKPOINT_FILE,
    SNAPSHOT_FILE,
    read_plain_file,
    remove_path,
    write_atomically,
)

__all__ = ["Checkpoints", "read_snapshot", "write_snapshot"]

INTERVAL_S = 60.0
HASH_BYTES = 32  # the sha256 of what follows it


@functools.cache
def own_code() -> str:
    """Return a hash of normstab's own sources: an edit need not change the version of the numerics."""
    package = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


class Checkpoints:
    """The checkpoint of the cell `cell_id` in `directory`; one is due a minute after the last."""

    def __init__(
        self, directory: Path, cell_id: str, environment: Environment, *, interval_s: float = INTERVAL_S
    ) -> None:
        self.path = directory / CHECKPOINT_FILE
        self.key = {"cell": cell_id, **{name: str(value) for name, value in asdict(environment).items()}}
        self.key["normstab"] = own_code()
        self.interval_s = interval_s
        self._last_s = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed since the last checkpoint or the start."""
        return time.monotonic() - self._last_s >= self.interval_s

    def write(self, state: dict[str, Any]) -> None:
        """Write `state`: tensors, numbers, texts, and dicts and lists of them."""
        _write(self.path, self.key, state)
        self._last_s = time.monotonic()

    def read(self, device: str) -> tuple[dict[str, Any] | None, str | None]:
        """Return the state, or None and why there is none to resume from (None: there is no checkpoint)."""
        if not os.path.lexists(self.path):
            return None, None
        try:
            key, state = _read(self.path, device)
        except Exception as error:  # bytes of another version make torch's unpickler raise whatever it meets
            return None, f"the checkpoint does not read: {error}"
        if key != self.key:
            changed = [
                f"{name} was {key.get(name)}, is {value}" for name, value in self.key.items() if key.get(name) != value
            ]
            return None, f"the checkpoint is of another run: {'; '.join(changed)}"
        return state, None

    def remove(self) -> None:
        """Delete the checkpoint of a finished cell, or whatever lies in its place."""
        remove_path(self.path)


def write_snapshot(directory: Path, cell_id: str, state: dict[str, Any]) -> None:
    """Write the state in which the cell `cell_id` stops, for the cells that go on from it."""
    _write(directory / SNAPSHOT_FILE, {"cell": cell_id}, state)


def read_snapshot(directory: Path, cell_id: str, device: str) -> dict[str, Any]:
    """Return the state in which the cell `cell_id` stopped, of whatever machine; raise RecordError without one."""
    path = directory / SNAPSHOT_FILE
    try:
        key, state = _read(path, device)
    except Exception as error:  # as for a checkpoint
        raise RecordError(f"{path}: does not read: {error}; remove its folder and run again") from error
    if key != {"cell": cell_id}:
        raise RecordError(f"{path}: is of {key.get('cell')!r}, not of {cell_id!r}; remove its folder and run again")
    return state


def _write(path: Path, key: dict[str, str], state: dict[str, Any]) -> None:
    """Write the hash of what follows, the key, and the state."""
    saved = io.BytesIO()
    torch.save({"key": key, "state": state}, saved)
    content = saved.getvalue()
    write_atomically(path, hashlib.sha256(content).digest() + content)


def _read(path: Path, device: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return key and state; raise whatever reading raises, and ValueError where the hash is another."""
    content = read_plain_file(path)
    if hashlib.sha256(content[HASH_BYTES:]).digest() != content[:HASH_BYTES]:
        raise ValueError("its bytes are not those that were written")
    found = torch.load(io.BytesIO(content[HASH_BYTES:]), map_location=device, weights_only=True)
    return dict(found["key"]), found["state"]
