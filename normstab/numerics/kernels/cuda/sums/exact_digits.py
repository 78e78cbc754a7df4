"""Exact sums in digits of 30 bits: numbers taken apart into them, digits carried, and the one rounding to float64.

    a number       m 2^place                          place counts from the least bit there can be, `unit_of`
    its digits          [ d2 ][ d1 ][ d0 ]  0  0      each in its own place, 30 bits apart, with the number's sign
    their sums     [ s5 ][ s4 ][ s3 ][ s2 ][ s1 ]     int64: room for 2^33 addends, added in any order
    carried        [ t5 ][ t4 ][ t3 ][ t2 ][ t1 ]     from the right, each in -2^29 .. 2^29 - 1: the first that is not
                                                      zero has the sign of the whole, and 59 bits and more follow it

So a sum is known by its first three digits and the sign of what is below them. Nothing of float64 takes part but the
product of two float64.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.cuda_bits import INF64, MAGNITUDE64, SIGN64, as_float64, as_int64
from normstab.numerics.kernels.cuda.float32_bits import INF32, MAGNITUDE32

__all__ = [
    "DIGIT_BITS", "TOGETHER", "Kind", "added_digits", "bits_of_addend", "carried_digit", "is_wide", "no_digits",
    "number_of", "seen_of", "taken_apart", "unit_of",
]  # fmt: skip

# Bits of a digit; digits that one pass over the addends sums.
DIGIT_BITS, TOGETHER = 30, 4
BITS, MASK, HALF = tl.constexpr(DIGIT_BITS), tl.constexpr(2**30 - 1), tl.constexpr(2**29)
# What is noted of a row, as bits; an addend that is NaN counts as infinite with both signs.
NAN_OPERAND, INF_OPERAND, ABOVE, BELOW, PLUS, MINUS = (tl.constexpr(1 << i) for i in range(6))


class Kind:
    """What is summed and how the sum is rounded, as bits of one whole number that is compiled in."""

    WIDE, PRODUCT, TO_ODD, DOWN = (1 << i for i in range(4))


WIDE, PRODUCT, TO_ODD, DOWN = (tl.constexpr(x) for x in (Kind.WIDE, Kind.PRODUCT, Kind.TO_ODD, Kind.DOWN))


@triton.jit
def is_wide(KIND: tl.constexpr):
    """Whether addends are float64, or products of it."""
    return (KIND & WIDE) > 0


def bits_of_addend(kind: int) -> int:
    """Return how many bits the significand of an addend has."""
    return 53 if kind & Kind.WIDE else 48 if kind & Kind.PRODUCT else 24


def unit_of(kind: int) -> int:
    """Return the exponent of the least bit of all addends: of place 0."""
    return -1074 if kind & Kind.WIDE else -298 if kind & Kind.PRODUCT else -149


@triton.jit
def parts32(a):
    """Return the significand, int64, and the place of a float32 magnitude given by its bits; of a special one 0."""
    biased = a >> 23
    hidden = ((biased > 0) & (biased < 255)).to(tl.int64) << 23
    return tl.where(biased < 255, a & (2**23 - 1), 0).to(tl.int64) | hidden, tl.maximum(biased, 1) - 1


@triton.jit
def parts64(a):
    """Return the same of a float64 magnitude."""
    biased = (a >> 52).to(tl.int32)
    hidden = ((biased > 0) & (biased < 2047)).to(tl.int64) << 52
    return tl.where(biased < 2047, a & (2**52 - 1), 0) | hidden, tl.maximum(biased, 1) - 1


@triton.jit
def taken_apart(a, b, KIND: tl.constexpr):
    """Return (significand, place, sign: 0 or -1, is special, is NaN) of addends: numbers `a`, or products a b."""
    if (KIND & WIDE) > 0:
        x = a
        if (KIND & PRODUCT) > 0:
            x = as_int64(as_float64(a) * as_float64(b))
        r = x & MAGNITUDE64
        m, place = parts64(r)
        negative, is_special, is_nan = (x >> 63).to(tl.int32), r >= INF64, r > INF64
    else:
        p = a & MAGNITUDE32
        m, place = parts32(p)
        negative, is_special, is_nan = a >> 31, p >= INF32, p > INF32
        if (KIND & PRODUCT) > 0:
            q = b & MAGNITUDE32
            n, further = parts32(q)
            m, place, negative = m * n, place + further, negative ^ (b >> 31)
            is_nan = is_nan | (q > INF32) | ((p == INF32) & (q == 0)) | ((q == INF32) & (p == 0))
            is_special = is_special | (q >= INF32)
    return m, place, negative, is_special, is_nan


@triton.jit
def seen_of(a, b, negative, is_special, is_nan, KIND: tl.constexpr):
    """Return what is noted of addends: of their operands, what is not finite, and their signs."""
    if (KIND & WIDE) > 0:
        p, q, INFINITE = a & MAGNITUDE64, b & MAGNITUDE64, INF64
    else:
        p, q, INFINITE = a & MAGNITUDE32, b & MAGNITUDE32, INF32
    seen = tl.where((p > INFINITE) | (q > INFINITE), NAN_OPERAND, 0)
    seen |= tl.where((p == INFINITE) | (q == INFINITE), INF_OPERAND, 0)
    side = tl.where(is_nan, ABOVE | BELOW, tl.where(negative < 0, BELOW, ABOVE))
    return seen | tl.where(is_special, side, 0) | tl.where(negative < 0, MINUS, PLUS)


@triton.jit
def share(digits, first, place, KIND: tl.constexpr):
    """Return what numbers with digits from place `first` on have at `place`."""
    low, middle, high = digits
    found = tl.where(first == place, low, tl.where(first == place - 1, middle, 0))
    if (KIND & (WIDE | PRODUCT)) > 0:  # 24 bits lie in two digits at most
        found = tl.where(first == place - 2, high, found)
    return found.to(tl.int64)


@triton.jit
def added_digits(sums, m, position, negative, place, KIND: tl.constexpr):
    """Return the sums of four digits, from `place` on, with those of m 2^position added."""
    first, up = position // BITS, (position % BITS).to(tl.int64)
    low, middle, high = (
        ((m << up) & MASK).to(tl.int32),
        ((m >> (-up + BITS)) & MASK).to(tl.int32),
        m >> (-up + 2 * BITS),
    )
    digits = ((low ^ negative) - negative, (middle ^ negative) - negative, (high.to(tl.int32) ^ negative) - negative)
    a, b, c, d = sums
    a += share(digits, first, place, KIND)
    b += share(digits, first, place + 1, KIND)
    c += share(digits, first, place + 2, KIND)
    d += share(digits, first, place + 3, KIND)
    return a, b, c, d


@triton.jit
def no_digits(like):
    """Return the state before the first digit, all int64.

    The carry; the last two digits and what has the sign of those before them; the same of the highest digit that is
    not zero: it, the two below, what has the sign of the rest; and its place.
    """
    nothing = like * 0
    return nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing


@triton.jit
def carried_digit(state, total, place):
    """Return the state with the sum of the next digits taken in; digits come from the lowest place up."""
    carry, last, before, rest, top, second, third, below, at = state
    total += carry
    digit = ((total + HALF) & MASK) - HALF
    is_set = digit != 0
    top, second, third = tl.where(is_set, digit, top), tl.where(is_set, last, second), tl.where(is_set, before, third)
    below, at = tl.where(is_set, rest, below), tl.where(is_set, place, at)
    return (total - digit) >> BITS, digit, last, tl.where(before != 0, before, rest), top, second, third, below, at


@triton.jit
def raised(high, low, moved, PLACES: tl.constexpr):
    """Return both words so many places higher where bit 59 of `high` is not passed by that."""
    is_small = high < (1 << (60 - PLACES))
    high = tl.where(is_small, (high << PLACES) | (low >> (BITS - PLACES)), high)
    return high, tl.where(is_small, (low << PLACES) & MASK, low), moved + tl.where(is_small, PLACES, 0)


@triton.jit
def number_of(state, UNIT: tl.constexpr, KIND: tl.constexpr):
    """Return the float64 bits of all digits, rounded to odd or to nearest even; +0 of zero."""
    top, second, third, below, at = state[4], state[5], state[6], state[7], state[8]
    negative = top >> 63
    high = (((top << BITS) + second) ^ negative) - negative
    low, below = (third ^ negative) - negative, (below ^ negative) - negative
    low -= (below < 0).to(tl.int64)
    high += low >> BITS
    low &= MASK
    # Moved up until the highest bit is bit 59 of `high`, 31 places at most.
    moved = at * 0
    for i in tl.static_range(5):
        high, low, moved = raised(high, low, moved, 16 >> i)
    biased = at * BITS - moved + (UNIT + 1023 + 59 - BITS)
    # Below float64's normal numbers nothing is cut off: no addend has bits there.
    kept = (high >> 7) >> tl.minimum(tl.maximum(1 - biased, 0), 63)
    half, under = (high >> 6) & 1, ((high & 63) | low | below) != 0
    if (KIND & TO_ODD) > 0:
        kept |= ((half != 0) | under).to(tl.int64)
    else:
        kept += half & (under.to(tl.int64) | kept)
    # Beside its exponent the implicit bit of `kept` counts one, and so does the carry of a rounding.
    bits = ((tl.maximum(biased, 1) - 1) << 52) + kept
    bits = tl.where(biased > 2046, INF64, bits)
    return tl.where(top == 0, 0, bits | (negative & SIGN64))
