"""One rounded operation on a block of float32 values that lies in the first-level cache: the parts of the kernels.

    a, b   [ block ] [ block ]  --computed in float32-->  c  --rounded-->  y
                                                          |
                              how many overflow, vanish, are subnormal; the largest and the smallest of c

Nearest-even only, operands of p <= 11, where float32 computes and one more rounding is the only rounding
(Figueroa 1995). What float32 may not show is the exact magnitude, which a record asks for, and whose an infinity or a
NaN is: a block with any of these is recounted exactly, one element after another. Records are rare: the largest and
smallest magnitude so far are kept beside (`marks`).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import INF32, MAGNITUDE32, SIGN32, U0, U1, rule32, rule64
from normstab.numerics.kernels.cpu.compile import as_float32, as_float64, as_int64, as_uint32, device, outside, view
from normstab.numerics.kernels.cpu.counting import (
    COUNT,
    LARGEST,
    NAN_PRODUCED,
    OVERFLOW,
    SATURATED,
    SCRATCH,
    SMALLEST,
    SUBNORMAL,
    UNDERFLOW,
    _towards_zero32,
    round_counted64,
)
from normstab.numerics.kernels.cpu.shortcuts import nearest_finish32, nearest_magnitude32
from normstab.numerics.kernels.cpu.sums.steps import CONTEXT, COUNTS, SCRATCH_AT, sum_folded
from normstab.numerics.kernels.format_table import PLAN
from normstab.numerics.kernels.shortcut_table import INTEGER, MAGIC

__all__ = [
    "ADD",
    "CAST",
    "DIV",
    "EVERY",
    "MUL",
    "SQRT",
    "SUB",
    "add_block",
    "cast_block",
    "div_block",
    "exact",
    "mul_block",
    "set_marks",
    "sub_block",
    "sums_exact_upto",
    "widened",
]

u32, f32 = np.uint32, np.float32
# Codes of the operations.
CAST, ADD, SUB, MUL, DIV, SQRT = 0, 1, 2, 3, 4, 5
EVERY, ZERO = ~U0, np.float32(0.0)


@device
def widened(x):
    """Return a float32 as float64, subnormals by integer operations."""
    bits = as_uint32(x)
    if bits & INF32:
        return np.float64(x)
    # A subnormal is a whole number of 2^-149; a conversion would flush it where the processor flushes.
    value = np.float64(np.int64(bits & MAGNITUDE32)) * as_float64((1023 - 149) << 52)
    return -value if bits & SIGN32 else value


@device
def exact(kind, a, b):
    """Return the exact result of an operation in float64, its error folded in, for the rounding to come."""
    if kind == MUL:
        return a * b
    if kind == DIV:
        return a / b
    if kind == CAST:
        return a
    return sum_folded(a, -b if kind == SUB else b)


@outside
def recount(kind, a, b, n, context):  # pragma: no cover - compiled
    """Count n operations exactly."""
    left, right, numbers = view(a, n, f32), view(b, n, f32), view(context, CONTEXT, np.int64)
    rule, scratch = rule64(numbers), numbers[SCRATCH_AT:]
    for i in range(n):
        p = widened(left[i])
        q = widened(right[i]) if kind != CAST else 1.0
        has_nan, has_inf = p != p or q != q, abs(p) == np.inf or abs(q) == np.inf
        zero_divided = kind == DIV and q == 0.0 and p != 0.0 and not has_nan and not has_inf
        round_counted64(scratch, as_int64(exact(kind, p, q)), 0, has_nan, has_inf, zero_divided, rule)


@outside
def lies_below(kind, a, b, n, least):  # pragma: no cover - compiled
    """Return whether an exact nonzero result lies below `least`, though in float32 none does."""
    p, q, bound = view(a, n, f32), view(b, n, f32), np.float64(least)
    found = False
    if kind == DIV:
        for i in range(n):
            c = abs(np.float64(p[i]) / np.float64(q[i]))
            found |= (c < bound) & (c != 0.0)
    elif kind == MUL:
        for i in range(n):
            c = abs(np.float64(p[i]) * np.float64(q[i]))
            found |= (c < bound) & (c != 0.0)
    else:
        for i in range(n):
            c = abs(exact(kind, np.float64(p[i]), np.float64(q[i])))
            found |= (c < bound) & (c != 0.0)
    return found


@outside
def tally(kind, a, b, n, noted, exact_upto, table, marks, context):  # pragma: no cover - compiled
    """Count n operations, given what their block noted of them.

    `marks` are the largest and smallest magnitude so far; float32 results beyond `exact_upto` may be inexact, so that
    the exact one lies below.
    """
    numbers = view(context, CONTEXT, np.int64)
    if numbers[COUNTS] == 0:
        return
    seen, plan, scratch = view(marks, 2, u32), view(table, PLANNED, np.int64), numbers[SCRATCH_AT:]
    over, under, small, top, bottom = noted
    # A new extreme must be exact, rounded toward zero; in float32 it may have been rounded up.
    is_record = top > seen[0] or (bottom != EVERY and u32(bottom + U1) < seen[1])
    # As small as the record, in float32: the exact one may lie below it.
    if not is_record and seen[1] > exact_upto and u32(bottom + U1) == seen[1]:
        is_record = lies_below(kind, a, b, n, as_float32(seen[1]))
    if is_record or top >= INF32:
        recount(kind, a, b, n, context)
        set_marks(marks, context)
        return
    scratch[COUNT] += n
    scratch[OVERFLOW] += over
    scratch[SATURATED] += over * plan[SATURATES]
    scratch[NAN_PRODUCED] += over if plan[OVER_POSITIVE] > INFINITY else 0
    scratch[UNDERFLOW] += under
    scratch[SUBNORMAL] += small


@outside
def set_marks(marks, context):  # pragma: no cover - compiled
    """Raise and lower the marks to what a recount found."""
    seen, scratch = view(marks, 2, u32), view(context + 8 * SCRATCH_AT, SCRATCH, np.int64)
    seen[0] = max(seen[0], u32(_towards_zero32(scratch[LARGEST])))
    # HIGHEST stands for a scratch that has seen no number, which holds infinity.
    seen[1] = min(seen[1], u32(_towards_zero32(min(scratch[SMALLEST], HIGHEST))))


PLANNED = len(PLAN)
SATURATES, OVER_POSITIVE = PLAN.index("saturates"), PLAN.index("over_positive")
HIGHEST, INFINITY = (2047 << 52) - 1, int(INF32)


@device
def computed(kind, p, q):
    """Return the float32 result of an operation."""
    if kind == ADD:
        return np.float32(p + q)
    if kind == SUB:
        return np.float32(p - q)
    if kind == MUL:
        return np.float32(p * q)
    if kind == DIV:
        return np.float32(p / q)
    return p


@device
def rounded(kind, p, q, z, n, style, rule):
    """Set z to the rounded results of an operation, and return what is to be noted of the unrounded ones.

    How many overflow, become zero, become subnormal; the largest magnitude, and the smallest less 1 (a zero counts
    as the greatest). A product or quotient that is zero in float32 alone is noted as an infinity: see `recount`.
    """
    over, under, small, top, bottom = U0, U0, U0, U0, EVERY
    for i in range(n):
        c = computed(kind, p[i], q[i])
        bits = as_uint32(c)
        m = u32(bits & MAGNITUDE32)
        r = nearest_magnitude32(m, style, rule)
        z[i] = as_float32(nearest_finish32(r, m, u32(bits & SIGN32), rule))
        over = u32(over + u32(r > rule.limit_positive))
        under = u32(under + u32((r == U0) & (m != U0)))
        small = u32(small + u32(u32(r - U1) < u32(rule.least_normal - U1)))
        # A format with the range of float32 has products and quotients that float32 has not.
        # Noted as infinite, they are recounted.
        if style == INTEGER and kind == MUL:
            is_lost = (m == U0) & (p[i] != ZERO) & (q[i] != ZERO)
            top = max(top, INF32 if is_lost else m)
        elif style == INTEGER and kind == DIV:
            is_lost = (m == U0) & (p[i] != ZERO)
            top = max(top, INF32 if is_lost else m)
        else:
            top = max(top, m)
        bottom = min(bottom, u32(m - U1))
    return over, under, small, top, bottom


@device
def sums_exact_upto(least):
    """Return the float32 bits of 2^24 quanta, given those of the least one: smaller sums of whole quanta are exact."""
    return as_uint32(np.float32(as_float32(u32(least)) * np.float32(2.0**24)))


@device
def block(kind, a, b, y, n, table, marks, context):
    """Set y to the rounded and counted results of an operation known when compiled."""
    p, q, z = view(a, n, f32), view(b, n, f32), view(y, n, f32)
    rule = rule32(view(table, PLANNED, np.int64))
    is_magic = rule.style == MAGIC
    # Two calls, in each of which the style is a constant: no branch is left in their loops.
    noted = rounded(kind, p, q, z, n, MAGIC, rule) if is_magic else rounded(kind, p, q, z, n, INTEGER, rule)
    if kind in (ADD, SUB):
        exact_upto = sums_exact_upto(rule.least)
    else:
        # A product of two 11-bit numbers has 22 bits: float32
        # holds it, unless the format has float32's own range.
        # A quotient may always be inexact.
        exact_upto = EVERY if kind == CAST or (kind == MUL and is_magic) else U0
    tally(kind, a, b, n, noted, exact_upto, table, marks, context)


@outside
def cast_block(a, y, n, table, marks, context):  # pragma: no cover - compiled
    """Set y = cast(a); `y` may be `a` where nothing is counted."""
    block(CAST, a, a, y, n, table, marks, context)


@outside
def add_block(a, b, y, n, table, marks, context):  # pragma: no cover - compiled
    """Set y = a + b."""
    block(ADD, a, b, y, n, table, marks, context)


@outside
def sub_block(a, b, y, n, table, marks, context):  # pragma: no cover - compiled
    """Set y = a - b."""
    block(SUB, a, b, y, n, table, marks, context)


@outside
def mul_block(a, b, y, n, table, marks, context):  # pragma: no cover - compiled
    """Set y = a b. A float32 product of nonzero bfloat16 numbers may be zero: such a block is recounted."""
    block(MUL, a, b, y, n, table, marks, context)


@outside
def div_block(a, b, y, n, table, marks, context):  # pragma: no cover - compiled
    """Set y = a / b; as for products, a lost quotient has its block recounted."""
    block(DIV, a, b, y, n, table, marks, context)
