"""Blocks of numbers inside the CPU kernels: read, round and count, write. Device functions only.

    x    [ x0 x1 x2 ... ]            at most BLOCK numbers, which stay in the first-level cache
    y    [ y0 y1 y2 ... ]            rounded in one loop without branches, so that a compiler takes many at a time
    counted on the way:              over, zeros, small, moved, nans    sums of 0 and 1
                                     top, bottom                        the extremes of the magnitudes

Counts are reductions over lanes, each a whole number, so that their order does not matter. What is infinite or NaN
is rare: the loop only sees that there is one (by `top`), and a second loop counts those values one by one.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import (
    INF32,
    INF64,
    MAGNITUDE32,
    MAGNITUDE64,
    SIGN64,
    U0,
    U1,
    U31,
    finish32,
    finish64,
    magnitude32,
    magnitude64,
    wrapped32,
    wrapped64,
)
from normstab.numerics.kernels.cpu.compile import (
    as_float64,
    as_int64,
    device,
    outside,
    right32,
)
from normstab.numerics.kernels.cpu.counting import (
    COUNT,
    INEXACT,
    LARGEST,
    NAN_PRODUCED,
    OVERFLOW,
    SATURATED,
    SMALLEST,
    SUBNORMAL,
    UNDERFLOW,
    count_special,
)

__all__ = [
    "BLOCK",
    "counted_block",
    "keeps_all",
    "nearest_block64",
    "nearest_uncounted64",
    "round_block32",
    "round_block64",
    "widened32",
]

u32, i32 = np.uint32, np.int32
# Elements of a block: a few buffers of that many float64 stay in the first-level cache.
BLOCK = 1024
REBIAS32, LEAST32 = np.int64(896 << 52), np.float64(2.0**-149)


def counted_block(magnitude, finish):
    """Return the part that rounds a block and counts it, from how a magnitude is rounded and a result finished."""

    @outside
    def block(x, drawn, y, n, rule, counts):
        over, zeros, zeros_in, small, moved, nans, top, bottom = U0, U0, U0, U0, U0, U0, U0, ~U0
        for i in range(n):
            a, negative = u32(x[i] & MAGNITUDE32), u32(-i32(right32(x[i], U31)))
            r = magnitude(a, negative, drawn[i], rule)
            z = finish(r, a, negative, rule)
            y[i] = z
            # Of an infinity r is beyond the limit too: it is no overflow, and is counted afterwards.
            is_over = (r > (rule.limit_negative if negative else rule.limit_positive)) & (a < INF32)
            over = u32(over + u32(is_over))
            zeros = u32(zeros + u32(u32(z & MAGNITUDE32) == U0))  # an overflow may wrap to zero
            zeros_in = u32(zeros_in + u32(a == U0))
            small = u32(small + u32(r < rule.least_normal))
            # An overflow is inexact even where rounding to a quantum changed nothing.
            moved = u32(moved + u32(is_over | ((r != a) & (a < INF32))))
            nans = u32(nans + u32((u32(z & MAGNITUDE32) > INF32) & (a < INF32)))
            top = max(top, a)
            # The smallest but zero: less 1, a zero wraps to the greatest.
            bottom = min(bottom, u32(a - U1))
        # Zeros lie below the least normal number, but are not
        # subnormal; in fixed point (0) nothing lies below it.
        zeros_small = zeros if rule.least_normal != U0 else U0
        add_block(counts, n, over, u32(zeros - zeros_in), u32(small - zeros_small), moved, nans, rule.saturates)
        add_extremes32(x, y, n, rule, counts, top, bottom)

    return block


generic_block32 = counted_block(magnitude32, finish32)


@outside
def round_block32(x, drawn, y, n, rule, counts):
    """Round a block in any format and mode, and count it: reductions over lanes, special values afterwards."""
    generic_block32(x, drawn, y, n, rule, counts)
    # Wrapped numbers are computed again, for the first loop has only what an overflow saturates to.
    # One may wrap to 0.
    if rule.wrap_bits != U0:
        for i in range(n):
            a, negative = u32(x[i] & MAGNITUDE32), u32(-i32(right32(x[i], U31)))
            r = magnitude32(a, negative, drawn[i], rule)
            if a < INF32 and r > (rule.limit_negative if negative else rule.limit_positive):
                y[i] = wrapped32(r, negative, rule)
                counts[UNDERFLOW] += y[i] == U0


@device
def nearest_magnitude64(a, rule):
    """Return magnitude64 of nearest-even by the shortcut MAGIC."""
    # From c on, and up to 2 c, the last bit of float64 is the
    # format's quantum at x: the addition itself rounds, to even.
    # Below emin the quantum stays; above emax it must only not make c infinite.
    c = as_float64(min(max(a & INF64, rule.magic_low), rule.magic_high) + rule.magic_lift)
    return as_int64((as_float64(a) + c) - c)


@device
def nearest_finish64(r, a, sign, rule):
    """Return finish64 where ties go to even, so that an infinity becomes what an overflow becomes."""
    y = (rule.over_positive | (sign & rule.over_negative)) if r > rule.limit_positive else r | sign
    return rule.nan_set if a > INF64 else y


@outside
def nearest_uncounted64(x, y, n, rule):
    """Round a block by the shortcut MAGIC into another: all as in range first, then again where some was not."""
    top = 0
    for i in range(n):
        a = x[i] & MAGNITUDE64
        # In range the upper bound of the exponent is none, and nothing has to be asked of the result.
        c = as_float64(max(a & INF64, rule.magic_low) + rule.magic_lift)
        y[i] = as_int64((as_float64(a) + c) - c) | (x[i] & SIGN64)
        top = max(top, a)
    if top > rule.limit_positive:
        for i in range(n):
            a = x[i] & MAGNITUDE64
            y[i] = nearest_finish64(nearest_magnitude64(a, rule), a, x[i] & SIGN64, rule)


@outside
def nearest_block64(x, y, n, rule, counts):
    """Return round_block64 for a rule whose shortcut is MAGIC: the same, faster."""
    over, zeros, zeros_in, small, moved, top, bottom = 0, 0, 0, 0, 0, 0, MAGNITUDE64
    for i in range(n):
        a, sign = x[i] & MAGNITUDE64, x[i] & SIGN64
        r = nearest_magnitude64(a, rule)
        y[i] = nearest_finish64(r, a, sign, rule)
        is_over = (r > rule.limit_positive) & (a < INF64)
        over += np.int64(is_over)
        zeros += np.int64(r == 0)
        zeros_in += np.int64(a == 0)
        small += np.int64(r < rule.least_normal)
        # An overflow is inexact even where rounding to a quantum changed nothing.
        moved += np.int64(is_over | ((r != a) & (a < INF64)))
        top = max(top, a)
        bottom = min(bottom, (a - 1) & MAGNITUDE64)  # zero wraps to the greatest
    # A finite number becomes NaN by an overflow alone, where that is the policy.
    nans = over if rule.over_positive > INF64 else 0
    add_block(counts, n, over, zeros - zeros_in, small - zeros, moved, nans, rule.saturates)
    return add_extremes64(x, n, counts, top, bottom)


@outside
def round_block64(x, drawn, y, n, rule, counts):
    """Round a block of float64 bits in any format and mode, and count all but its special values.

    Returns whether there are infinite or NaN values among `x`: what those count as depends on the operands.
    """
    if keeps_all(rule):
        return kept_block64(x, y, n, rule, counts)
    over, zeros, zeros_in, small, moved, nans, top, bottom = 0, 0, 0, 0, 0, 0, 0, MAGNITUDE64
    for i in range(n):
        a, negative = x[i] & MAGNITUDE64, x[i] >> 63
        r = magnitude64(a, negative, np.int64(drawn[i]) << 30, rule)
        y[i] = finish64(r, a, negative, rule)
        is_over = (r > (rule.limit_negative if negative else rule.limit_positive)) & (a < INF64)
        over += np.int64(is_over)
        zeros += np.int64((r == 0) & (a < INF64))
        zeros_in += np.int64(a == 0)
        small += np.int64((r < rule.least_normal) & (a < INF64))
        moved += np.int64(is_over | ((r != a) & (a < INF64)))
        nans += np.int64(((y[i] & MAGNITUDE64) > INF64) & (a < INF64))
        top = max(top, a)
        bottom = min(bottom, (a - 1) & MAGNITUDE64)  # zero wraps to the greatest
    # Zeros are not subnormal; in fixed point (least_normal 0) nothing is.
    zeros_small = zeros if rule.least_normal != 0 else 0
    add_block(counts, n, over, zeros - zeros_in, small - zeros_small, moved, nans, rule.saturates)
    # Wrapped numbers are computed again; one of them may wrap to 0.
    if rule.wrap_bits != 0:
        for i in range(n):
            a, negative = x[i] & MAGNITUDE64, x[i] >> 63
            r = magnitude64(a, negative, np.int64(drawn[i]) << 30, rule)
            if a < INF64 and r > (rule.limit_negative if negative else rule.limit_positive):
                y[i] = wrapped64(r, negative, rule)
                counts[UNDERFLOW] += y[i] == 0
    return add_extremes64(x, n, counts, top, bottom)


@device
def keeps_all(rule):
    """Whether all float64 are in the format, so that results are no other numbers."""
    in_range = (rule.limit_positive == INF64 - 1) & (rule.inf_positive == INF64) & (rule.zero_sign != 0)
    return in_range & (rule.shift == 0) & (rule.base <= 1) & (rule.flushed_below == 0)


@outside
def kept_block64(x, y, n, rule, counts):
    """Return round_block64 for a rule that keeps all: every NaN becomes what the rule makes of it."""
    small, top, bottom = 0, 0, MAGNITUDE64
    for i in range(n):
        a = x[i] & MAGNITUDE64
        y[i] = (x[i] & rule.nan_kept) | rule.nan_set if a > INF64 else x[i]
        small += np.int64(((a - 1) & MAGNITUDE64) < rule.least_normal - 1)  # zero wraps to the greatest
        top, bottom = max(top, a), min(bottom, (a - 1) & MAGNITUDE64)
    add_block(counts, n, 0, 0, small, 0, 0, rule.saturates)
    return add_extremes64(x, n, counts, top, bottom)


@outside
def add_extremes64(x, n, counts, top, bottom):
    """Add the greatest and least magnitude of a block; return whether there are infinite or NaN values."""
    if top < INF64:
        if top != 0:
            counts[LARGEST] = max(counts[LARGEST], top)
            counts[SMALLEST] = min(counts[SMALLEST], bottom + 1)
        return False
    for i in range(n):
        a = x[i] & MAGNITUDE64
        if 0 < a < INF64:
            counts[LARGEST] = max(counts[LARGEST], a)
            counts[SMALLEST] = min(counts[SMALLEST], a)
    return True


@device
def add_block(counts, n, over, underflow, subnormal, inexact, nans, saturates):
    """Add what the reductions over a block found."""
    counts[COUNT] += n
    counts[OVERFLOW] += over
    counts[SATURATED] += np.int64(over) * np.int64(saturates)
    counts[UNDERFLOW] += underflow
    counts[SUBNORMAL] += subnormal
    counts[INEXACT] += inexact
    counts[NAN_PRODUCED] += nans


@outside
def add_extremes32(x, y, n, rule, counts, top, bottom):
    """Add the greatest and least magnitude of a block; where there are special values, count them."""
    if top >= INF32:
        top, bottom = U0, ~U0
        for i in range(n):
            a, result = u32(x[i] & MAGNITUDE32), u32(y[i] & MAGNITUDE32)
            if a >= INF32:
                is_nan = a > INF32
                y_nan, y_inf = result > INF32, result == INF32
                count_special(counts, is_nan, y_nan, y_inf, is_nan, not is_nan, False, rule.saturates)
            else:
                top, bottom = max(top, a), min(bottom, u32(a - U1))
    if top != U0:
        counts[LARGEST] = max(counts[LARGEST], widened32(top))
        counts[SMALLEST] = min(counts[SMALLEST], widened32(u32(bottom + U1)))


@device
def widened32(a):
    """Return the float64 bits of a float32 magnitude, by integers: flush-to-zero does not act."""
    # A subnormal is a whole number of 2^-149, both normal in float64.
    # An exponent of all ones is to stay one: it is raised twice, 255 + 2 * 896 = 2047.
    # Both are computed and one chosen, which has no branch.
    small = as_int64(np.float64(a) * LEAST32)
    wide = (np.int64(a) << 29) + (REBIAS32 if a < INF32 else 2 * REBIAS32)
    return small if a < u32(0x00800000) else wide
