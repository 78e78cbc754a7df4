"""Checkpoints within a cell: everything that a bit-identical resume needs, in one atomically written file.

Read back with `weights_only`, so a checkpoint cannot run code. It is valid only for the same cell, device, thread
count, CPU capability and torch build.
"""

from __future__ import annotations

import io
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from normstab.experiment.records.cell_record import Environment
from normstab.experiment.records.files import write_atomically

__all__ = ["Checkpoints"]

NAME = "checkpoint.pt"
INTERVAL_S = 60.0


class Checkpoints:
    """The checkpoint of the cell `cell_id` in `directory`; one is due a minute after the last."""

    def __init__(
        self, directory: Path, cell_id: str, environment: Environment, *, interval_s: float = INTERVAL_S
    ) -> None:
        self.path = directory / NAME
        self.key = {"cell": cell_id, **{name: str(value) for name, value in asdict(environment).items()}}
        self.interval_s = interval_s
        self._last_s = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed since the last checkpoint or the start."""
        return time.monotonic() - self._last_s >= self.interval_s

    def write(self, state: dict[str, Any]) -> None:
        """Write `state`: tensors, numbers, texts, and dicts and lists of them."""
        content = io.BytesIO()
        torch.save({"key": self.key, "state": state}, content)
        write_atomically(self.path, content.getvalue())
        self._last_s = time.monotonic()

    def read(self, device: str) -> tuple[dict[str, Any] | None, str | None]:
        """Return the state, or None and why there is none to resume from (None: there is no checkpoint)."""
        if not self.path.exists():
            return None, None
        try:
            found = torch.load(self.path, map_location=device, weights_only=True)
            key, state = found["key"], found["state"]
        except Exception as error:  # torn bytes make torch's unpickler raise whatever its parsing meets
            return None, f"the checkpoint does not read: {error}"
        if key != self.key:
            changed = [
                f"{name} was {key.get(name)}, is {value}" for name, value in self.key.items() if key.get(name) != value
            ]
            return None, f"the checkpoint is of another run: {'; '.join(changed)}"
        return state, None

    def remove(self) -> None:
        """Delete the checkpoint of a finished cell."""
        self.path.unlink(missing_ok=True)
