"""Sums to nearest, 64 rows at a time: the fast kernel of sums, tile by tile within the first-level cache.

A group of rows that saw anything special is marked as failed and has counted nothing: `sum_lines` does it again.
Orders and their codes are those of one_sum.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import as_uint32, device, kernel, outside, view
from normstab.numerics.kernels.cpu.counting import SCRATCH, clear
from normstab.numerics.kernels.cpu.sums.one_sum import BLOCKED, BLOCKS_ONLY, PAIRWISE
from normstab.numerics.kernels.cpu.sums.one_sum import LANES as LANES_ORDER
from normstab.numerics.kernels.cpu.sums.tiles import (
    BLOCK,
    LEVELS,
    LINE,
    MOVED,
    POSITIONS,
    ROOM,
    ROWS,
    SEEN_AT,
    SEEN_OF_ADDENDS,
    STACK,
    TILE,
    TOTAL,
    ZEROS,
    Plan,
    add_lines,
    copy_floats,
    element,
    fetch,
    forget,
    gather_rows,
    is_special,
    lie_side_by_side,
    move_lines,
    put,
    round_lines,
    settle_seen,
    tree,
)
from normstab.numerics.kernels.cpu.vector.lanes import LANES, chain, halve, word
from normstab.numerics.kernels.nearest import PLAIN, SPECIAL, STYLE

__all__ = ["room", "sum_tiles"]

HALVED = 256  # addends that four levels of a tree turn into 16


@outside
def push_tree(p, m, depth, plan):  # pragma: no cover - compiled
    """Add the m lines of the tile to the stack of a tree of tiles; return its depth."""
    tree(TILE, m, plan)
    move_lines(TILE, STACK + depth * LINE, 1, plan)
    number = p // POSITIONS
    while number & 1:
        top = STACK + depth * LINE
        add_lines(top - LINE, 0, top, 0, top - LINE, 0, 1, plan)
        number, depth = number >> 1, depth - 1
    return depth + 1


@outside
def fold_stack(depth, plan):  # pragma: no cover - compiled
    """Join what is left on the stack of a tree, into its first line."""
    for d in range(depth - 1, 0, -1):
        top = STACK + d * LINE
        add_lines(top - LINE, 0, top, 0, top - LINE, 0, 1, plan)


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
def gather(at, step, rows, m, target, plan):  # pragma: no cover - compiled
    """Turn m floats of each row, `step` bytes apart in the buffers, into m lines, and up to a multiple of 16."""
    addresses = view(plan.base + ROWS, LANES, np.int64)
    for r in range(LANES):
        addresses[r] = plan.base + (at + r * step if r < rows else ZEROS)
    gather_rows(m, target, PLAIN, plan)


@outside
def sum_lanes_of_rows(plan, group, rows):  # pragma: no cover - compiled
    """Leave the sums of rows of contiguous stretches in TOTAL: 64 lanes of one row at a time."""
    for r in range(rows):
        line = ROOM + r * LINE
        for p in range(0, plan.n, plan.n_inner):
            source, lines, done = element(plan, group + r, p), plan.n_inner // LANES, 0
            while done < lines:
                m, at = min(POSITIONS, lines - done), source + done * LINE
                if plan.counts and plan.style != PLAIN:
                    copy_floats(at, 1, plan.base + TILE, m * LANES)
                    round_lines(TILE, m, plan)
                    at = plan.base + TILE
                if p == 0 and done == 0:
                    copy_floats(at, 1, plan.base + line, LANES)
                    if not plan.counts:
                        round_lines(line, 1, plan)
                    m, at, done = m - 1, at + LINE, 1
                seen = plan.base + SEEN_AT
                chain(plan.base + line, at, LINE, m, plan.style, plan.counts, plan.counts, plan.table, seen)
                done += m
    gather(ROOM, LINE, rows, LANES, STACK, plan)
    tree(STACK, LANES, plan)
    move_lines(STACK, TOTAL, 1, plan)


@outside
def sum_halves_of_rows(plan, group, rows):  # pragma: no cover - compiled
    """Leave the pairwise sums of rows of contiguous stretches in TOTAL: the first levels along each row."""
    m, width = plan.n // 16, plan.n // 4  # sixteenths of a row, and their bytes
    halves, seen = STACK + LEVELS * LINE, plan.base + SEEN_AT
    for r in range(rows):
        target = plan.base + halves + r * width
        for p in range(0, plan.n, plan.n_inner):
            source, done = element(plan, group + r, p), 0
            while done < plan.n_inner:
                length = min(plan.n_inner - done, POSITIONS * LANES)
                at = source + 4 * done
                if plan.counts and plan.style != PLAIN:
                    copy_floats(at, 1, plan.base + TILE, length)
                    round_lines(TILE, length // LANES, plan)
                    at = plan.base + TILE
                halve(at, target + (p + done) // 4, length // HALVED, plan.style, plan.counts, plan.table, seen)
                done += length
    depth = 0
    for p in range(0, m, POSITIONS):
        lines = min(POSITIONS, m - p)
        gather(halves + 4 * p, width, rows, lines, TILE, plan)
        depth = push_tree(p, lines, depth, plan)
    fold_stack(depth, plan)
    move_lines(STACK, TOTAL, 1, plan)


@outside
def sum_blocks_of_rows(plan, group, rows):  # pragma: no cover - compiled
    """Leave the sums of rows of contiguous stretches in TOTAL: 64 blocks at a time, then the block sums."""
    blocks = plan.n // plan.width
    sums, addresses, seen = STACK + LEVELS * LINE, view(plan.base + ROWS, LANES, np.int64), plan.base + SEEN_AT
    row, o, i = group, 0, 0
    for first in range(0, rows * blocks, LANES):
        for j in range(LANES):
            addresses[j] = plan.base + ZEROS
            if row < group + rows:
                addresses[j] = plan.x + 4 * (word(plan.kept + 16 * row) + word(plan.outer + 16 * o) + i)
            i += plan.width
            if i == plan.n_inner:
                o, i = o + 1, 0
                if o * plan.n_inner == plan.n:
                    row, o = row + 1, 0
        for p in range(0, plan.width, POSITIONS):
            m = min(POSITIONS, plan.width - p)
            if p > 0:
                for j in range(min(LANES, rows * blocks - first)):
                    addresses[j] += 4 * POSITIONS
            gather_rows(m, TILE, PLAIN if plan.counts else plan.style, plan)
            if plan.counts:
                round_lines(TILE, m, plan)
            start = 0
            if p == 0:
                move_lines(TILE, BLOCK, 1, plan)
                start = 1
            at = plan.base + TILE + start * LINE
            chain(plan.base + BLOCK, at, LINE, m - start, plan.style, plan.counts, True, plan.table, seen)
        copy_floats(plan.base + BLOCK, 1, plan.base + sums + 4 * first, LANES)
    for p in range(0, blocks, POSITIONS):
        lines, start = min(POSITIONS, blocks - p), 0
        gather(sums + 4 * p, 4 * blocks, rows, lines, TILE, plan)
        if p == 0:
            move_lines(TILE, TOTAL, 1, plan)
            start = 1
        at = plan.base + TILE + start * LINE
        chain(plan.base + TOTAL, at, LINE, lines - start, plan.style, plan.counts, True, plan.table, seen)


@device
def is_in_stretches(order, width, n_inner, step):
    """Whether rows are contiguous stretches that the kernels along a row can take."""
    if step != 1:
        return False
    if order == BLOCKED:
        return width % 16 == 0 and n_inner % width == 0 and width < n_inner
    return (order == LANES_ORDER and width == LANES and n_inner % LANES == 0) or (
        order == PAIRWISE and n_inner % HALVED == 0
    )


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
        if flushes:
            pass
        elif by_row and order == PAIRWISE:
            sum_halves_of_rows(plan, group, rows)
        elif by_row and order == BLOCKED:
            sum_blocks_of_rows(plan, group, rows)
        elif by_row:
            sum_lanes_of_rows(plan, group, rows)
        else:
            sum_by_tiles(plan, group, rows)
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
