"""The largest magnitudes of earlier steps, from which the scales of `delayedH` follow."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from normstab.numerics.steps.capturing import refuse_captured

__all__ = ["ScaleHistory"]

# On a device, of a step in which nothing finite was seen: whether there was, only the device knows.
NOTHING = -1.0


class ScaleHistory:
    """Per operand the largest magnitude of each of the last steps."""

    def __init__(self) -> None:
        self._largest: dict[str, dict[int, float | Tensor]] = {}

    def amax(self, operand: str, step: int, now: float | Tensor, steps: int) -> float | Tensor:
        """Return the largest magnitude of `operand` in the `steps` steps before this one, and note that of `now`.

        Where nothing finite was seen before, as in step 0, it is `now` itself. Of a tensor `now` without axes so is the
        answer: nobody waits for its device.
        """
        refuse_captured("scales of earlier steps")
        seen = self._largest.setdefault(operand, {})
        before = [largest for at, largest in seen.items() if step - steps <= at < step]
        if isinstance(now, Tensor):
            noted, known = torch.where(now.isfinite(), now, NOTHING), seen.get(step, NOTHING)
            seen[step] = torch.maximum(noted, _beside(now, known))
        elif math.isfinite(now):
            seen[step] = max(float(seen.get(step, 0.0)), now)
        for old in [at for at in seen if at < step - steps]:
            del seen[old]
        if not before:
            return now
        if not isinstance(now, Tensor):
            largest_before = max(map(float, before))
            return largest_before if largest_before >= 0 else now
        largest = torch.stack([_beside(now, each) for each in before]).amax()
        return torch.where(largest >= 0, largest, now)

    def state(self) -> dict[str, dict[int, float]]:
        """Return what a checkpoint has to keep."""
        found = {o: {at: float(largest) for at, largest in seen.items()} for o, seen in self._largest.items()}
        return {o: {at: largest for at, largest in seen.items() if largest >= 0} for o, seen in found.items()}

    def restore(self, state: Mapping[str, Mapping[int, float]]) -> None:
        """Go on from a checkpoint's state."""
        self._largest = {operand: dict(seen) for operand, seen in state.items()}


def _beside(now: Tensor, largest: float | Tensor) -> Tensor:
    """Return a magnitude as a tensor like `now`."""
    return largest if isinstance(largest, Tensor) else torch.full_like(now, largest)
