"""The uniform numbers of noise, one block of Philox for four of them: the bits of `noise.perturbation`'s own."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import device, kernel, view
from normstab.numerics.kernels.cpu.philox_cpu import LOW, philox_block

__all__ = ["fill_uniform"]

f32, i64, u64 = np.float32, np.int64, np.uint64
DROPPED = u64(8)  # of 32 bits, so that 24 are left
CENTRE, UNIT = i64(1 - 2**24), 2.0**-25


@kernel
def fill_uniform(address, n, word, step):  # pragma: no cover - compiled
    """Fill n float32 at `address` with (2 U + 1 - 2^24) / 2^25, U the top 24 bits of the field of each index."""
    out = view(address, n, f32)
    whole = n // 4
    for b in range(whole):
        c0, c1, c2, c3 = philox_block(word, step, b)
        out[4 * b], out[4 * b + 1] = centred(c0), centred(c1)
        out[4 * b + 2], out[4 * b + 3] = centred(c2), centred(c3)
    c0, c1, c2, c3 = philox_block(word, step, whole)
    for i in range(4 * whole, n):
        rest = i - 4 * whole
        out[i] = centred(c0 if rest == 0 else (c1 if rest == 1 else c2))


@device
def centred(field):
    """Return the number of one word, of which the low half counts; exact in float32."""
    odd = i64(2) * i64((field & LOW) >> DROPPED) + CENTRE
    return f32(np.float64(odd) * UNIT)
