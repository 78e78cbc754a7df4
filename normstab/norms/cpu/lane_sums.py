"""Sums into lanes of float32: the addends of a chain a lane, one row after the other, counted as blocks are.

    before   [ l0 | l1 | l2 | ... ]     a copy, to begin again from
    x        [ x0 | x1 | x2 | ... ]     added, a row at a time; of all sums the extremes are noted
             [ xk | .. | .. | ... ]

In fp32 a sum of float32 numbers is the processor's own. Only what is counted needs more: a stretch with a record, a
subnormal, an infinity or a NaN is added once more in float64, one addition after the other.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.norms.cpu.block_steps import ADD, EVERY, exact, set_marks, widened
from normstab.norms.cpu.group_memory import copy
from normstab.numerics.kernels.cpu.bits import INF32, MAGNITUDE32, U0, U1, rule64
from normstab.numerics.kernels.cpu.compile import as_float32, as_float64, as_int64, as_uint32, device, outside, view
from normstab.numerics.kernels.cpu.counting import COUNT, round_counted64
from normstab.numerics.kernels.cpu.sums.steps import CONTEXT, COUNTS, SCRATCH_AT

__all__ = ["fold_quickly", "lane_sum"]

u32, f32 = np.uint32, np.float32
MIN_NORMAL = u32((1 << 23) - 1)


@outside
def lane_sum(lanes, before, x, mask, n, first, width, exact_upto, marks, context):  # pragma: no cover - compiled
    """Add x[:n], addends number first .. of a sum, to the float32 lanes; `mask` keeps all bits or the magnitude's.

    Addend p goes to lane p % width; `first` is a multiple of the width, and the first addend of a lane is stored,
    not added. `before` is room for the lanes as they were; sums up to `exact_upto` are exact.
    """
    lane, v = view(lanes, width, f32), view(x, n, u32)
    start = min(width, n) if first == 0 else 0
    for j in range(start):
        lane[j] = as_float32(u32(v[j] & mask))
    if start >= n:
        return
    copy(lanes, before, width)
    top, bottom = U0, EVERY
    # Rows of lanes, of which a compiler takes many at once; then the addends that are no whole row.
    rest = start
    while rest + width <= n:
        row = view(x + 4 * rest, width, u32)
        for j in range(width):
            s = np.float32(lane[j] + as_float32(u32(row[j] & mask)))
            lane[j] = s
            m = u32(as_uint32(s) & MAGNITUDE32)
            top, bottom = max(top, m), min(bottom, u32(m - U1))
        rest += width
    for j in range(n - rest):
        s = np.float32(lane[j] + as_float32(u32(v[rest + j] & mask)))
        lane[j] = s
        m = u32(as_uint32(s) & MAGNITUDE32)
        top, bottom = max(top, m), min(bottom, u32(m - U1))
    numbers, seen = view(context, CONTEXT, np.int64), view(marks, 2, u32)
    if numbers[COUNTS] == 0 and top < INF32:
        return
    is_odd = is_remarkable(top, bottom, seen)
    if not is_odd and seen[1] > exact_upto and u32(bottom + U1) == seen[1]:
        is_odd = sum_lies_below(before, x, mask, n, start, width, seen[1])
    if is_odd:
        recount_sum(lanes, before, x, mask, n, start, width, context)
        set_marks(marks, context)
    else:
        numbers[SCRATCH_AT + COUNT] += n - start


@device
def is_remarkable(top, bottom, seen):
    """Whether sums hold a record, an infinity, a NaN or a subnormal, given their extremes and those seen before."""
    is_record = top > seen[0] or (bottom != EVERY and u32(bottom + U1) < seen[1])
    return is_record or top >= INF32 or bottom < MIN_NORMAL


@outside
def fold_quickly(lanes, folded, k, exact_upto, marks, context):  # pragma: no cover - compiled
    """Add k float32 lanes pairwise, level by level, into `folded`, and count it; return whether that holds.

    False, with nothing counted, where `fold_lanes` has to do it: it alone counts records, subnormals, infinities and
    NaN. `folded` is room for k lanes.
    """
    lane, part = view(lanes, k, f32), view(folded, k, f32)
    for j in range(k):
        part[j] = lane[j]
    top, bottom, left = U0, EVERY, k
    while left > 1:
        for i in range(left // 2):
            s = np.float32(part[2 * i] + part[2 * i + 1])
            part[i] = s
            m = u32(as_uint32(s) & MAGNITUDE32)
            top, bottom = max(top, m), min(bottom, u32(m - U1))
        if left % 2:
            part[left // 2] = part[left - 1]
        left = (left + 1) // 2
    numbers, seen = view(context, CONTEXT, np.int64), view(marks, 2, u32)
    if numbers[COUNTS] == 0:
        return top < INF32
    if is_remarkable(top, bottom, seen) or (seen[1] > exact_upto and u32(bottom + U1) == seen[1]):
        return False
    numbers[SCRATCH_AT + COUNT] += k - 1
    return True


@outside
def sum_lies_below(before, x, mask, n, start, width, least):  # pragma: no cover - compiled
    """Return whether a sum that is `least` in float32 lies below it: the error has the other sign. See lane_sum."""
    lane, kept = np.empty(width, f32), view(before, width, f32)
    for j in range(width):
        lane[j] = kept[j]
    found = False
    for base in range(start, n, width):
        m = min(width, n - base)
        row = view(x + 4 * base, m, u32)
        for j in range(m):
            p, q = lane[j], as_float32(u32(row[j] & mask))
            s = np.float32(p + q)
            q_seen = np.float32(s - p)
            # TwoSum: the exact sum is s + error, and lies below s where their signs differ.
            error = np.float32(np.float32(p - np.float32(s - q_seen)) + np.float32(q - q_seen))
            is_least = u32(as_uint32(s) & MAGNITUDE32) == least
            found |= is_least & (error != np.float32(0.0)) & ((error < np.float32(0.0)) != (s < np.float32(0.0)))
            lane[j] = s
    return found


@outside
def recount_sum(lanes, before, x, mask, n, start, width, context):  # pragma: no cover - compiled
    """Add once more from the lanes as they were, each addition in float64, rounded to float32 and counted."""
    lane, v, numbers = view(lanes, width, f32), view(x, n, u32), view(context, CONTEXT, np.int64)
    copy(before, lanes, width)
    rule, scratch = rule64(numbers), numbers[SCRATCH_AT:]
    for i in range(start, n):
        j = i % width
        p, q = widened(lane[j]), widened(as_float32(u32(v[i] & mask)))
        has_nan, has_inf = p != p or q != q, abs(p) == np.inf or abs(q) == np.inf
        s = round_counted64(scratch, as_int64(exact(ADD, p, q)), 0, has_nan, has_inf, False, rule)
        lane[j] = np.float32(as_float64(s))
