"""What additions lose, counted in compiled loops: `readable.losses` is the definition, and the oracle of this."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import INF64, MAGNITUDE64
from normstab.numerics.kernels.cpu.blocks import BLOCK
from normstab.numerics.kernels.cpu.compile import as_int64, device, kernel, outside, view
from normstab.numerics.kernels.cpu.cpu_pointwise import read_run

__all__ = ["lose_chunk", "lose_line"]

BELOW_ALL = -(1 << 15)  # an exponent for zero, which has none


@device
def exponent_of(magnitude):
    """Return the biased exponent of a magnitude's bits as if float64 had no least one; BELOW_ALL of zero."""
    e = magnitude >> 52
    if e != 0:
        return e
    # A subnormal is a whole number of quanta, which are 2^-1074.
    return (as_int64(np.float64(magnitude)) >> 52) - 1074 if magnitude != 0 else np.int64(BELOW_ALL)


@outside
def lose_line(a, b, y, n, losses):  # pragma: no cover - compiled
    """Count, of n sums y = a + b rounded, those absorbed in losses[1], cancelled in losses[2]; [0] is half of p."""
    far, absorbed, cancelled = losses[0], np.int64(0), np.int64(0)
    for i in range(n):
        left, right, result = as_int64(a[i]) & MAGNITUDE64, as_int64(b[i]) & MAGNITUDE64, as_int64(y[i]) & MAGNITUDE64
        is_left, is_right = (left != 0) & (left < INF64), (right != 0) & (right < INF64)
        absorbed += np.int64(((y[i] == a[i]) & is_right) | ((y[i] == b[i]) & is_left))
        if is_left & is_right & (result < INF64):
            cancelled += np.int64(exponent_of(result) <= exponent_of(max(left, right)) - far)
    losses[1] += absorbed
    losses[2] += cancelled


@kernel
def lose_chunk(a, b, y, kinds, sign, start, n, losses):  # pragma: no cover - compiled
    """Count the losses of n sums of dense operands, from element `start` on; b times `sign` is what was added.

    `kinds` are the dtypes of a, b and y, one octal digit each; `losses` is the address of those of `lose_line`.
    """
    left, right, result = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    found = view(losses, 3, np.int64)
    for first in range(start, start + n, BLOCK):
        m = min(BLOCK, start + n - first)
        read_run(left, a, kinds >> 6, first, 1, m)
        read_run(right, b, kinds >> 3 & 7, first, 1, m)
        read_run(result, y, kinds & 7, first, 1, m)
        for i in range(m):
            right[i] *= sign
        lose_line(left, right, result, m, found)
