"""The moving averages of a layer's statistics, where every number is normal: float32's own products and sums.

    running   [ r0 r1 ... ]  becomes  rest r + momentum x: two products and a sum of each, three results counted

Where all is normal no rounding is an event, so that only their number and the exact extremes are counted. Results are
kept apart until the last is known to be normal: else nothing is written, and the readable code does it.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import INF32, MAGNITUDE32
from normstab.numerics.kernels.cpu.compile import as_int64, as_uint32, device, kernel, view
from normstab.numerics.kernels.cpu.counting import COUNT, LARGEST, SCRATCH, SMALLEST, clear, settle_scratches
from normstab.numerics.kernels.cpu.sums.steps import sum_folded

__all__ = ["move_average"]

f32, u32 = np.float32, np.uint32
LEAST_NORMAL = u32(0x00800000)


@kernel
def move_average(running, new, n, rest, momentum, row, stamp, step):  # pragma: no cover - compiled
    """Replace n float32 at `running` by rest running + momentum new, counted at `row` (0: nowhere).

    Return False, with nothing written, where a number is zero, subnormal, infinite or NaN.
    """
    old, x, moved = view(running, n, f32), view(new, n, f32), np.empty(n, f32)
    scratch = np.empty(SCRATCH, np.int64)
    clear(scratch)
    for i in range(n):
        a, b = f32(rest * old[i]), f32(momentum * x[i])
        moved[i] = f32(a + b)
        if not (is_normal(old[i]) and is_normal(x[i]) and is_normal(a) and is_normal(b) and is_normal(moved[i])):
            return False
        note(scratch, abs(np.float64(rest) * np.float64(old[i])))
        note(scratch, abs(np.float64(momentum) * np.float64(x[i])))
        # The exact sum, rounded to odd: toward zero it becomes what the exact one does.
        note(scratch, abs(sum_folded(np.float64(a), np.float64(b))))
    for i in range(n):
        old[i] = moved[i]
    if row != 0:
        settle_scratches(scratch.ctypes.data, 1, SCRATCH, row, stamp, step, False)
    return True


@device
def is_normal(x):
    """Whether a float32 is a normal number."""
    return LEAST_NORMAL <= u32(as_uint32(x) & MAGNITUDE32) < INF32


@device
def note(scratch, magnitude):
    """Count one result of this magnitude."""
    bits = as_int64(magnitude)
    scratch[COUNT] += 1
    scratch[LARGEST], scratch[SMALLEST] = max(scratch[LARGEST], bits), min(scratch[SMALLEST], bits)
