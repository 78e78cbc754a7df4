"""Steps of a bound, made relative to the largest magnitude of a result. Plain numbers but for `largest`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from normstab.numerics.bounds import Step

__all__ = ["largest", "relative_to", "size_of"]


def largest(x: Tensor) -> float:
    """Return the largest finite magnitude, 0 of nothing."""
    finite = x.detach()[x.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def relative_to(steps: Iterable[Step] | None, condition: float, magnitude: float) -> list[Step]:
    """Return steps that are relative to `condition` as steps relative to `magnitude`, quanta as a step of their own.

    Nothing where the magnitude is zero: what was flushed to zero has no relative error, and shows in the error itself.
    """
    if not magnitude:
        return []
    if not math.isfinite(condition):
        return [Step(1, 1.0)]
    ratio, found = condition / magnitude, []
    for step in steps or ():
        found.append(replace(step, unit=step.unit * ratio, bias=step.bias * ratio, absolute=0.0))
        if step.absolute:
            found.append(Step(1, step.absolute / magnitude))
    return found


def size_of(steps: Iterable[Step]) -> float:
    """Return by what sets of steps are compared: the sum of the squares of their roundings."""
    return sum(step.count * step.unit**2 for step in steps)
