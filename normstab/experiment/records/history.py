"""What a run has to say so far: epochs, probes, and the sums of the epoch in progress; plain data.

It goes into a checkpoint as JSON and comes back bit for bit.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from normstab.experiment.records.cell_record import (
    EpochRecord,
    LanguageRecord,
    Nonfinite,
    NormLayerRecord,
    Predictions,
    Probe,
    plain,
)
from normstab.experiment.records.files import jsonable
from normstab.experiment.records.offences import Tallies

__all__ = ["History"]


@dataclass
class History:
    """`step` steps are done; `loss_sum` and `loss_count` are of the epoch in progress, as are updates and angles."""

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    updates: int = 0
    updates_zero: int = 0
    angles: dict[str, float] = field(default_factory=dict)
    angles_count: int = 0
    last_loss: float | None = None
    nonfinite: Nonfinite | None = None
    epochs: list[EpochRecord] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    tallies: Tallies = field(default_factory=Tallies)
    values: dict[str, int] = field(default_factory=dict)
    norm_layers: dict[str, NormLayerRecord] = field(default_factory=dict)
    predictions: Predictions = field(default_factory=Predictions)
    unrecognised: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    language: LanguageRecord | None = None

    @property
    def accuracy(self) -> float | None:
        """The accuracy after the last finished epoch."""
        return self.epochs[-1].accuracy if self.epochs else None

    def add_loss(self, loss: float, images: int) -> None:
        """Note the loss of a step on `images` images."""
        self.last_loss = loss
        self.loss_sum += loss * images
        self.loss_count += images

    def add_angles(self, found: Mapping[str, float]) -> None:
        """Note by which angles a step turned the weights of each layer."""
        self.angles = {name: self.angles.get(name, 0.0) + angle for name, angle in found.items()}
        self.angles_count += 1

    def end_angles(self) -> dict[str, float]:
        """Return the mean angles of the epoch, and begin the next."""
        ended = {name: total / self.angles_count for name, total in self.angles.items()}
        self.angles, self.angles_count = {}, 0
        return ended

    def end_epoch(self) -> tuple[float, int, int]:
        """Return the epoch's mean loss and its counts of updates, and begin the next."""
        ended = (self.loss_sum / max(1, self.loss_count), self.updates, self.updates_zero)
        self.loss_sum, self.loss_count, self.updates, self.updates_zero = 0.0, 0, 0, 0
        return ended

    def to_text(self) -> str:
        """Return the whole history as JSON."""
        return json.dumps(jsonable(plain(self)), allow_nan=False)

    @staticmethod
    def from_text(text: str) -> History:
        """Return what `to_text` wrote."""
        history: History = _adapter().validate_python(json.loads(text))
        return history


@functools.cache
def _adapter() -> Any:
    """Return pydantic's validator of History."""
    from pydantic import TypeAdapter

    return TypeAdapter(History)
