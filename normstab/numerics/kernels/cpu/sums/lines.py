"""Many chains of roundings side by side: one step of each at once, in every format, mode and way of counting.

The scalar steps of `steps` in the form that a compiler vectorises. A step takes buffers of at most BLOCK float64:
operands, and the leaf (the row-major index) that each result draws its random bits by. First the exact result of
every place is formed in the carrier, then all are rounded in one loop without branches, counting as they go; what
is infinite or NaN is looked at afterwards, place by place, for what it counts as depends on the operands.

    operands a, b  --carry-->  exact (float64)  --round_line-->  y, counts
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from normstab.numerics.kernels.cpu.bits import INF64, MAGNITUDE64, rule64
from normstab.numerics.kernels.cpu.blocks import (
    BLOCK,
    keeps_all,
    nearest_block64,
    nearest_uncounted64,
    round_block64,
)
from normstab.numerics.kernels.cpu.compile import outside, view
from normstab.numerics.kernels.cpu.counting import HISTOGRAM_BINS, count_special, histogram_bin
from normstab.numerics.kernels.cpu.losses.lost_bits import lose_line
from normstab.numerics.kernels.cpu.philox_cpu import field_of
from normstab.numerics.kernels.cpu.sums.steps import (
    COUNTS,
    DOWN,
    FIELD_WIDTH,
    FOLDED,
    FOLDS,
    HISTOGRAM,
    KEY,
    LOSSES_AT,
    SCRATCH_AT,
    STEP,
)
from normstab.numerics.kernels.cpu.to_odd import sum_to_odd
from normstab.numerics.kernels.format_table import PLAN
from normstab.numerics.kernels.shortcut_table import MAGIC

__all__ = ["Desk", "add_line", "desk", "divide_line", "fma_line", "load_line", "multiply_line"]

u32 = np.uint32
STYLE = PLAN.index("style")

# What a step needs beside its operands: exact results, random fields, and room for the addends that do not fit.
Desk: Any = namedtuple("Desk", ("exact", "fields", "rest", "leaves", "rounded"))  # type: ignore[misc]


@outside
def desk():  # pragma: no cover - compiled
    """Return fresh buffers of a block."""
    return Desk(
        np.empty(BLOCK, np.float64),
        np.zeros(BLOCK, u32),
        np.empty(BLOCK, np.float64),
        np.empty(BLOCK, np.int64),
        np.empty(BLOCK, np.float64),
    )


@outside
def draw_line(fields, leaves, n, context):  # pragma: no cover - compiled
    """Fill fields[:n] with the random bits of these leaves."""
    key, step, width = context[KEY], context[STEP], context[FIELD_WIDTH]
    for i in range(n):
        fields[i] = field_of(key, step, leaves[i], width)


@outside
def round_uncounted(exact, y, fields, n, rule, idle):  # pragma: no cover - compiled
    """Round n float64; `idle` is a scratch that nobody reads."""
    if rule.style == MAGIC:
        nearest_uncounted64(exact.view(np.int64), y.view(np.int64), n, rule)
    elif keeps_all(rule):
        for i in range(n):
            y[i] = exact[i] if exact[i] == exact[i] else np.nan
    else:
        round_block64(exact.view(np.int64), fields, y.view(np.int64), n, rule, idle)


@outside
def round_line(exact, a, b, c, y, leaves, n, context, fields):  # pragma: no cover - compiled
    """Round n exact results into y and count them; a, b and c are the operands that they came from."""
    rule, scratch = rule64(context), context[SCRATCH_AT:]
    if context[FIELD_WIDTH] != 0:
        draw_line(fields, leaves, n, context)
    if context[COUNTS] == 0:
        round_uncounted(exact, y, fields, n, rule, scratch)
        return
    bits, results = exact.view(np.int64), y.view(np.int64)
    if rule.style == MAGIC:
        has_special = nearest_block64(bits, results, n, rule, scratch)
    else:
        has_special = round_block64(bits, fields, results, n, rule, scratch)
    if context[HISTOGRAM] != 0:
        bins = view(context[HISTOGRAM], HISTOGRAM_BINS, np.int64)
        for i in range(n):
            bins[histogram_bin(bits[i])] += 1
    if has_special:
        for i in range(n):
            magnitude, result, infinity = bits[i] & MAGNITUDE64, results[i] & MAGNITUDE64, np.inf
            if magnitude < INF64:
                continue
            has_nan = (a[i] != a[i]) | (b[i] != b[i]) | (c[i] != c[i])
            has_inf = (abs(a[i]) == infinity) | (abs(b[i]) == infinity) | (abs(c[i]) == infinity)
            becomes_nan, becomes_inf = result > INF64, result == INF64
            count_special(scratch, magnitude > INF64, becomes_nan, becomes_inf, has_nan, has_inf, False, rule.saturates)


@outside
def add_line(a, b, y, leaves, n, context, at):  # pragma: no cover - compiled
    """Set y to a + b, numbers of the format; y may be a or b only where nothing is counted or drawn by it later."""
    folds, down, exact = context[FOLDS] == FOLDED, context[DOWN] != 0, at.exact
    for i in range(n):
        exact[i] = sum_to_odd(a[i], b[i], folds, down)
    if context[COUNTS] != 0:  # y may be an operand, which the counting still asks for
        round_line(exact, a, b, b, at.rest, leaves, n, context, at.fields)
        if context[LOSSES_AT] != 0:
            lose_line(a, b, at.rest, n, context[LOSSES_AT:])
        for i in range(n):
            y[i] = at.rest[i]
    else:
        round_line(exact, a, b, b, y, leaves, n, context, at.fields)


@outside
def multiply_line(a, b, y, leaves, n, context, at):  # pragma: no cover - compiled
    """Set y, none of the operands, to a b."""
    exact = at.exact
    for i in range(n):
        exact[i] = a[i] * b[i]
    round_line(exact, a, b, b, y, leaves, n, context, at.fields)


@outside
def fma_line(a, b, total, leaves, n, context, at):  # pragma: no cover - compiled
    """Set total to a b + total."""
    folds, down, exact = context[FOLDS] != 0, context[DOWN] != 0, at.exact
    for i in range(n):
        exact[i] = sum_to_odd(a[i] * b[i], total[i], folds, down)
    round_line(exact, a, b, total, at.rest, leaves, n, context, at.fields)
    if context[LOSSES_AT] != 0:  # of the rounded product and the addend: only to nearest, by the very rule of the sums
        for i in range(n):
            exact[i] = a[i] * b[i]
        round_uncounted(exact, at.rounded, at.fields, n, rule64(context), np.zeros(12, np.int64))
        lose_line(at.rounded, total, at.rest, n, context[LOSSES_AT:])
    for i in range(n):
        total[i] = at.rest[i]


@outside
def divide_line(a, divisor, y, leaves, n, context, at):  # pragma: no cover - compiled
    """Set y, not an operand, to a / divisor, one number that is not zero."""
    exact = at.exact
    for i in range(n):
        exact[i] = a[i] / divisor
    round_line(exact, a, a, a, y, leaves, n, context, at.fields)


@outside
def all_fit(x, n, rule):  # pragma: no cover - compiled
    """Whether all are zeros or normal numbers of a floating-point format, as their bits show; else a cast tells."""
    if rule.least_normal == 0 or rule.zero_sign == 0:
        return False
    bits, below, missing = x.view(np.int64), (1 << rule.shift) - 1, 0
    for i in range(n):
        a = bits[i] & MAGNITUDE64
        # In range, and none of the digits set that the format has not.
        is_number = (a >= rule.least_normal) & (a <= rule.limit_positive) & ((a & below) == 0)
        missing += np.int64(not (is_number | (a == 0)))
    return missing == 0


@outside
def load_line(x, leaves, n, context, at):  # pragma: no cover - compiled
    """Cast addends in place; those that fit are no event, the others are gathered and counted together."""
    rule, y = rule64(context), at.rounded
    if all_fit(x, n, rule):
        return
    if context[FIELD_WIDTH] != 0:
        draw_line(at.fields, leaves, n, context)
    idle = np.zeros(12, np.int64)
    round_uncounted(x, y, at.fields, n, rule, idle)
    if context[COUNTS] != 0:
        moved = 0
        for i in range(n):
            # A NaN stays one, and is no event of a load.
            if y[i] != x[i] and x[i] == x[i]:
                at.rest[moved], at.leaves[moved] = x[i], leaves[i]
                moved += 1
        if moved:
            round_line(at.rest, at.rest, at.rest, at.rest, at.exact, at.leaves, moved, context, at.fields)
    for i in range(n):
        x[i] = y[i]
