"""Sums to nearest, 64 rows at a time: the fast kernel of sums, tile by tile within the first-level cache.

A group of rows that saw anything special is marked as failed and has counted nothing: `sum_lines` does it again.
Orders and their codes are those of one_sum.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import as_uint32, kernel, outside, view
from normstab.numerics.kernels.cpu.counting import SCRATCH, clear
from normstab.numerics.kernels.cpu.sums.one_sum import BLOCKED, BLOCKS_ONLY, PAIRWISE
from normstab.numerics.kernels.cpu.sums.one_sum import LANES as LANES_ORDER
from normstab.numerics.kernels.cpu.sums.row_stretches import (
    is_in_stretches,
    sum_blocks_of_rows,
    sum_halves_of_rows,
    sum_lanes_of_rows,
)
from normstab.numerics.kernels.cpu.sums.tiles import (
    BLOCK,
    LEVELS,
    LINE,
    MOVED,
    POSITIONS,
    SEEN_AT,
    SEEN_OF_ADDENDS,
    STACK,
    TILE,
    TOTAL,
    ZEROS,
    Plan,
    add_lines,
    fetch,
    fold_stack,
    forget,
    is_special,
    lie_side_by_side,
    move_lines,
    push_tree,
    put,
    settle_seen,
    tree,
)
from normstab.numerics.kernels.cpu.vector.lanes import LANES, chain
from normstab.numerics.kernels.nearest import SPECIAL, STYLE

__all__ = ["add_to_lanes", "room", "sum_tiles"]


@outside
def add_to_lanes(p, m, plan):  # pragma: no cover - compiled
    """Add m lines of the tile, the first of them position p, to the lane sums."""
    t = 0
    while t < m:
        lane = (p + t) % plan.width
        run = min(m - t, plan.width - lane)
        at = STACK + lane * LINE
        if p + t < plan.width:
            move_lines(TILE + t * LINE, at, run, plan)
        else:
            add_lines(at, 1, TILE + t * LINE, 1, at, 1, run, plan)
        t += run


@outside
def add_to_chains(p, m, group, rows, plan):  # pragma: no cover - compiled
    """Add m lines of the tile, the first of them position p, to sequential blocks, and these to the total."""
    t = 0
    while t < m:
        q = (p + t) % plan.width
        if q == 0:
            move_lines(TILE + t * LINE, BLOCK, 1, plan)
            t, q = t + 1, 1
        run = min(m - t, plan.width - q)
        at, seen = plan.base + TILE + t * LINE, plan.base + SEEN_AT
        chain(plan.base + BLOCK, at, LINE, run, plan.style, plan.counts, True, plan.table, seen)
        t += run
        if (p + t) % plan.width == 0 or p + t == plan.n:
            if plan.order == BLOCKS_ONLY:
                blocks = (plan.n + plan.width - 1) // plan.width
                put(BLOCK, group * blocks + (p + t - 1) // plan.width, blocks, rows, plan)
            elif p + t <= plan.width:
                move_lines(BLOCK, TOTAL, 1, plan)
            else:
                add_lines(TOTAL, 0, BLOCK, 0, TOTAL, 0, 1, plan)


@outside
def sum_by_tiles(plan, group, rows):  # pragma: no cover - compiled
    """Leave the sums of a group of rows in TOTAL, from tiles."""
    depth, order = 0, plan.order
    is_side_by_side = lie_side_by_side(plan, group, rows)
    for p in range(0, plan.n, POSITIONS):
        m = min(POSITIONS, plan.n - p)
        fetch(plan, group, rows, p, m, is_side_by_side)
        if order == PAIRWISE:
            depth = push_tree(p, m, depth, plan)
        elif order == LANES_ORDER:
            add_to_lanes(p, m, plan)
        else:
            add_to_chains(p, m, group, rows, plan)
    if order == PAIRWISE:
        fold_stack(depth, plan)
    elif order == LANES_ORDER:
        tree(STACK, min(plan.width, plan.n), plan)
    if order in (PAIRWISE, LANES_ORDER):
        move_lines(STACK, TOTAL, 1, plan)


@outside
def sum_group(plan, group, rows, by_row):  # pragma: no cover - compiled
    """Leave the sums of a group of rows in TOTAL, along the rows or from tiles."""
    if by_row and plan.order == PAIRWISE:
        sum_halves_of_rows(plan, group, rows)
    elif by_row and plan.order == BLOCKED:
        sum_blocks_of_rows(plan, group, rows)
    elif by_row:
        sum_lanes_of_rows(plan, group, rows)
    else:
        sum_by_tiles(plan, group, rows)


def room(order: int, width: int, n: int) -> int:
    """Return how many bytes of buffers `sum_tiles` needs."""
    lines = max(LEVELS, width if order == LANES_ORDER else 0)
    partial = {PAIRWISE: n // 16, BLOCKED: n // width if width else 0}.get(order, 0)
    return STACK + LINE * (lines + partial + 4)


@kernel
def sum_tiles(
    x, out, first, last, kept, outer, n_outer, n_inner, step, order, width, table, sums, addends, counted, failed,
    least, base,
):  # fmt: skip  # pragma: no cover - compiled
    """Sum rows first .. last - 1, 64 at a time, into `sums` and `addends` (that moved); return how many failed.

    `base` is the address of room(order, width, n) bytes. `least` is 2^-100: where its product with 2^-40 is
    zero, subnormals are flushed and every row fails.
    """
    failures, spec, n = view(failed, last, np.uint8), view(table, 5, np.int64), n_outer * n_inner
    clear(view(sums, SCRATCH, np.int64))
    clear(view(addends, SCRATCH, np.int64))
    n_failed = 0
    flushes = as_uint32(np.float32(np.float32(least) * np.float32(2.0**-40))) == np.uint32(0)
    zeros = view(base + ZEROS, LANES, np.float32)
    for j in range(LANES):
        zeros[j] = np.float32(0.0)
    plan = Plan(x, kept, outer, n, n_inner, step, base, table, spec[STYLE], counted, order, width, out, 1)
    by_row = is_in_stretches(order, width, n_inner, step)
    for group in range(first, last, LANES):
        rows = min(LANES, last - group)
        forget(base + SEEN_AT, 3)
        if not flushes:
            sum_group(plan, group, rows, by_row)
        if flushes or is_special(base + SEEN_AT, spec[SPECIAL]) or is_special(base + SEEN_OF_ADDENDS, spec[SPECIAL]):
            n_failed += rows
            for r in range(rows):
                failures[group + r] = 1
            continue
        for r in range(rows):
            failures[group + r] = 0
        if order != BLOCKS_ONLY:
            put(TOTAL, group, 1, rows, plan)
        if counted:
            blocks = (n + width - 1) // width if order == BLOCKS_ONLY else 1
            settle_seen(sums, rows * (n - blocks), base + SEEN_AT)
            moved, n_moved = view(base + MOVED, 16, np.uint32), np.int64(0)
            for j in range(16):
                n_moved += np.int64(moved[j])
            settle_seen(addends, n_moved, base + SEEN_OF_ADDENDS)
    return n_failed
