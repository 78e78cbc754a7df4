"""Sums of rows that are contiguous stretches of memory: vectors go along a row, and no row is turned into a lane first.

    lanes     64 neighbours of a row are a line, which is added to the line before it; one row at a time
    pairwise  a row is halved four times where it lies; what is left of 64 rows goes through tiles, as a tree
    blocked   64 blocks, of one row or several, are the lanes of a tile; then the sums of the blocks

Each leaves the sums of a group of 64 rows in TOTAL, as `sum_tiles` does for rows of any other kind.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import device, outside, view
from normstab.numerics.kernels.cpu.sums.notes import tally
from normstab.numerics.kernels.cpu.sums.one_sum import BLOCKED, PAIRWISE
from normstab.numerics.kernels.cpu.sums.one_sum import LANES as LANES_ORDER
from normstab.numerics.kernels.cpu.sums.tiles import (
    BLOCK,
    LEVELS,
    LOST,
    LOST_OF_TOTAL,
    POSITIONS,
    ROOM,
    ROWS,
    STACK,
    TILE,
    TOTAL,
    ZEROS,
    begin_chain,
    chain_lines,
    copy_floats,
    element,
    fold_stack,
    gather_addends,
    gather_rows,
    move_lines,
    push_tree,
    round_lines,
    tree,
)
from normstab.numerics.kernels.cpu.vector.lane_operations import halve, is_counted, is_plain, word
from normstab.numerics.kernels.cpu.vector.lanes import KEPT_OF_HALVES
from normstab.numerics.kernels.cpu.vector.note_code import OF_SUMS
from normstab.numerics.kernels.cpu.vector.vectors import LANES, LINE

__all__ = ["is_in_stretches", "sum_blocks_of_rows", "sum_halves_of_rows", "sum_lanes_of_rows"]


HALVED = 256  # addends that four levels of a tree turn into 16


@outside
def gather(at, step, rows, m, target, plan):  # pragma: no cover - compiled
    """Turn m floats of each row, `step` bytes apart in the buffers, into m lines, and up to a multiple of 16."""
    addresses = view(plan.base + ROWS, LANES, np.int64)
    # Rows that there are not are zeros.
    for r in range(LANES):
        addresses[r] = plan.base + (at + r * step if r < rows else ZEROS)
    gather_rows(m, target, plan)


@outside
def sum_lanes_of_rows(plan, group, rows):  # pragma: no cover - compiled
    """Leave the sums of rows of contiguous stretches in TOTAL: 64 lanes of one row at a time."""
    for r in range(rows):
        line = ROOM + r * LINE
        for p in range(0, plan.n, plan.n_inner):
            source, lines, done = element(plan, group + r, p), plan.n_inner // LANES, 0
            while done < lines:
                m, at = min(POSITIONS, lines - done), source + done * LINE
                # Addends that move are counted, so that they are rounded in a copy, before they are added.
                if is_counted(plan.way) and not is_plain(plan.way):
                    copy_floats(at, 1, plan.base + TILE, m * LANES)
                    round_lines(TILE, m, plan)
                    at = plan.base + TILE
                # The first 64 are what the lanes begin with.
                if p == 0 and done == 0:
                    copy_floats(at, 1, plan.base + line, LANES)
                    if not is_counted(plan.way):
                        round_lines(line, 1, plan)
                    m, at, done = m - 1, at + LINE, 1
                chain_lines(line, LOST, at, m, is_counted(plan.way), plan)
                done += m
    gather(ROOM, LINE, rows, LANES, STACK, plan)
    tree(STACK, LANES, plan)
    move_lines(STACK, TOTAL, 1, plan)


@outside
def sum_halves_of_rows(plan, group, rows):  # pragma: no cover - compiled
    """Leave the pairwise sums of rows of contiguous stretches in TOTAL: the first levels along each row."""
    m, width = plan.n // 16, plan.n // 4  # sixteenths of a row, and their bytes
    halves = STACK + LEVELS * LINE
    for r in range(rows):
        target = plan.base + halves + r * width
        for p in range(0, plan.n, plan.n_inner):
            source, done = element(plan, group + r, p), 0
            while done < plan.n_inner:
                length = min(plan.n_inner - done, POSITIONS * LANES)
                at = source + 4 * done
                if is_counted(plan.way) and not is_plain(plan.way):
                    copy_floats(at, 1, plan.base + TILE, length)
                    round_lines(TILE, length // LANES, plan)
                    at = plan.base + TILE
                # Four levels over 256 neighbours leave 16 sums: what is left of a row is a sixteenth, in its order.
                turns = length // HALVED
                halve(plan.way, (at, target + (p + done) // 4, turns, plan.base))
                tally(plan, OF_SUMS, turns * KEPT_OF_HALVES)
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
    sums, addresses = STACK + LEVELS * LINE, view(plan.base + ROWS, LANES, np.int64)
    row, o, i = group, 0, 0
    for first in range(0, rows * blocks, LANES):
        for j in range(LANES):
            addresses[j] = plan.base + ZEROS
            if row < group + rows:
                addresses[j] = plan.x + 4 * (word(plan.kept + 16 * row) + word(plan.outer + 16 * o) + i)
            # Blocks of a row follow one another, and the next row begins
            # where one ends: 64 at a time, whatever rows they are of.
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
            gather_addends(m, plan)
            start = 0
            if p == 0:
                move_lines(TILE, BLOCK, 1, plan)
                begin_chain(LOST, plan)
                start = 1
            at = plan.base + TILE + start * LINE
            chain_lines(BLOCK, LOST, at, m - start, True, plan)
        copy_floats(plan.base + BLOCK, 1, plan.base + sums + 4 * first, LANES)
    for p in range(0, blocks, POSITIONS):
        lines, start = min(POSITIONS, blocks - p), 0
        gather(sums + 4 * p, 4 * blocks, rows, lines, TILE, plan)
        if p == 0:
            move_lines(TILE, TOTAL, 1, plan)
            begin_chain(LOST_OF_TOTAL, plan)
            start = 1
        at = plan.base + TILE + start * LINE
        chain_lines(TOTAL, LOST_OF_TOTAL, at, lines - start, True, plan)


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
