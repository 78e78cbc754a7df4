"""When a run looks at what its device has found: in every step on a CPU, elsewhere once in several steps.

    step    0   1   2   3   4   5   6  ...
    look    x   x       x               x        1, 2, 4, ... steps, then LOOK_EVERY, from one look to the next

A look waits until the device has done all that it was given, so a run that looks in every step leaves the device idle
while Python prepares the next one. What a look finds broken is found late; the run then goes back to where the last
look was and takes those steps one by one, so that its record is that of a run that looks always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.experiment.data.images import Augmentation

__all__ = ["LOOK_EVERY", "Looks", "Unread", "read", "steps_between_looks"]

LOOK_EVERY = 20
"""Steps from one look at a device to the next, at most; a CPU is looked at in every step."""


def steps_between_looks(device: str, chosen: int | None = None) -> int:
    """Return how many steps go by, at most, between two looks at `device`: `chosen` where that is given."""
    if chosen is not None and chosen < 1:
        raise NormstabError(f"look_every is a number of steps >= 1; found {chosen!r}")
    if chosen is not None:
        return chosen
    return 1 if torch.device(device).type == "cpu" else LOOK_EVERY


@dataclass
class Looks:
    """How many steps there are to the next look, `span`: at most `every`, and few after one that found something."""

    every: int = 1
    span: int = 1

    def found_nothing(self) -> None:
        """Let twice as many steps go by until the next one."""
        self.span = min(2 * self.span, self.every)

    def found_something(self) -> None:
        """Look after every step: what broke once is likely to break again, as where a loss scale is sought."""
        self.span = 1


@dataclass(frozen=True)
class Unread:
    """A step whose outcome is still on the device, and what it takes to take it again.

    `numbers` are in float64: the loss, the norm of the gradient, and 1 where something was not finite, else 0.
    """

    numbers: Tensor
    index: Tensor
    augmentation: Augmentation | None
    lr: float
    loss_scale: float | None


def read(steps: Sequence[Unread]) -> list[tuple[float, float, bool]]:
    """Wait for the device, once, and return of each step the loss, the norm, and whether something broke."""
    rows = torch.stack([step.numbers for step in steps]).tolist()
    return [(loss, norm, bool(is_broken)) for loss, norm, is_broken in rows]
