"""One rounded operation on a block of float32 values that lies in the first-level cache: the parts of the kernels.

Nearest-even only, operands of p <= 11, where float32 computes and one more rounding is the only rounding
(numerics.md section 3). Counting has three tiers: a block whose extremes show that nothing happened costs a
maximum and a minimum; one with small or large results is counted in lanes; one with infinities, NaN or a
record magnitude is recounted exactly, one element after another.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.bits import INF32, MAGNITUDE32, SIGN32, U0, U1, rule32, rule64
from normstab.numerics.kernels.compiled import as_float32, as_float64, as_int64, as_uint32, device, outside, view
from normstab.numerics.kernels.counting import (
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
from normstab.numerics.kernels.plan import INTEGER, MAGIC, PLAN
from normstab.numerics.kernels.shortcuts import nearest_finish32, nearest_magnitude32
from normstab.numerics.kernels.steps import CONTEXT, COUNTS, SCRATCH_AT, folded

__all__ = [
    "ADD",
    "CAST",
    "DIV",
    "EVERY",
    "MUL",
    "SUB",
    "add_block",
    "cast_block",
    "div_block",
    "exact",
    "mul_block",
    "set_marks",
    "sub_block",
    "widened",
]

u32, f32 = np.uint32, np.float32
# Codes of the operations.
CAST, ADD, SUB, MUL, DIV = 0, 1, 2, 3, 4
EVERY = ~U0


@device
def widened(x):
    """Return a float32 as float64, subnormals by integer operations."""
    bits = as_uint32(x)
    if bits & INF32:
        return np.float64(x)
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
    b = -b if kind == SUB else b
    s = a + b
    b_seen = s - a
    return folded(s, (a - (s - b_seen)) + (b - b_seen))


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
def count_small(kind, a, b, n, table, context):  # pragma: no cover - compiled
    """Count n operations whose results are finite and neither the largest nor the smallest so far.

    First the results, then their rounding: loops without a choice in them are done in vector registers.
    """
    p, q, rule = view(a, n, f32), view(b, n, f32), rule32(view(table, PLANNED, np.int64))
    c = np.empty(n, f32)
    if kind == ADD:
        for i in range(n):
            c[i] = np.float32(p[i] + q[i])
    elif kind == SUB:
        for i in range(n):
            c[i] = np.float32(p[i] - q[i])
    elif kind == MUL:
        for i in range(n):
            c[i] = np.float32(p[i] * q[i])
    elif kind == DIV:
        for i in range(n):
            c[i] = np.float32(p[i] / q[i])
    else:
        c[:] = p
    over, zeros, zeros_in, small = tallied(c, n, MAGIC, rule) if rule.style == MAGIC else tallied(c, n, INTEGER, rule)
    scratch = view(context + 8 * SCRATCH_AT, SCRATCH, np.int64)
    scratch[COUNT] += n
    scratch[OVERFLOW] += over
    scratch[SATURATED] += over * rule.saturates
    scratch[NAN_PRODUCED] += over if rule.over_positive > INF32 else U0
    scratch[UNDERFLOW] += zeros - zeros_in
    scratch[SUBNORMAL] += small - zeros


@device
def tallied(c, n, style, rule):
    """Return how many of n finite numbers overflow, become zero, are zero, and become less than normal."""
    over, zeros, zeros_in, small = U0, U0, U0, U0
    for i in range(n):
        m = u32(as_uint32(c[i]) & MAGNITUDE32)
        r = nearest_magnitude32(m, style, rule)
        over = u32(over + u32(r > rule.limit_positive))
        zeros = u32(zeros + u32(r == U0))
        zeros_in = u32(zeros_in + u32(m == U0))
        small = u32(small + u32(r < rule.least_normal))
    return over, zeros, zeros_in, small


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
def tally(kind, a, b, n, top, bottom, slack, table, marks, context):  # pragma: no cover - compiled
    """Count n operations, given the largest magnitude and the smallest nonzero one less an ulp, in float32.

    `marks` are the largest and smallest magnitude so far; `slack` is 1 where a result may lie below its float32.
    """
    if view(context, CONTEXT, np.int64)[COUNTS] == 0:
        return
    seen, plan = view(marks, 2, u32), view(table, PLANNED, np.int64)
    is_record = top > seen[0] or (bottom != EVERY and u32(bottom + U1) < seen[1])
    if not is_record and slack and u32(bottom + U1) == seen[1]:
        is_record = lies_below(kind, a, b, n, as_float32(seen[1]))
    if is_record or top >= INF32:
        recount(kind, a, b, n, context)
        set_marks(marks, context)
    elif top > u32(plan[LIMIT]) or bottom < u32(plan[LEAST_NORMAL] - 1):
        count_small(kind, a, b, n, table, context)
    else:
        view(context, CONTEXT, np.int64)[SCRATCH_AT + COUNT] += n


@outside
def set_marks(marks, context):  # pragma: no cover - compiled
    """Raise and lower the marks to what a recount found."""
    seen, scratch = view(marks, 2, u32), view(context + 8 * SCRATCH_AT, SCRATCH, np.int64)
    seen[0] = max(seen[0], u32(_towards_zero32(scratch[LARGEST])))
    seen[1] = min(seen[1], u32(_towards_zero32(min(scratch[SMALLEST], HIGHEST))))


PLANNED = len(PLAN)
LIMIT, LEAST_NORMAL = PLAN.index("limit_positive"), PLAN.index("least_normal")
HIGHEST = (2047 << 52) - 1


@device
def rounded(c, style, rule):
    """Return the bits of cast(c) of a float32."""
    bits = as_uint32(c)
    m = u32(bits & MAGNITUDE32)
    return nearest_finish32(nearest_magnitude32(m, style, rule), m, u32(bits & SIGN32), rule)


@outside
def cast_block(a, y, n, table, marks, context):  # pragma: no cover - compiled
    """Set y = cast(a); `y` may be `a` where nothing is counted."""
    p, z, rule = view(a, n, f32), view(y, n, f32), rule32(view(table, PLANNED, np.int64))
    top, bottom = U0, EVERY
    if rule.style == MAGIC:
        for i in range(n):
            m = u32(as_uint32(p[i]) & MAGNITUDE32)
            top, bottom = max(top, m), min(bottom, u32(m - U1))
            z[i] = as_float32(rounded(p[i], MAGIC, rule))
    else:
        for i in range(n):
            m = u32(as_uint32(p[i]) & MAGNITUDE32)
            top, bottom = max(top, m), min(bottom, u32(m - U1))
            z[i] = as_float32(rounded(p[i], INTEGER, rule))
    tally(CAST, a, a, n, top, bottom, 0, table, marks, context)


@outside
def add_block(a, b, y, n, table, marks, context):  # pragma: no cover - compiled
    """Set y = a + b."""
    p, q, z = view(a, n, f32), view(b, n, f32), view(y, n, f32)
    rule = rule32(view(table, PLANNED, np.int64))
    top, bottom = U0, EVERY
    if rule.style == MAGIC:
        for i in range(n):
            c = np.float32(p[i] + q[i])
            m = u32(as_uint32(c) & MAGNITUDE32)
            top, bottom = max(top, m), min(bottom, u32(m - U1))
            z[i] = as_float32(rounded(c, MAGIC, rule))
    else:
        for i in range(n):
            c = np.float32(p[i] + q[i])
            m = u32(as_uint32(c) & MAGNITUDE32)
            top, bottom = max(top, m), min(bottom, u32(m - U1))
            z[i] = as_float32(rounded(c, INTEGER, rule))
    tally(ADD, a, b, n, top, bottom, 1, table, marks, context)


@outside
def sub_block(a, b, y, n, table, marks, context):  # pragma: no cover - compiled
    """Set y = a - b."""
    p, q, z = view(a, n, f32), view(b, n, f32), view(y, n, f32)
    rule = rule32(view(table, PLANNED, np.int64))
    top, bottom = U0, EVERY
    if rule.style == MAGIC:
        for i in range(n):
            c = np.float32(p[i] - q[i])
            m = u32(as_uint32(c) & MAGNITUDE32)
            top, bottom = max(top, m), min(bottom, u32(m - U1))
            z[i] = as_float32(rounded(c, MAGIC, rule))
    else:
        for i in range(n):
            c = np.float32(p[i] - q[i])
            m = u32(as_uint32(c) & MAGNITUDE32)
            top, bottom = max(top, m), min(bottom, u32(m - U1))
            z[i] = as_float32(rounded(c, INTEGER, rule))
    tally(SUB, a, b, n, top, bottom, 1, table, marks, context)


@outside
def mul_block(a, b, y, n, table, marks, context):  # pragma: no cover - compiled
    """Set y = a b. A float32 product of nonzero bfloat16 numbers may be zero: such a block is recounted."""
    p, q, z = view(a, n, f32), view(b, n, f32), view(y, n, f32)
    rule = rule32(view(table, PLANNED, np.int64))
    top, bottom = U0, EVERY
    if rule.style == MAGIC:
        for i in range(n):
            c = np.float32(p[i] * q[i])
            m = u32(as_uint32(c) & MAGNITUDE32)
            top, bottom = max(top, m), min(bottom, u32(m - U1))
            z[i] = as_float32(rounded(c, MAGIC, rule))
    else:
        for i in range(n):
            c = np.float32(p[i] * q[i])
            m = u32(as_uint32(c) & MAGNITUDE32)
            is_lost = (m == U0) & (p[i] != np.float32(0.0)) & (q[i] != np.float32(0.0))
            top, bottom = max(top, INF32 if is_lost else m), min(bottom, u32(m - U1))
            z[i] = as_float32(rounded(c, INTEGER, rule))
    tally(MUL, a, b, n, top, bottom, 0 if rule.style == MAGIC else 1, table, marks, context)


@outside
def div_block(a, b, y, n, table, marks, context):  # pragma: no cover - compiled
    """Set y = a / b; as for products, a lost quotient has its block recounted."""
    p, q, z = view(a, n, f32), view(b, n, f32), view(y, n, f32)
    rule = rule32(view(table, PLANNED, np.int64))
    top, bottom = U0, EVERY
    if rule.style == MAGIC:
        for i in range(n):
            c = np.float32(p[i] / q[i])
            m = u32(as_uint32(c) & MAGNITUDE32)
            top, bottom = max(top, m), min(bottom, u32(m - U1))
            z[i] = as_float32(rounded(c, MAGIC, rule))
    else:
        for i in range(n):
            c = np.float32(p[i] / q[i])
            m = u32(as_uint32(c) & MAGNITUDE32)
            is_lost = (m == U0) & (p[i] != np.float32(0.0))
            top, bottom = max(top, INF32 if is_lost else m), min(bottom, u32(m - U1))
            z[i] = as_float32(rounded(c, INTEGER, rule))
    tally(DIV, a, b, n, top, bottom, 1, table, marks, context)
