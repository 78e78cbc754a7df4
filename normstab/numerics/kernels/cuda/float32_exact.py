"""add, sub, mul, div and sqrt of float32 without float64: the exact result as its first 24 bits and "is there more".

    exact result   [ 1 ........ 23 bits ][ the rest: all zero, or not ]
    seen           [ 1 ........ 23 bits ]                                 cut off: rounded toward zero
    x              [ 1 ...... last bit 1]                                 where the rest is not zero: rounded to odd

A result is (x, seen, is_forced): `seen` the magnitude rounded to float32 toward zero; x the same with the last bit set
where anything fell out, with its sign; `is_forced` where the magnitude is 2^128 or more. Rounded again to at most 22
bits, x gives what the exact result gives, in every deterministic mode (Boldo and Melquiond 2008: two bits more than
the target suffice), so no operand need be in the format.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.cuda_kernels import CODES
from normstab.numerics.kernels.cuda.float32_bits import INF32, MAGNITUDE32, SIGN32, as_float32, as_int32

__all__ = ["WIDEST_TARGET", "classes32", "exact32", "product_and_rest32", "sum32"]

# Significand bits of the widest format that an odd 24-bit result may be rounded to.
WIDEST_TARGET = 22
ADD, SUB, MUL, DIV = (tl.constexpr(CODES[name]) for name in ("add", "sub", "mul", "div"))
DIGITS, HIDDEN, FRACTION = tl.constexpr(23), tl.constexpr(1 << 23), tl.constexpr((1 << 23) - 1)
ONE, HALF, TOP_HALF = tl.constexpr(127 << 23), tl.constexpr(126 << 23), tl.constexpr(254 << 23)
LARGEST_FINITE = tl.constexpr((255 << 23) - 1)


@triton.jit
def exact32(a, b, OPERATION: tl.constexpr, ROUNDS_DOWN: tl.constexpr):
    """Return (x, seen, is_forced) of an operation on float32 bits; a root takes `a` twice."""
    if OPERATION == ADD:
        found = sum32(a, b, ROUNDS_DOWN)
    elif OPERATION == SUB:
        found = sum32(a, b ^ SIGN32, ROUNDS_DOWN)  # by its bit, which keeps the sign of a zero
    elif OPERATION == MUL:
        found = product32(a, b)
    elif OPERATION == DIV:
        found = quotient32(a, b)
    else:
        found = root32(a)
    return found


@triton.jit
def classes32(a, b, OPERATION: tl.constexpr):
    """Return where an operand, given by its magnitude bits, is NaN; where one is infinite; where x / 0 is."""
    by_zero = a < 0
    if OPERATION == DIV:
        by_zero = (b == 0) & (a != 0) & (a < INF32)
    return (a > INF32) | (b > INF32), (a == INF32) | (b == INF32), by_zero


@triton.jit
def sum32(a, b, ROUNDS_DOWN: tl.constexpr):
    """Return a + b: Dekker's Fast2Sum gives the error exactly, whose sign says on which side the exact sum is."""
    p, q = a & MAGNITUDE32, b & MAGNITUDE32
    # Fast2Sum needs the greater operand first.
    big, small = as_float32(tl.where(p >= q, a, b)), as_float32(tl.where(p >= q, b, a))
    s = big + small
    bits = as_int32(s)
    r = bits & MAGNITUDE32
    error = as_int32(small - (s - big))
    is_off = (error & MAGNITUDE32) != 0
    # An error that points back to zero: the exact sum lies below s, and above its neighbour.
    seen = r - (is_off & ((error ^ bits) < 0)).to(tl.int32)
    # Beyond float32: whether the exact sum is below 2^128 is seen of its half, which is exact there.
    half = tl.full([], HALF, tl.int32)
    big, small = big * as_float32(half), small * as_float32(half)
    h = as_int32(big + small)
    rest = as_int32(small - (as_float32(h) - big))
    below = (((rest & MAGNITUDE32) != 0) & ((rest ^ h) < 0)).to(tl.int32)
    is_special = (p >= INF32) | (q >= INF32)
    is_over = (r >= INF32) & (is_special == 0)
    is_forced = is_over & ((h & MAGNITUDE32) - below >= TOP_HALF)
    # Truncated, what overflows is the largest finite number;
    # as it is not exact, its last bit is set in any case.
    seen = tl.where(is_over, LARGEST_FINITE, seen)
    x = (seen | (is_off | is_over).to(tl.int32)) | (bits & SIGN32)
    x = tl.where(is_special, bits, x)
    if ROUNDS_DOWN:
        x = tl.where((r == 0) & ((a ^ b) < 0), SIGN32, x)
    return x, seen, is_forced


@triton.jit
def parts32(a):
    """Return the significand of a finite nonzero magnitude, 2^23 at least, and its biased exponent, which may be < 1.

    A subnormal is a whole number, whose conversion to float32 is exact and normal.
    """
    as_number = as_int32(a.to(tl.float32))
    is_small = a < HIDDEN
    normal = tl.where(is_small, as_number, a)
    return (normal & FRACTION) | HIDDEN, (normal >> DIGITS) - tl.where(is_small, 149, 0)


