"""Sums over a group, fed block by block: in lanes of float32, in lanes of any format, or one after another.

    lanes (width 4)   [ x0 + x4 + ... | x1 + x5 + ... | x2 + ... | x3 + ... ]     a row of lanes is added at once
    partial           what one_sum keeps of any other order, one addend after another

A stream is an open sum: its float32 lanes and, for the general order, its partial sums, the indices of their
first leaves, and the state of `take` (see numerics.kernels.cpu.sums.one_sum). The backward pass has five open at once.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.norms.cpu.block_steps import ADD, sums_exact_upto
from normstab.norms.cpu.environment import SLOTS, context_at, field, floats, index_of, integers, mark_at, slot
from normstab.norms.cpu.lane_sums import fold_quickly, lane_sum
from normstab.norms.cpu.scalars import cast_scalar
from normstab.norms.cpu.wide_blocks import draw_block, narrow, round_values, widen_both
from normstab.norms.fused.layer_table import FIELDS
from normstab.numerics.kernels.cpu.compile import as_float32, device, outside, view
from normstab.numerics.kernels.cpu.cpu_pointwise import widen
from normstab.numerics.kernels.cpu.sums.one_sum import LEVELS, finish, fold_lanes, take
from normstab.numerics.kernels.cpu.sums.steps import CONTEXT, DOWN, FOLDS, load_step
from normstab.numerics.kernels.cpu.to_odd import sum_to_odd
from normstab.numerics.kernels.format_table import PLAN

__all__ = ["LEVELS", "add_to_sum", "finish_sum"]

u32 = np.uint32
WIDTH, ORDER, IS_FAST, LANES_FIT, FLUSHES = (
    FIELDS.index(name) for name in ("width", "order", "is_fast", "lanes_fit", "flushes")
)
AT_LANES, AT_BEFORE, AT_PARTIAL, AT_LEAVES, AT_STATE = (
    SLOTS.index(name) for name in ("lanes", "before", "partial", "leaves", "state")
)
AT_TABLE, LEAST = SLOTS.index("table"), PLAN.index("least")
AT_P, AT_Q, AT_EXACT = (SLOTS.index(name) for name in ("p", "q", "exact"))
# Of a sum, in the contexts: its additions, then the casts of its addends, and the cast of the sum.
LOAD, CAST_SUM = 1, 2


@device
def is_open(env, site):
    """Whether a site has a call."""
    # A context without a call is all zeros, and formats of p <= 24 always fold.
    return view(context_at(env, site), CONTEXT, np.int64)[FOLDS] != 0


@device
def lanes_of(env, stream):
    """Return the address of the lanes of a stream."""
    return slot(env, AT_LANES) + 4 * max(field(env, WIDTH), LEVELS) * stream


@device
def quanta(env):
    """Return the float32 bits of the magnitude up to which sums of results are exact."""
    return sums_exact_upto(view(slot(env, AT_TABLE), LEAST + 1, np.int64)[LEAST])


@outside
def add_to_sum(stream, x, mask, group, first, n, total, site, env):  # pragma: no cover - compiled
    """Give n addends at x, number first .. of `total`, to a sum; `mask` keeps all bits or the magnitude's."""
    width, has_load, context = field(env, WIDTH), is_open(env, site + LOAD), context_at(env, site)
    # BLOCK is a multiple of the width, so that a block begins at lane 0.
    if field(env, IS_FAST):
        before, marks = slot(env, AT_BEFORE), mark_at(env, site)
        lane_sum(lanes_of(env, stream), before, x, mask, n, first, width, quanta(env), marks, context)
    elif field(env, LANES_FIT) and not has_load:
        wide_lanes(lanes_of(env, stream), x, mask, group, first, n, context, env)
    else:
        one_by_one(stream, x, mask, group, first, n, total, site, env)


@outside
def one_by_one(stream, x, mask, group, first, n, total, site, env):  # pragma: no cover - compiled
    """Add a block in any order, one addend after another."""
    width, order, has_load = field(env, WIDTH), field(env, ORDER), is_open(env, site + LOAD)
    room, v = max(width, LEVELS), view(x, n, u32)
    partial = view(slot(env, AT_PARTIAL) + 8 * room * stream, room, np.float64)
    leaves = integers(slot(env, AT_LEAVES) + 8 * room * stream, room)
    state = integers(slot(env, AT_STATE) + 16 * stream, 2)
    add, load = integers(context_at(env, site), CONTEXT), integers(context_at(env, site + LOAD), CONTEXT)
    for i in range(n):
        value, leaf = widen(u32(v[i] & mask)), index_of(env, group, first + i)
        if has_load:
            value = load_step(value, leaf, load)
        take(order, width, first + i, total, value, leaf, partial, leaves, state, add)


@outside
def wide_lanes(lanes, x, mask, group, first, n, context, env):  # pragma: no cover - compiled
    """Add a block to lanes of any format, a row of lanes at a time."""
    width, start = field(env, WIDTH), 0
    lane, v = floats(lanes, width), view(x, n, u32)
    if first == 0:
        start = min(width, n)
        for j in range(start):
            lane[j] = as_float32(u32(v[j] & mask))
    numbers = integers(context, CONTEXT)
    folds, down, flushes = numbers[FOLDS] != 0, numbers[DOWN] != 0, field(env, FLUSHES) != 0
    draw_block(env, group, first, n, context)
    p, q = view(slot(env, AT_P), width, np.float64), view(slot(env, AT_Q), width, np.float64)
    c = view(slot(env, AT_EXACT), width, np.float64)
    for base in range(start, n, width):
        m = min(width, n - base)
        widen_both(lanes, x + 4 * base, mask, m, flushes, env)
        for j in range(m):
            c[j] = sum_to_odd(p[j], q[j], folds, down)
        # An addition draws the bits of the addend that it takes in, which is number `base` and on of the block.
        round_values(ADD, m, base, context, env)
        narrow(lanes, m, flushes, env)


@outside
def finish_sum(stream, group, total, site, env):  # pragma: no cover - compiled
    """Return the sum of the `total` addends, cast where the role `sum` has a format."""
    width, order = field(env, WIDTH), field(env, ORDER)
    room = max(width, LEVELS)
    partial = view(slot(env, AT_PARTIAL) + 8 * room * stream, room, np.float64)
    leaves = integers(slot(env, AT_LEAVES) + 8 * room * stream, room)
    add = integers(context_at(env, site), CONTEXT)
    before, lanes, marks = slot(env, AT_BEFORE), lanes_of(env, stream), mark_at(env, site)
    k, context = min(width, total), context_at(env, site)
    # Lanes are joined in float32; where that has something to count, once more, exactly.
    if field(env, IS_FAST) and fold_quickly(lanes, before, k, quanta(env), marks, context):
        value = widen(view(before, 1, u32)[0])
    elif field(env, IS_FAST) or (field(env, LANES_FIT) and not is_open(env, site + LOAD)):
        lane = view(lanes, width, u32)
        for j in range(k):
            partial[j], leaves[j] = widen(lane[j]), index_of(env, group, j)
        fold_lanes(partial, leaves, k, add)
        value = partial[0]
    else:
        state = integers(slot(env, AT_STATE) + 16 * stream, 2)
        value = finish(order, width, total, partial, leaves, state, add)
    if is_open(env, site + CAST_SUM):
        return cast_scalar(value, group, site + CAST_SUM, env)
    return value
