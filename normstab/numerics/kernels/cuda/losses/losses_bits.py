"""What one addition lost, told by the bits of its operands and its result: `readable.losses` is the definition.

    |operands|, the larger     1xxxxx 2^e
    |result|                   000001 2^(e - 5)      below 2^(e - half + 1): that many leading bits cancelled

Bits of one width; importing it needs Triton.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.cuda_bits import INF64, MAGNITUDE64, as_int64
from normstab.numerics.kernels.cuda.float32_bits import INF32, MAGNITUDE32, as_int32

__all__ = ["lost32", "lost64"]


@triton.jit
def lost_of(a, b, y, p, q, r, far, INFINITE: tl.constexpr):
    """Return 1 where y = a + b absorbed an operand, and 2^10 where it cancelled; p, q and r are their magnitudes.

    Cancelled is a result whose magnitude is below `far`.
    """
    is_left, is_right = (p != 0) & (p < INFINITE), (q != 0) & (q < INFINITE)
    # Equal as numbers: zeros of both signs are, and a NaN is not.
    is_a, is_b = ((y == a) | ((r | p) == 0)) & (p <= INFINITE), ((y == b) | ((r | q) == 0)) & (q <= INFINITE)
    absorbed = (is_a & is_right) | (is_b & is_left)
    cancelled = is_left & is_right & (r < INFINITE) & (r < far)
    return absorbed.to(tl.int32) | (cancelled.to(tl.int32) << 10)


@triton.jit
def lost32(a, b, y, half):
    """Return what the additions a + b, rounded to y, lost, all float32 bits; `half` is ceil(p / 2)."""
    p, q, r = a & MAGNITUDE32, b & MAGNITUDE32, y & MAGNITUDE32
    top = tl.maximum(p, q)
    # A subnormal is a whole number, whose conversion to float32 is exact.
    biased = tl.where(top < (1 << 23), (as_int32(top.to(tl.float32)) >> 23) - 149, top >> 23)
    biased += 1 - half
    # Below float32's least number only zero is.
    tiny = (top * 0 + 1) << tl.minimum(tl.maximum(biased + 22, 0), 30)
    return lost_of(a, b, y, p, q, r, tl.where(biased > 0, tl.maximum(biased, 0) << 23, tiny), INF32)


@triton.jit
def lost64(a, b, y, half):
    """Return the same of float64 bits."""
    p, q, r = a & MAGNITUDE64, b & MAGNITUDE64, y & MAGNITUDE64
    top = tl.maximum(p, q)
    biased = tl.where(top < (1 << 52), (as_int64(top.to(tl.float64)) >> 52) - 1074, top >> 52)
    biased += 1 - half
    tiny = (top * 0 + 1) << tl.minimum(tl.maximum(biased + 51, 0), 62)
    return lost_of(a, b, y, p, q, r, tl.where(biased > 0, tl.maximum(biased, 0) << 52, tiny), INF64)
