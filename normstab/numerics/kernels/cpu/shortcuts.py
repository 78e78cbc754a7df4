"""Shortcuts of rounding for float32 lanes, each for some formats and modes: the same bits, several times faster.

    bits of a magnitude   [ exponent | bits that stay | bits that go ]
    INTEGER, GRID         + an addend at the bits that go, then those are cleared; a carry may raise the exponent
    MAGIC                 a + c - c, where a number of c's binade has no room for the bits that go
    SPREAD                as GRID; subnormals as whole quanta with 16 bits of fraction

Which holds where, and why the bits are the same, is `_shortcut` in format_table.py. Device functions only.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import INF32, MAGNITUDE32, SIGN32, U0, U1, U31, finish32
from normstab.numerics.kernels.cpu.blocks import add_block, add_extremes32
from normstab.numerics.kernels.cpu.compile import as_float32, as_uint32, device, left32, outside, right32
from normstab.numerics.kernels.format_table import INTEGER, MAGIC

__all__ = [
    "grid_block32",
    "integer_block32",
    "magic_block32",
    "nearest_bits32",
    "nearest_finish32",
    "nearest_magnitude32",
    "spread_block32",
]

u32, i32 = np.uint32, np.int32
U16 = u32(16)


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


@outside
def grid_block32(x, drawn, y, n, rule, counts):
    """Round a block by the shortcut GRID, and count it."""
    over, zeros, zeros_in, small, moved, nans, top, bottom = U0, U0, U0, U0, U0, U0, U0, ~U0
    for i in range(n):
        a, negative = u32(x[i] & MAGNITUDE32), u32(-i32(right32(x[i], U31)))
        r = grid_magnitude32(a, negative, drawn[i], rule)
        z = finish32(r, a, negative, rule)
        y[i] = z
        # One limit for both signs: formats with a shortcut are floating-point, and symmetric.
        is_over = (r > rule.limit_positive) & (a < INF32)
        over = u32(over + u32(is_over))
        zeros = u32(zeros + u32(r == U0))
        zeros_in = u32(zeros_in + u32(a == U0))
        small = u32(small + u32(r < rule.least_normal))
        moved = u32(moved + u32(is_over | ((r != a) & (a < INF32))))
        # By the result: directed modes overflow to a NaN on one side only.
        nans = u32(nans + u32((u32(z & MAGNITUDE32) > INF32) & (a < INF32)))
        top = max(top, a)
        bottom = min(bottom, u32(a - U1))
    add_block(counts, n, over, u32(zeros - zeros_in), u32(small - zeros), moved, nans, rule.saturates)
    add_extremes32(x, y, n, rule, counts, top, bottom)


@outside
def spread_block32(x, drawn, y, n, rule, counts):
    """Round a block by the shortcut SPREAD, and count it."""
    over, zeros, zeros_in, small, moved, top, bottom = U0, U0, U0, U0, U0, U0, ~U0
    for i in range(n):
        a = u32(x[i] & MAGNITUDE32)
        r = spread_magnitude32(a, drawn[i], rule)
        y[i] = nearest_finish32(r, a, u32(x[i] & SIGN32), rule)
        is_over = (r > rule.limit_positive) & (a < INF32)
        over = u32(over + u32(is_over))
        zeros = u32(zeros + u32(r == U0))
        zeros_in = u32(zeros_in + u32(a == U0))
        small = u32(small + u32(r < rule.least_normal))
        moved = u32(moved + u32(is_over | ((r != a) & (a < INF32))))
        top = max(top, a)
        bottom = min(bottom, u32(a - U1))
    nans = over if rule.over_positive > INF32 else U0
    add_block(counts, n, over, u32(zeros - zeros_in), u32(small - zeros), moved, nans, rule.saturates)
    add_extremes32(x, y, n, rule, counts, top, bottom)
