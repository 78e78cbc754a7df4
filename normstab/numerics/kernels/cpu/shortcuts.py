"""Shortcuts of rounding for float32 lanes, each for some formats and modes: the same bits, several times faster.

    bits of a magnitude   [ exponent | bits that stay | bits that go ]
    INTEGER, GRID         + an addend at the bits that go, then those are cleared; a carry may raise the exponent
    MAGIC                 a + c - c, where a number of c's binade has no room for the bits that go
    SPREAD, WIDE          as GRID; subnormals as whole quanta with 16, or 32, bits of fraction
    STEPPED               as MAGIC, then a step to the neighbour where a table of situations says so

Which holds where, and why the bits are the same, is in shortcut_table. Device functions only.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import INF32, MAGNITUDE32, SIGN32, U0, U1, U23, U31
from normstab.numerics.kernels.cpu.blocks import add_block, add_extremes32
from normstab.numerics.kernels.cpu.compile import as_float32, as_uint32, device, left32, outside, right32
from normstab.numerics.kernels.shortcut_table import INTEGER, MAGIC

__all__ = [
    "grid_magnitude32",
    "integer_block32",
    "magic_block32",
    "nearest_bits32",
    "nearest_finish32",
    "nearest_magnitude32",
    "spread_magnitude32",
    "stepped_magnitude32",
    "wide_magnitude32",
    "wrapped_finish32",
]

u32, i32 = np.uint32, np.int32
U2, U4, U8, U16 = u32(2), u32(4), u32(8), u32(16)
# From the exponent of c down to that of its quantum, and of half of it.
QUANTUM_PLACES, HALF_PLACES = u32(23 << 23), u32(24 << 23)
ONE, HALF, WORD = np.float32(1), np.float32(0.5), np.float32(2.0**32)


@device
def nearest_magnitude32(a, style, rule):
    """Return magnitude32 of nearest-even by the shortcut `style`, MAGIC or INTEGER."""
    if style == MAGIC:
        # From c on the last bit of float32 is the format's quantum:
        # the addition rounds, and what is taken away again is exact.
        # Between the bounds c is finite, and below emin the quantum stays that of emin.
        lifted = u32(min(max(u32(a & INF32), rule.magic_low), rule.magic_high) + rule.magic_lift)
        c = as_float32(lifted)
        return as_uint32(np.float32(np.float32(as_float32(a) + c) - c))
    # Half a quantum less 1, and 1 where the last bit that stays is odd: ties to even.
    ulp = left32(U1, rule.shift)
    odd = u32(right32(a, rule.shift) & U1)
    return u32(u32(u32(a + u32(right32(ulp, U1) - U1)) + odd) & u32(~u32(ulp - U1)))


@device
def nearest_bits32(x, style, rule):
    """Return the bits of cast(x) by a shortcut."""
    a = u32(x & MAGNITUDE32)
    r = nearest_magnitude32(a, style, rule)
    return nearest_finish32(r, a, u32(x & SIGN32), rule)


@device
def nearest_finish32(r, a, sign, rule):
    """Return finish32 where ties go to even, so that an infinity becomes what an overflow becomes."""
    y = u32(rule.over_positive | u32(sign & rule.over_negative)) if r > rule.limit_positive else u32(r | sign)
    return rule.nan_set if a > INF32 else y


@outside
def magic_block32(x, y, n, rule, counts):
    """Round a block to nearest-even by the shortcut MAGIC, and count it."""
    nearest_block32(x, y, n, MAGIC, rule, counts)


@outside
def integer_block32(x, y, n, rule, counts):
    """Round a block to nearest-even by the shortcut INTEGER, and count it."""
    nearest_block32(x, y, n, INTEGER, rule, counts)


@device
def nearest_block32(x, y, n, style, rule, counts):
    """Round a block to nearest-even by a shortcut known when compiled, and count it."""
    over, zeros, zeros_in, small, moved, nans, top, bottom = U0, U0, U0, U0, U0, U0, U0, ~U0
    for i in range(n):
        a = u32(x[i] & MAGNITUDE32)
        r = nearest_magnitude32(a, style, rule)
        y[i] = nearest_finish32(r, a, u32(x[i] & SIGN32), rule)
        is_over = (r > rule.limit_positive) & (a < INF32)
        over = u32(over + u32(is_over))
        zeros = u32(zeros + u32(r == U0))
        zeros_in = u32(zeros_in + u32(a == U0))
        small = u32(small + u32(r < rule.least_normal))
        moved = u32(moved + u32(is_over | ((r != a) & (a < INF32))))
        top = max(top, a)
        bottom = min(bottom, u32(a - U1))  # zero wraps to the greatest
    nans = over if rule.over_positive > INF32 else U0
    add_block(counts, n, over, u32(zeros - zeros_in), u32(small - zeros), moved, nans, rule.saturates)
    add_extremes32(x, y, n, rule, counts, top, bottom)


@device
def grid_magnitude32(a, negative, drawn, rule):
    """Return magnitude32 for all modes where the discarded bits lie at one place."""
    # What the mode adds to the bits that go, in units of the
    # last one; random bits come down from 2^32 to their place.
    ulp = left32(U1, rule.shift)
    odd = rule.grid_odd if right32(a, rule.shift) & U1 else U0
    noise = right32(u32(drawn & rule.drawn), rule.grid_down)
    addend = u32(u32(u32(rule.grid_add + odd) + u32(rule.grid_negative & negative)) + noise)
    return u32(u32(a + addend) & u32(~u32(ulp - U1)))


@device
def spread_magnitude32(a, drawn, rule):
    """Return magnitude32 of stochastic rounding with at most 16 bits: subnormals as whole numbers of quanta."""
    ulp = left32(U1, rule.shift)
    noise = u32(drawn & rule.drawn)
    normal = u32(u32(a + right32(noise, rule.grid_down)) & u32(~u32(ulp - U1)))
    # Times a power of two, to a whole number: quanta from bit 16 on, their fraction below.
    # What truncation drops, 16 random bits or fewer do not see.
    scaled = u32(i32(as_float32(min(a, rule.least_normal)) * as_float32(rule.spread_scale)))
    quanta = right32(u32(u32(scaled & rule.spread_kept) + right32(noise, U16)), U16)
    small = as_uint32(np.float32(np.float32(i32(quanta)) * as_float32(rule.spread_quantum)))
    return small if a < rule.least_normal else normal


@device
def stepped_magnitude32(a, negative, drawn, rule):
    """Return magnitude32 of a mode that draws nothing: the nearest number, or its neighbour where the table says so.

    The nearest number and its neighbours are at most 2^24 quanta, so that all here is exact. Whether a result is exact
    is asked of bits, for flush-to-zero would take a subnormal a for zero; the nearest number is below that in any case.
    """
    lifted = u32(min(max(u32(a & INF32), rule.magic_low), rule.magic_high) + rule.magic_lift)
    x, c = as_float32(a), as_float32(lifted)
    t = np.float32(x + c)
    nearest = np.float32(t - c)
    rest = as_uint32(np.float32(x - nearest))
    above = right32(rest, U31)
    tie = U2 if u32(rest & MAGNITUDE32) == u32(lifted - HALF_PLACES) else U0
    even = u32(U4 - left32(u32(as_uint32(t) & U1), U2))
    situation = u32(u32(u32(above + tie) + even) + u32(negative & U8))
    leaves = u32(u32(-i32(u32(right32(rule.steps, situation) & U1))) if as_uint32(nearest) != a else U0)
    quantum = u32(u32(lifted - QUANTUM_PLACES) | left32(above, U31))
    r = as_uint32(np.float32(nearest + as_float32(u32(quantum & leaves))))
    r = a if i32(a) >= i32(lifted) else r  # from 2^23 quanta on all numbers are whole quanta
    return U0 if r < rule.flushed_below else r


@device
def wide_magnitude32(a, negative, drawn, rule):
    """Return magnitude32 of stochastic rounding with at most 32 bits: the scaled as whole quanta and a fraction."""
    ulp = left32(U1, rule.shift)
    noise = u32(drawn & rule.drawn)
    normal = u32(u32(a + right32(right32(noise, rule.grid_down), U1)) & u32(~u32(ulp - U1)))
    scaled = np.float32(as_float32(min(a, rule.spread_below)) * as_float32(rule.spread_scale))
    whole = i32(scaled)
    rest = np.float32(scaled - np.float32(whole))
    # Of an upper half, less one, since a conversion knows numbers below 2^31 only: the same bits of a word.
    rest = np.float32(rest - ONE) if rest >= HALF else rest
    fraction = u32(u32(i32(np.float32(rest * WORD))) & rule.fraction_kept)
    # The carry of fraction + noise, by halves as in magnitude32.
    halves = u32(u32(right32(fraction, U1) + right32(noise, U1)) + u32(u32(fraction & noise) & U1))
    quanta = np.float32(i32(u32(u32(whole) + right32(halves, U31))))
    small = as_uint32(np.float32(quanta * as_float32(rule.spread_quantum)))
    r = small if a < rule.spread_below else normal
    return U0 if r < rule.flushed_below else r


@device
def wrapped_finish32(r, a, negative, rule):
    """Return finish32 of a fixed-point format that wraps: k 2^-F with k modulo 2^(I+F+1) in two's complement."""
    m = u32(u32(r & u32(0x7FFFFF)) | u32(0x800000))
    up = i32(right32(r, U23)) - i32(150) + i32(rule.fraction_bits)
    k = left32(m, u32(min(max(up, i32(0)), i32(31)))) if up < i32(32) else U0
    k = right32(m, u32(min(i32(-up), i32(31)))) if up < i32(0) else k
    k = U0 if r == U0 else k
    k = u32(-i32(k)) if negative != U0 else k
    spare = u32(u32(32) - rule.wrap_bits)
    signed = i32(left32(k, spare)) >> i32(spare)
    y = as_uint32(np.float32(np.float32(i32(signed)) * as_float32(rule.least)))
    return rule.nan_set if a >= INF32 else y