@triton.jit
def assembled32(m, is_off, e, sign):
    """Return (x, seen, is_forced) of m 2^(e - 150) and more where `is_off`, m having 24 bits."""
    # Below the normal range the significand is shifted to whole numbers of 2^-149.
    lost = tl.minimum(tl.maximum(1 - e, 0), 31)
    kept = m >> lost
    is_off = is_off | ((kept << lost) != m)
    is_forced = e > 254
    seen = tl.where(e > 0, (e << DIGITS) + (m & FRACTION), kept)
    seen = tl.where(is_forced, LARGEST_FINITE, seen)
    return (seen | is_off.to(tl.int32)) | sign, seen, is_forced


@triton.jit
def chosen32(is_special, bits, x, seen, is_forced):
    """Return the result of float32 itself where it is exact or not a number, else what was assembled."""
    return tl.where(is_special, bits, x), seen, is_forced & (is_special == 0)


@triton.jit
def product32(a, b):
    """Return a b as `exact32` does."""
    x, seen, is_forced, _ = product_and_rest32(a, b)
    return x, seen, is_forced


@triton.jit
def product_and_rest32(a, b):
    """Return a b, and whether it has more than 24 bits: 48 of the significands' product, in two words that overlap."""
    p, q = a & MAGNITUDE32, b & MAGNITUDE32
    m, e = parts32(p)
    n, f = parts32(q)
    first, second = m.to(tl.uint32, bitcast=True), n.to(tl.uint32, bitcast=True)
    high, low = tl.umulhi(first << 8, second << 8), first * second  # the product over 2^16, and modulo 2^32
    top = high >> 31
    # The bits of the product below the upper 24: of `high`
    # the lowest 7 or 8, of `low` those that `high` has not.
    rest = (high & ((tl.full([], 128, tl.uint32) << top) - 1)) | (low & 0xFFFF)
    significand = (high >> (top + 7)).to(tl.int32, bitcast=True)
    exponent = e + f - 127 + top.to(tl.int32, bitcast=True)
    x, seen, is_forced = assembled32(significand, rest != 0, exponent, (a ^ b) & SIGN32)
    lost = tl.minimum(tl.maximum(1 - exponent, 0), 31)
    is_special = (p >= INF32) | (q >= INF32) | (p == 0) | (q == 0)
    is_off = ((rest != 0) | (((significand >> lost) << lost) != significand) | is_forced) & (is_special == 0)
    x, seen, is_forced = chosen32(is_special, as_int32(as_float32(a) * as_float32(b)), x, seen, is_forced)
    return x, seen, is_forced, is_off


@triton.jit
def quotient32(a, b):
    """Return a / b from the quotient of the significands, rounded to nearest, and the sign of its remainder.

    The remainder is below 2^23, so that arithmetic modulo 2^32 shows its sign.
    """
    p, q = a & MAGNITUDE32, b & MAGNITUDE32
    m, e = parts32(p)
    n, f = parts32(q)
    is_special = (p >= INF32) | (q >= INF32) | (p == 0) | (q == 0)
    # Both between 1 and 2, so that the division neither
    # overflows nor meets a subnormal, which may be flushed.
    above = as_float32(tl.where(is_special, a, (m & FRACTION) | ONE))
    below = as_float32(tl.where(is_special, b, (n & FRACTION) | ONE))
    bits = as_int32(tl.div_rn(above, below))
    # 23 places, or 24 where the quotient is below 1: it is then twice as fine.
    places = tl.minimum(tl.maximum(150 - (bits >> DIGITS), 0), 31)
    rest = (m << places) - ((bits & FRACTION) | HIDDEN) * n
    seen = bits - (rest < 0).to(tl.int32)
    x, seen, is_forced = assembled32((seen & FRACTION) | HIDDEN, rest != 0, (seen >> DIGITS) + e - f, (a ^ b) & SIGN32)
    return chosen32(is_special, bits, x, seen, is_forced)


@triton.jit
def root32(a):
    """Return the root of a, from that of its significand, which has one bit more where the exponent is odd."""
    p = a & MAGNITUDE32
    m, e = parts32(p)
    is_special = (p >= INF32) | (a <= 0)
    odd = (e + 1) & 1
    under = tl.where(is_special, a, (m & FRACTION) + ONE + (odd << DIGITS))
    bits = as_int32(tl.sqrt_rn(as_float32(under)))
    s = (bits & FRACTION) | HIDDEN
    # Modulo 2^32, as of a division: the remainder of a nearest root is at most the root.
    rest = (m << (odd + 23)) - s * s
    seen = bits - (rest < 0).to(tl.int32)
    half = (e - 127 - odd) >> 1
    x, seen, is_forced = assembled32((seen & FRACTION) | HIDDEN, rest != 0, half + 127, a & 0)
    return chosen32(is_special, bits, x, seen, is_forced)
