"""Steps of a bound, made relative to the largest magnitude of a result. Plain numbers but for `largest`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from normstab.numerics.bounds import Step

__all__ = ["Quanta", "largest", "relative_to", "size_of"]


@dataclass(frozen=True)
class Quanta(Step):
    """What quanta add to a result of the largest magnitude `size`, relative to it: an absolute error in truth."""

    size: float = 0.0

    def beside(self, scale: float) -> Quanta:
        """Return the step relative to an output of the largest magnitude `scale`, where that is more than `size`.

        A result much smaller than the output reaches it beside larger ones: its quanta are to those what they are.
        """
        return replace(self, unit=self.unit * min(1.0, self.size / scale)) if scale else self


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
    ratio = condition / magnitude
    found: list[Step] = []
    for step in steps or ():
        made = replace(step, unit=step.unit * ratio, bias=step.bias * ratio, absolute=0.0)
        found.append(replace(made, size=magnitude) if isinstance(made, Quanta) else made)
        if step.absolute:
            found.append(Quanta(1, step.absolute / magnitude, size=magnitude))
    return found


def size_of(steps: Iterable[Step]) -> float:
    """Return by what sets of steps are compared: the sum of the squares of their roundings."""
    return sum(step.count * step.unit**2 for step in steps)
