"""Blocks of float32 lanes rounded by a shortcut: counted, or not, which takes half the time. Device functions only.

A shortcut is a pair, how a magnitude is rounded and how a result is finished; the loops around it are the same.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import MAGNITUDE32, SIGN32, U0, U31, finish32
from normstab.numerics.kernels.cpu.blocks import counted_block
from normstab.numerics.kernels.cpu.compile import device, outside, right32
from normstab.numerics.kernels.cpu.shortcuts import (
    grid_magnitude32,
    integer_block32,
    magic_block32,
    nearest_bits32,
    nearest_finish32,
    spread_magnitude32,
    stepped_magnitude32,
    wide_magnitude32,
    wrapped_finish32,
)
from normstab.numerics.kernels.shortcut_table import GRID, INTEGER, MAGIC, SPREAD, STEPPED

__all__ = ["counted_block32", "uncounted_block32"]

u32, i32 = np.uint32, np.int32


@device
def drawn_magnitude32(a, negative, drawn, rule):
    """Return spread_magnitude32, which knows no signs."""
    return spread_magnitude32(a, drawn, rule)


@device
def drawn_finish32(r, a, negative, rule):
    """Return nearest_finish32: an infinity becomes what an overflow becomes."""
    return nearest_finish32(r, a, u32(negative & SIGN32), rule)


def _uncounted(magnitude, finish):
    """Return the part that rounds a block by a shortcut: all of it as in range first, then again where some was not."""

    @outside
    def block(x, drawn, y, n, rule):
        top = U0
        for i in range(n):
            a, negative = u32(x[i] & MAGNITUDE32), u32(-i32(right32(x[i], U31)))
            r = magnitude(a, negative, drawn[i], rule)
            sign = u32(negative & SIGN32)
            y[i] = u32(r | (u32(sign & rule.zero_sign) if r == U0 else sign))
            top = max(top, r)
        if top > min(rule.limit_positive, rule.limit_negative):  # infinity and NaN are greater, too
            for i in range(n):
                a, negative = u32(x[i] & MAGNITUDE32), u32(-i32(right32(x[i], U31)))
                y[i] = finish(magnitude(a, negative, drawn[i], rule), a, negative, rule)

    return block


grid, spread = (grid_magnitude32, finish32), (drawn_magnitude32, drawn_finish32)
stepped, wide = (stepped_magnitude32, finish32), (wide_magnitude32, finish32)
wrapped = (stepped_magnitude32, wrapped_finish32)
grid_counted, spread_counted = counted_block(*grid), counted_block(*spread)
stepped_counted, wrapped_counted, wide_counted = counted_block(*stepped), counted_block(*wrapped), counted_block(*wide)
grid_uncounted, spread_uncounted = _uncounted(*grid), _uncounted(*spread)
stepped_uncounted, wrapped_uncounted, wide_uncounted = _uncounted(*stepped), _uncounted(*wrapped), _uncounted(*wide)


@device
def counted_block32(x, drawn, y, n, rule, counts):
    """Round a block by the shortcut of casts, and count it."""
    style = rule.cast_style
    if style == MAGIC:
        magic_block32(x, y, n, rule, counts)
    elif style == INTEGER:
        integer_block32(x, y, n, rule, counts)
    elif style == GRID:
        grid_counted(x, drawn, y, n, rule, counts)
    elif style == SPREAD:
        spread_counted(x, drawn, y, n, rule, counts)
    elif style != STEPPED:
        wide_counted(x, drawn, y, n, rule, counts)
    elif rule.wrap_bits != U0:
        wrapped_counted(x, drawn, y, n, rule, counts)
    else:
        stepped_counted(x, drawn, y, n, rule, counts)


@device
def uncounted_block32(x, drawn, y, n, rule):
    """Round a block by the shortcut of casts."""
    style = rule.cast_style
    if style == MAGIC:
        for i in range(n):
            y[i] = nearest_bits32(x[i], MAGIC, rule)
    elif style == INTEGER:
        for i in range(n):
            y[i] = nearest_bits32(x[i], INTEGER, rule)
    elif style == GRID:
        grid_uncounted(x, drawn, y, n, rule)
    elif style == SPREAD:
        spread_uncounted(x, drawn, y, n, rule)
    elif style != STEPPED:
        wide_uncounted(x, drawn, y, n, rule)
    elif rule.wrap_bits != U0:
        wrapped_uncounted(x, drawn, y, n, rule)
    else:
        stepped_uncounted(x, drawn, y, n, rule)
