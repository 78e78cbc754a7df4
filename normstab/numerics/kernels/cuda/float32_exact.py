"""add, sub, mul, div and sqrt of float32 without float64: the exact result as its first bits and "is there more".

    exact result   [ 1 ........ 23 bits ][ 32 bits ][ the rest: all zero, or not ]
    seen           [ 1 ........ 23 bits ]                                 cut off: rounded toward zero
    x              [ 1 ...... last bit 1]                                 where more follows: rounded to odd
    tail                                 [ 32 bits ]                      of a quotient the first 8, of a root 6

A result is (x, seen, tail, is_forced): `seen` the magnitude rounded to float32 toward zero; x the same with the last
bit set where anything fell out, with its sign; `is_forced` where the magnitude is 2^128 or more. `rounded32` says which
of them a mode asks.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.cuda_kernels import CODES
from normstab.numerics.kernels.cuda.float32_bits import (
    INF32,
    MAGNITUDE32,
    SIGN32,
    aligned32,
    as_float32,
    as_int32,
    finished32,
    unbounded32,
    unsigned,
)
from normstab.numerics.kernels.shortcut_table import GENERIC

__all__ = [
    "WIDEST_DRAWN",
    "WIDEST_TARGET",
    "assembled32",
    "chosen32",
    "classes32",
    "exact32",
    "parts32",
    "product_and_rest32",
    "rounded32",
    "sum32",
]

# Significand bits of the widest format that an odd 24-bit result may be rounded to.
WIDEST_TARGET = 22
# Bits of a result that stochastic rounding may ask: those of the target and the random ones. The result is float64's by
# definition: a sum rounded to odd in 53 bits; a quotient or a root rounded to nearest, which does not carry into the
# bits asked. An inexact quotient lies more than 2^-(23 + k) below a number of k bits, and float64 within 2^-53 of it;
# of roots, all were tried. One bit less, for the least number of a fixed point has one bit more.
WIDEST_DRAWN = {"add": 51, "sub": 51, "mul": 54, "div": 29, "sqrt": 29, "fma": 51}
ADD, SUB, MUL, DIV = (tl.constexpr(CODES[name]) for name in ("add", "sub", "mul", "div"))
DIGITS, HIDDEN, FRACTION = tl.constexpr(23), tl.constexpr(1 << 23), tl.constexpr((1 << 23) - 1)
GENERIC_ = tl.constexpr(GENERIC)
ONE, HALF, TOP_HALF = tl.constexpr(127 << 23), tl.constexpr(126 << 23), tl.constexpr(254 << 23)
LARGEST_FINITE = tl.constexpr((255 << 23) - 1)


@triton.jit
def exact32(a, b, OPERATION: tl.constexpr, ROUNDS_DOWN: tl.constexpr):
    """Return (x, seen, tail, is_forced) of an operation on float32 bits; a root takes `a` twice."""
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
def rounded32(found, drawn, rule, STYLE: tl.constexpr, DRAWS: tl.constexpr):
    """Return the bits of a result, as exact32 gives it, rounded once; and whether it is finite and overflows.

    To at most 22 bits, in every deterministic mode, x gives what the exact result gives (Boldo and Melquiond 2008: two
    bits more than the target suffice), so that no operand need be in the format.
    """
    x, seen, tail, is_forced = found
    r = seen
    # Random bits are compared with what is cut off, where a bit that says "more follows" would be taken for its value.
    if DRAWS and STYLE == GENERIC_:
        r = aligned32(seen, tail, x >> 31, drawn, rule)
    elif DRAWS:
        r = unbounded32(seen | (x & SIGN32), drawn, rule, STYLE)
    else:
        r = unbounded32(x, drawn, rule, STYLE)
    return finished32(x, r, is_forced, rule)


@triton.jit
def classes32(a, b, c, OPERATION: tl.constexpr):
    """Return where an operand, given by its magnitude bits, is NaN; where one is infinite; where x / 0 is."""
    by_zero = a < 0
    if OPERATION == DIV:
        by_zero = (b == 0) & (a != 0) & (a < INF32)
    has_nan, has_inf = (a > INF32) | (b > INF32) | (c > INF32), (a == INF32) | (b == INF32) | (c == INF32)
    return has_nan, has_inf, by_zero


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
    halved = (h & MAGNITUDE32) - (((rest & MAGNITUDE32) != 0) & ((rest ^ h) < 0)).to(tl.int32)
    is_special = (p >= INF32) | (q >= INF32)
    is_over = (r >= INF32) & (is_special == 0)
    is_forced = is_over & (halved >= TOP_HALF)
    tail = tail_of_sum(tl.where(is_over, halved, seen), tl.where(is_over, rest, error), bits)
    # Truncated, what overflows is the largest finite number;
    # as it is not exact, its last bit is set in any case.
    seen = tl.where(is_over, LARGEST_FINITE, seen)
    x = (seen | (is_off | is_over).to(tl.int32)) | (bits & SIGN32)
    x = tl.where(is_special, bits, x)
    if ROUNDS_DOWN:
        x = tl.where((r == 0) & ((a ^ b) < 0), SIGN32, x)
    return x, seen, tail, is_forced


@triton.jit
def tail_of_sum(seen, error, bits):
    """Return the 32 bits behind `seen`, given what the rounded sum, of the sign of `bits`, lacks: less than its ulp.

    What lies below them is cut off; towards zero that is one unit more of what is taken away.
    """
    m, e = parts32(error & MAGNITUDE32)
    up = e - tl.maximum(seen >> DIGITS, 1) + 32  # m 2^up in units of the tail
    size = unsigned(m) << unsigned(tl.minimum(tl.maximum(up, 0), 8))
    down = unsigned(tl.minimum(tl.maximum(-up, 0), 31))
    whole = size >> down
    more = ((whole << down) != size).to(tl.uint32)
    tail = tl.where((error ^ bits) < 0, 0 - whole - more, whole)
    return tl.where((error & MAGNITUDE32) == 0, 0, tail).to(tl.uint32)


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
def assembled32(m, tail, is_off, e, sign):
    """Return (x, seen, tail, is_forced) of 24 bits m 2^(e - 150), the tail behind them, and more where `is_off`."""
    # Below the normal range the significand is shifted to whole numbers of 2^-149.
    lost = tl.minimum(tl.maximum(1 - e, 0), 31)
    kept = m >> lost
    is_off = is_off | ((kept << lost) != m)
    # In two shifts each: by 32 places there is none.
    moved = ((unsigned(m) << 1) << unsigned(31 - lost)) | (tail >> unsigned(lost))
    tail = moved >> unsigned(tl.minimum(tl.maximum(-30 - e, 0), 31))
    is_forced = e > 254
    seen = tl.where(e > 0, (e << DIGITS) + (m & FRACTION), kept)
    seen = tl.where(is_forced, LARGEST_FINITE, seen)
    return (seen | is_off.to(tl.int32)) | sign, seen, tail, is_forced


@triton.jit
def chosen32(is_special, bits, found):
    """Return the result of float32 itself where it is exact or not a number, else what was assembled."""
    x, seen, tail, is_forced = found
    x, seen = tl.where(is_special, bits, x), tl.where(is_special, bits & MAGNITUDE32, seen)
    return x, seen, tl.where(is_special, 0, tail).to(tl.uint32), is_forced & (is_special == 0)


@triton.jit
def product32(a, b):
    """Return a b as `exact32` does."""
    found, _ = product_and_rest32(a, b)
    return found


@triton.jit
def product_and_rest32(a, b):
    """Return a b as `exact32`, and whether it has more than 24 bits: 48 of the product, in two words that overlap."""
    p, q = a & MAGNITUDE32, b & MAGNITUDE32
    m, e = parts32(p)
    n, f = parts32(q)
    first, second = m.to(tl.uint32, bitcast=True), n.to(tl.uint32, bitcast=True)
    high, low = tl.umulhi(first << 8, second << 8), first * second  # the product over 2^16, and modulo 2^32
    top = high >> 31
    # Below the upper 24 bits of the product are 23 or 24, all of them in `low`.
    tail = low << (9 - top)
    significand = (high >> (top + 7)).to(tl.int32, bitcast=True)
    exponent = e + f - 127 + top.to(tl.int32, bitcast=True)
    found = assembled32(significand, tail, tail != 0, exponent, (a ^ b) & SIGN32)
    lost = tl.minimum(tl.maximum(1 - exponent, 0), 31)
    is_special = (p >= INF32) | (q >= INF32) | (p == 0) | (q == 0)
    is_off = ((tail != 0) | (((significand >> lost) << lost) != significand) | found[3]) & (is_special == 0)
    return chosen32(is_special, as_int32(as_float32(a) * as_float32(b)), found), is_off


@triton.jit
def quotient32(a, b):
    """Return a / b from the quotient of the significands, rounded to nearest, and its remainder.

    The remainder is below 2^24, so that arithmetic modulo 2^32 shows its sign, and 8 bits more of the quotient.
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
    rest = tl.where(rest < 0, rest + n, rest)
    tail = ((unsigned(rest) << 8) // unsigned(n)) << 24
    found = assembled32(
        (seen & FRACTION) | HIDDEN, tail, rest != 0, (seen >> DIGITS) + e - f, (a ^ b) & SIGN32
    )  # fmt: skip
    return chosen32(is_special, bits, found)


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
    # Modulo 2^32, as of a division: the remainder of a nearest root is at most the root, of one cut off twice that.
    rest = (m << (odd + 23)) - s * s
    is_above = (rest < 0).to(tl.int32)
    rest = tl.where(rest < 0, rest + 2 * s - 1, rest)
    s, seen = s - is_above, bits - is_above
    # Six bits more: t of (64 s + t)^2 <= 4096 (s^2 + rest), which the quotient exceeds by 1 at most.
    t = (rest << 5) // s
    t -= (((rest << 12) - t * ((s << 7) + t)) < 0).to(tl.int32)
    half = (e - 127 - odd) >> 1
    found = assembled32((seen & FRACTION) | HIDDEN, unsigned(t) << 26, rest != 0, half + 127, a & 0)
    return chosen32(is_special, bits, found)
