"""Updates of a parameter that were lost, counted in one pass: the step was not zero, and the number is what it was.

By the bits, whatever the processor flushes: a subnormal step is no zero, and subnormal numbers differ.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import INF32, MAGNITUDE32
from normstab.numerics.kernels.cpu.compile import kernel, view

__all__ = ["count_lost"]

u32 = np.uint32


@kernel
def count_lost(before, after, step, n):  # pragma: no cover - compiled
    """Return how many of n float32 that a step moves are equal before and after; all three are given by address."""
    old, new, moved = view(before, n, u32), view(after, n, u32), view(step, n, u32)
    lost = 0
    for i in range(n):
        is_zero = ((old[i] | new[i]) & MAGNITUDE32) == 0
        is_same = ((old[i] == new[i]) & ((new[i] & MAGNITUDE32) <= INF32)) | is_zero
        lost += 1 if is_same & ((moved[i] & MAGNITUDE32) != 0) else 0
    return lost
