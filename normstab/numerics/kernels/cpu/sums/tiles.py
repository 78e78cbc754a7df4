"""Tiles: 64 rows of a tensor side by side in lanes, and what the fast kernels keep beside them.

    base  [ notes | TILE: 64 lines | TOTAL | BLOCK | what each lost | ROOM: 64 rows | ZEROS | ROWS | WORDS | STACK ... ]

    line p of TILE   [ x_0p x_1p x_2p ... x_63p ]     position p of 64 rows; below it position p + 1

A tile has positions outermost, so that one vector addition is one step of many sums, each in its own order. All of it
lies in one stretch of memory, the buffers, at the offsets (bytes) below. What is added here is whole lines, and the
trees of them.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from normstab.numerics.kernels.cpu.compile import as_uint32, device, outside, view
from normstab.numerics.kernels.cpu.sums.notes import SIZE_OF_NOTES, tally
from normstab.numerics.kernels.cpu.vector.lane_operations import (
    chain,
    copy_line,
    is_compensated,
    is_counted,
    is_drawn,
    is_plain,
    join,
    round_in_place,
    transpose,
    turn,
    word,
)
from normstab.numerics.kernels.cpu.vector.lanes import KEPT_OF_KAHAN
from normstab.numerics.kernels.cpu.vector.note_code import MOST_KEPT, OF_ADDENDS, OF_KAHAN, OF_SUMS
from normstab.numerics.kernels.cpu.vector.vectors import LANES, LINE, VECTORS

__all__ = [
    "BLOCK",
    "LEVELS",
    "LOST",
    "LOST_OF_TOTAL",
    "MOST_AT_ONCE",
    "POSITIONS",
    "ROOM",
    "ROWS",
    "STACK",
    "TILE",
    "TOTAL",
    "WORDS",
    "ZEROS",
    "Plan",
    "add_lines",
    "begin_chain",
    "chain_lines",
    "copy_floats",
    "element",
    "fetch",
    "fold_stack",
    "gather_addends",
    "gather_rows",
    "lie_side_by_side",
    "move_lines",
    "push_tree",
    "put",
    "round_lines",
    "tree",
]

f32, u32 = np.float32, np.uint32
POSITIONS = 64  # lines of a tile
LEVELS = 48  # of a tree of tiles
# How many lines a chain takes at once: the magnitudes of so many are kept.
MOST_AT_ONCE = MOST_KEPT * VECTORS // KEPT_OF_KAHAN
# Offsets, after the notes: the tile, sums of chains and of their blocks, what these lost, room for 64 rows that are
# not contiguous, zeros, the addresses of rows, random words; last, a stack or lane sums.
TILE = SIZE_OF_NOTES
TOTAL, BLOCK, LOST_OF_TOTAL, LOST, ROOM = (TILE + (POSITIONS + i) * LINE for i in range(5))
ZEROS = ROOM + LANES * LINE
ROWS, WORDS, STACK = ZEROS + LINE, ZEROS + 3 * LINE, ZEROS + 5 * LINE

# How it rounds and counts; addresses of x, of its rows and outer positions (offset, index) and of the buffers; the
# shape of the reduction; of products, whether float32 holds them; the address of a table of draws.
Plan: Any = namedtuple(  # type: ignore[misc]
    "Plan",
    "way x kept outer n n_inner step base order width out exact draws",
)


@outside
def add_lines(a, a_step, x, x_step, y, y_step, n, plan):  # pragma: no cover - compiled
    """Join n lines, 64 at most: offsets in the buffers, steps in lines."""
    base = plan.base
    join(plan.way, (base + a, a_step * LINE, base + x, x_step * LINE, base + y, y_step * LINE, n, base))
    tally(plan, OF_SUMS, n * VECTORS)


@outside
def begin_chain(lost, plan):  # pragma: no cover - compiled
    """Say that a chain has lost nothing yet."""
    if is_compensated(plan.way):
        move_lines(ZEROS, lost, 1, plan)


@outside
def chain_lines(total, lost, x, n, fits, plan):  # pragma: no cover - compiled
    """Add n lines from address x on to that at offset `total`, whose lost part is at `lost`; `fits` as in lanes."""
    most = MOST_AT_ONCE if is_compensated(plan.way) else POSITIONS
    for start in range(0, n, most):
        run = min(most, n - start)
        chain(plan.way, (plan.base + total, plan.base + lost, x + start * LINE, run, fits, plan.base))
        tally(plan, OF_SUMS, run * VECTORS)
        if is_compensated(plan.way):
            tally(plan, OF_KAHAN, run * KEPT_OF_KAHAN)


@outside
def move_lines(source, target, n, plan):  # pragma: no cover - compiled
    """Copy n lines within the buffers, with their random bits."""
    copy_floats(plan.base + source, 1, plan.base + target, n * LANES)
    if is_drawn(plan.way):
        copy_floats(plan.base + plan.way.away + source, 1, plan.base + plan.way.away + target, n * LANES)


@outside
def round_lines(at, n, plan):  # pragma: no cover - compiled
    """Round n lines of addends, 64 at most, to the format, in place."""
    if not is_plain(plan.way):
        round_in_place(plan.way, (plan.base + at, n * VECTORS, plan.base))
        tally(plan, OF_ADDENDS, n * VECTORS)


@outside
def tree(at, m, plan):  # pragma: no cover - compiled
    """Add m lines pairwise, level by level, into the first."""
    while m > 1:
        half = m // 2
        for start in range(0, half, POSITIONS):
            left = at + 2 * start * LINE
            add_lines(left, 2, left + LINE, 2, at + start * LINE, 1, min(POSITIONS, half - start), plan)
        if m % 2:
            move_lines(at + (m - 1) * LINE, at + half * LINE, 1, plan)
        m = half + m % 2


@device
def element(plan, row, p):
    """Return the address of position p of a row."""
    o, i = p // plan.n_inner, p % plan.n_inner
    return plan.x + 4 * (word(plan.kept + 16 * row) + word(plan.outer + 16 * o) + i * plan.step)


@outside
def copy_floats(source, step, target, n):  # pragma: no cover - compiled
    """Copy n floats that are `step` apart to an address."""
    x, y = view(source, (n - 1) * step + 1, f32), view(target, n, f32)
    if step == 1:
        for j in range(n):
            y[j] = x[j]
    else:
        for j in range(n):
            y[j] = x[j * step]


@outside
def copy_positions(plan, row, p, m, target):  # pragma: no cover - compiled
    """Copy positions p .. p + m - 1 of a row to an address."""
    done = 0
    while done < m:
        run = min(plan.n_inner - (p + done) % plan.n_inner, m - done)
        copy_floats(element(plan, row, p + done), plan.step, target + 4 * done, run)
        done += run


@outside
def lie_side_by_side(plan, group, rows):  # pragma: no cover - compiled
    """Whether the rows are neighbours in memory and their own elements are not."""
    if plan.step == 1 or rows < 8:
        return False
    for r in range(1, rows):  # noqa: SIM110 - numba compiles no generators here
        if word(plan.kept + 16 * (group + r)) != word(plan.kept + 16 * group) + r:
            return False
    return True


@outside
def fetch(plan, group, rows, p, m, is_side_by_side):  # pragma: no cover - compiled
    """Fill m lines of the tile from position p on, rounded to the format; lanes beyond `rows` are zero."""
    if is_side_by_side:
        for t in range(m):
            source, target = element(plan, group, p + t), plan.base + TILE + t * LINE
            if rows < LANES:
                copy_floats(plan.base + ZEROS, 1, target, LANES)
                copy_floats(source, 1, target, rows)
                source = target
            copy_line(plan.way, (source, target, POSITIONS * 4 * plan.step, plan.base))
        # Where nobody counts, the copy has rounded already.
        if is_counted(plan.way):
            round_lines(TILE, m, plan)
        return
    o, i = p // plan.n_inner, p % plan.n_inner
    # The turning reads sixteen floats at a time: from memory
    # itself only where that ends within the row's own.
    is_direct = plan.step == 1 and i + m <= plan.n_inner and m % 16 == 0
    start = plan.x + 4 * (word(plan.outer + 16 * o) + i * plan.step)
    addresses = view(plan.base + ROWS, LANES, np.int64)
    for r in range(LANES):
        if r >= rows:
            # Lanes without a row add zeros, which are nothing special, and are not counted.
            addresses[r] = plan.base + ZEROS
        elif is_direct:
            addresses[r] = start + 4 * word(plan.kept + 16 * (group + r))
        else:
            addresses[r] = plan.base + ROOM + r * LINE
            copy_positions(plan, group + r, p, m, addresses[r])
            # Sixteen positions are turned at once: what lies behind the last is rounded too, and must not seem special.
            behind = view(addresses[r] + 4 * m, -m % 16, f32)
            for j in range(-m % 16):
                behind[j] = f32(0.0)
    gather_addends(m, plan)


@outside
def gather_addends(m, plan):  # pragma: no cover - compiled
    """Turn m floats at each of the 64 addresses at ROWS into m lines of the tile, rounded to the format."""
    transpose(plan.way, (plan.base + ROWS, -(-m // 16) * 16, plan.base + TILE, LINE, plan.base))
    if is_counted(plan.way):
        round_lines(TILE, m, plan)


@outside
def gather_rows(m, target, plan):  # pragma: no cover - compiled
    """Turn m floats at each of the 64 addresses at ROWS into m lines, up to a multiple of 16, as they are."""
    turn((plan.base + ROWS, -(-m // 16) * 16, plan.base + target, LINE))


@outside
def put(at, first, step, rows, plan):  # pragma: no cover - compiled
    """Store one line as sums first, first + step, ...; every NaN is the canonical one."""
    sums, line = view(plan.out, first + (rows - 1) * step + 1, u32), view(plan.base + at, rows, f32)
    for r in range(rows):
        sums[first + r * step] = as_uint32(line[r]) if line[r] == line[r] else u32(0x7FC00000)


@outside
def push_tree(p, m, depth, plan):  # pragma: no cover - compiled
    """Add the m lines of the tile to the stack of a tree of tiles; return its depth."""
    tree(TILE, m, plan)
    move_lines(TILE, STACK + depth * LINE, 1, plan)
    number = p // POSITIONS
    # Full tiles are whole subtrees: they are joined as a binary counter carries, the older one on the left.
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
