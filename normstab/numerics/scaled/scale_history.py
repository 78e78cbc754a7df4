"""The largest magnitudes of earlier steps, from which the scales of `delayedH` follow."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["ScaleHistory"]


class ScaleHistory:
    """Per operand the largest magnitude of each of the last steps."""

    def __init__(self) -> None:
        self._largest: dict[str, dict[int, float]] = {}

    def amax(self, operand: str, step: int, now: float, steps: int) -> float:
        """Return the largest magnitude of `operand` in the `steps` steps before this one, and note that of `now`.

        Where nothing finite was seen before, as in step 0, it is `now` itself.
        """
        seen = self._largest.setdefault(operand, {})
        before = [largest for at, largest in seen.items() if step - steps <= at < step]
        if math.isfinite(now):
            seen[step] = max(seen.get(step, 0.0), now)
        for old in [at for at in seen if at < step - steps]:
            del seen[old]
        return max(before) if before else now

    def state(self) -> dict[str, dict[int, float]]:
        """Return what a checkpoint has to keep."""
        return {operand: dict(seen) for operand, seen in self._largest.items()}

    def restore(self, state: Mapping[str, Mapping[int, float]]) -> None:
        """Go on from a checkpoint's state."""
        self._largest = {operand: dict(seen) for operand, seen in state.items()}
