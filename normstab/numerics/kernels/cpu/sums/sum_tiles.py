"""Sums to nearest, 64 rows at a time: the fast kernel of sums, tile by tile within the first-level cache.

    rows of x        lanes 0 .. 63, a group
    positions        [ tile: 0 .. 63 ][ 64 .. 127 ][ ... ]     fetched, added to TOTAL, BLOCK or STACK, and forgotten

The additions of a sum depend on one another and cannot be hurried, but those of 64 sums do not: so lanes are rows.
A group of rows that saw anything special is marked as failed and has counted nothing: `sum_lines` does it again.
Orders and their codes are those of one_sum.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import kernel, outside, view
from normstab.numerics.kernels.cpu.counting import SCRATCH, clear
from normstab.numerics.kernels.cpu.sums.draws import draw_addends
from normstab.numerics.kernels.cpu.sums.notes import (
    begin_group,
    drop_exponents,
    has_special,
    number_moved,
    settle_group,
)
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
    LOST,
    LOST_OF_TOTAL,
    POSITIONS,
    STACK,
    TILE,
    TOTAL,
    ZEROS,
    Plan,
    add_lines,
    begin_chain,
    chain_lines,
    fetch,
    fold_stack,
    lie_side_by_side,
    move_lines,
    push_tree,
    put,
    tree,
)
from normstab.numerics.kernels.cpu.vector.lane_operations import is_compensated, is_counted, is_drawn
from normstab.numerics.kernels.cpu.vector.note_code import NOTES_OF_GROUP, OF_ADDENDS, OF_KAHAN, OF_SUMS
from normstab.numerics.kernels.cpu.vector.vectors import LANES, LINE

__all__ = ["add_to_chains", "add_to_lanes", "room", "sum_tiles"]


@outside
def add_to_lanes(p, m, plan):  # pragma: no cover - compiled
    """Add m lines of the tile, the first of them position p, to the lane sums."""
    t = 0
    while t < m:
        lane = (p + t) % plan.width
        run = min(m - t, plan.width - lane)
        at = STACK + lane * LINE
        if p + t < plan.width:
            # The first addends of the lanes are taken as they are.
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
            begin_chain(LOST, plan)
            t, q = t + 1, 1
        run = min(m - t, plan.width - q)
        chain_lines(BLOCK, LOST, plan.base + TILE + t * LINE, run, True, plan)
        t += run
        # A block ends here, though perhaps not the tile: what is open in BLOCK goes on in the next.
        if (p + t) % plan.width == 0 or p + t == plan.n:
            if plan.order == BLOCKS_ONLY:
                blocks = (plan.n + plan.width - 1) // plan.width
                put(BLOCK, group * blocks + (p + t - 1) // plan.width, blocks, rows, plan)
            elif p + t <= plan.width:
                move_lines(BLOCK, TOTAL, 1, plan)
                begin_chain(LOST_OF_TOTAL, plan)
            else:
                chain_lines(TOTAL, LOST_OF_TOTAL, plan.base + BLOCK, 1, True, plan)


@outside
def sum_by_tiles(plan, group, rows):  # pragma: no cover - compiled
    """Leave the sums of a group of rows in TOTAL, from tiles."""
    depth, order = 0, plan.order
    is_side_by_side = lie_side_by_side(plan, group, rows)
    for p in range(0, plan.n, POSITIONS):
        m = min(POSITIONS, plan.n - p)
        fetch(plan, group, rows, p, m, is_side_by_side)
        if is_drawn(plan.way):
            draw_addends(plan, group, rows, p, m)
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
    way, x, out, first, last, kept, outer, n_outer, n_inner, step, order, width, counts, apart, bins, failed, base,
    draws,
):  # fmt: skip  # pragma: no cover - compiled
    """Sum rows first .. last - 1, 64 at a time; return how many failed.

    `counts` is the address of a scratch for sums; `apart` bytes after it is that for addends (that moved), then that
    for Kahan's corrections; `bins` that of a histogram for each, or 0. `base` has room(order, width, n) bytes.
    `draws` is the address of a table of random bits, or 0.
    """
    failures, n, n_failed = view(failed, last, np.uint8), n_outer * n_inner, 0
    for which in range(NOTES_OF_GROUP):
        clear(view(counts + which * apart, SCRATCH, np.int64))
    zeros = view(base + ZEROS, LANES, np.float32)
    for j in range(LANES):
        zeros[j] = np.float32(0.0)
    plan = Plan(way, x, kept, outer, n, n_inner, step, base, order, width, out, 1, draws)
    by_row = is_in_stretches(order, width, n_inner, step) and not is_drawn(way)
    drop_exponents(plan)
    for group in range(first, last, LANES):
        rows = min(LANES, last - group)
        begin_group(plan)
        sum_group(plan, group, rows, by_row)
        has_failed = has_special(plan)
        for r in range(rows):
            failures[group + r] = has_failed
        if has_failed:
            drop_exponents(plan)
            n_failed += rows
            continue
        if order != BLOCKS_ONLY:
            put(TOTAL, group, 1, rows, plan)
        if is_counted(way):
            additions = rows * (n - ((n + width - 1) // width if order == BLOCKS_ONLY else 1))
            settle_group(plan, OF_SUMS, additions, counts, apart, bins)
            settle_group(plan, OF_ADDENDS, number_moved(plan), counts, apart, bins)
            if is_compensated(way):
                settle_group(plan, OF_KAHAN, 3 * additions, counts, apart, bins)
    return n_failed
