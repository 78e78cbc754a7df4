"""a b + c of float32 without float64: the exact result as `float32_exact` gives others, by whole numbers of 64 bits.

    a b    [ 1 ..... 48 bits ][ 14 zeros ]                     both with their leading bit at place 60 or 61
    c      [ 1 . 24 bits ][ 37 zeros ]
    moved         [ 1 . 24 bits ][ ..  1 ]                     the finer one; what falls off sets its last bit
    sum    [ 0 0 1 .............. ]                            its first 24 bits, 32 more, and "is there more"

Where bits fall off, the other number is so much larger that its leading bits do not cancel (as in Berkeley SoftFloat's
f32_mulAdd, whose order of steps this is).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.float32_bits import INF32, MAGNITUDE32, SIGN32, as_float32, as_int32
from normstab.numerics.kernels.cuda.float32_exact import assembled32, chosen32, parts32

__all__ = ["fused32"]


@triton.jit
def fused32(a, b, c, ROUNDS_DOWN: tl.constexpr):
    """Return (x, seen, tail, is_forced) of a b + c."""
    p, q, r = a & MAGNITUDE32, b & MAGNITUDE32, c & MAGNITUDE32
    m, e = parts32(p)
    n, f = parts32(q)
    o, g = parts32(r)
    # In units of 2^(e + f - 314), and of 2^(g - 187).
    product = (m.to(tl.int64) * n.to(tl.int64)) << 14
    added = tl.where(r == 0, 0, o).to(tl.int64) << 37
    apart = tl.where(r == 0, 0, e + f - g - 127)
    product, added = moved64(product, -apart), moved64(added, apart)
    total = tl.where((a ^ b) < 0, -product, product) + tl.where(c < 0, -added, added)
    negative = total >> 63
    size = (total ^ negative) - negative
    leading = length64(size) - 1
    unit = e + f - 314 - tl.minimum(apart, 0)
    raised = size << tl.minimum(62 - leading, 63).to(tl.int64)
    tail = ((raised >> 7) & 0xFFFFFFFF).to(tl.uint32)
    is_off = (raised & (2**39 - 1)) != 0
    found = assembled32((raised >> 39).to(tl.int32), tail, is_off, unit + leading + 127, (negative << 31).to(tl.int32))
    has_special = (p >= INF32) | (q >= INF32)
    # A product of 0, infinity or NaN is exact in float32, and so is its sum; a finite one adds nothing to infinity.
    is_plain = has_special | (p == 0) | (q == 0)
    bits = as_int32(as_float32(a) * as_float32(b) + as_float32(c))
    bits = tl.where(is_plain, bits, tl.where(r >= INF32, c, 0))
    if ROUNDS_DOWN:
        is_zero = tl.where(is_plain, ((bits & MAGNITUDE32) == 0) & ((a ^ b ^ c) < 0), (size == 0) & (r < INF32))
        bits = tl.where(is_zero, SIGN32, bits)
    return chosen32(is_plain | (r >= INF32) | (size == 0), bits, found)


@triton.jit
def moved64(whole, places):
    """Return a whole number moved right, its last bit set where anything fell off; as it is where `places` <= 0."""
    down = tl.minimum(tl.maximum(places, 0), 63).to(tl.int64)
    kept = whole >> down
    return kept | ((kept << down) != whole).to(tl.int64)


@triton.jit
def length64(whole):
    """Return how many bits a positive whole number has."""
    high = (whole >> 32).to(tl.uint32)
    word = tl.where(high != 0, high, (whole & 0xFFFFFFFF).to(tl.uint32))
    # The bit behind the leading one is cleared, so that the conversion rounds up to no power of two.
    exponent = as_int32((word & ~(word >> 1)).to(tl.float32)) >> 23
    return exponent - 126 + tl.where(high != 0, 32, 0)
