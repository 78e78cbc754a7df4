"""Results of float64 rounded to odd, by their exact errors: one more rounding to fewer bits is then a single one.

Rounding twice goes wrong where the first result is a tie of the second, and the exact number was not. An inexact
result whose last bit is set is never a tie of a format with two bits less: that bit says "there is more".

    float64, last bit    even         odd         even           the exact result anywhere between two even ones
    exact result           |---- x ----|---- x ----|             becomes the odd one; an even one only if it is exact

Source: Boldo and Melquiond 2008. The readable form, and where it holds, is readable.wide_operands.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import INF64, MAGNITUDE64
from normstab.numerics.kernels.cpu.compile import as_float64, as_int64, device

__all__ = ["fma_to_odd", "folded", "product_error", "sum_to_odd"]


# Of 53 bits into 26 and 27. Source: Veltkamp 1968; Dekker 1971.
SPLIT = 2.0**27 + 1


@device
def product_error(a, b, p):
    """Return a b - p, exactly. Source: Dekker 1971; Veltkamp's splitting."""
    # Halves so short that their products are exact; taken from the greatest on, so are the differences.
    lifted_a, lifted_b = SPLIT * a, SPLIT * b
    a_high, b_high = lifted_a - (lifted_a - a), lifted_b - (lifted_b - b)
    a_low, b_low = a - a_high, b - b_high
    return ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


@device
def folded(s, error):
    """Return s rounded to odd, given its exact error."""
    bits = as_int64(s)
    # Where the last bit is odd nothing moves: the neighbour would be even.
    # An error that is NaN is no error.
    is_off = ((error > 0) | (error < 0)) & ((bits & MAGNITUDE64) < INF64) & ((bits & 1) == 0)
    # Bits order as magnitudes: 1 more is farther from zero, which is up for a positive number.
    away = 1 if (error > 0) == (bits >= 0) else -1
    return as_float64(bits + away if is_off else bits)


@device
def fma_to_odd(a, b, c, rounds_down):
    """Return a b + c rounded to odd. Source: Boldo and Melquiond 2008."""
    p = a * b
    error = product_error(a, b, p)
    # A product that is exact leaves an ordinary sum; infinite or NaN, no errors are to be had.
    if not (((error > 0) | (error < 0)) & (abs(error) < np.inf) & (abs(c) < np.inf)):
        return sum_to_odd(p, c, True, rounds_down)
    # a b + c is p + (error + c): two exact sums leave v, and
    # what both lost is rounded to odd before it joins v.
    t = c + error
    error_seen = t - c
    t_error = (c - (t - error_seen)) + (error - error_seen)
    v = p + t
    t_seen = v - p
    v_error = (p - (v - t_seen)) + (t - t_seen)
    return sum_to_odd(v, sum_to_odd(t_error, v_error, True, False), True, rounds_down)


@device
def sum_to_odd(a, b, folds, rounds_down):
    """Return a + b in float64, rounded to odd where it `folds`; an exact zero of unlike signs is -0 downwards.

    Source: Knuth's TwoSum; Boldo and Melquiond 2008 for round-to-odd; IEEE 754-2019, 6.3, for the zero.
    """
    s = a + b
    b_seen = s - a
    error = (a - (s - b_seen)) + (b - b_seen)
    bits = as_int64(s)
    is_off = ((error > 0) | (error < 0)) & ((bits & MAGNITUDE64) < INF64) & ((bits & 1) == 0) & folds
    away = 1 if (error > 0) == (bits >= 0) else -1
    bits += away if is_off else 0
    is_signed_zero = rounds_down & (s == 0) & ((as_int64(a) ^ as_int64(b)) < 0)
    return as_float64(-(2**63) if is_signed_zero else bits)
