"""Tiles: 64 rows of a tensor side by side in lanes, and what the fast kernels keep beside them.

A tile has positions outermost: a line of 64 lanes for each. All of it lies in one stretch of memory, the
buffers, at the offsets (bytes) below. What is added here is whole lines, and the trees of them.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from normstab.numerics.kernels.cpu.compile import as_float32, as_int64, as_uint32, device, outside, view
from normstab.numerics.kernels.cpu.counting import LARGEST, SCRATCH, SMALLEST, SUBNORMAL, UNDERFLOW
from normstab.numerics.kernels.cpu.vector.lanes import LANES, SEEN, copy_line, join, round_in_place, transpose, word
from normstab.numerics.kernels.nearest import PLAIN

__all__ = [
    "BLOCK",
    "LEVELS",
    "LINE",
    "MOVED",
    "POSITIONS",
    "ROOM",
    "ROWS",
    "SEEN_AT",
    "SEEN_OF_ADDENDS",
    "STACK",
    "TILE",
    "TOTAL",
    "ZEROS",
    "Plan",
    "add_lines",
    "copy_floats",
    "element",
    "fetch",
    "fold_stack",
    "forget",
    "gather_rows",
    "is_special",
    "lie_side_by_side",
    "move_lines",
    "push_tree",
    "put",
    "round_lines",
    "settle_seen",
    "tree",
]

f32, u32 = np.float32, np.uint32
LINE = 4 * LANES  # bytes of one position of a tile
POSITIONS = 64  # lines of a tile
LEVELS = 48  # of a tree of tiles
# Offsets: the tile, sums of chains and of their blocks, room for 64 rows that are not contiguous, zeros, the
# addresses of rows, what was seen of sums and of addends, how many of these moved; last, a stack or lane sums.
TILE, TOTAL, BLOCK, ROOM = 0, POSITIONS * LINE, (POSITIONS + 1) * LINE, (POSITIONS + 2) * LINE
ZEROS = ROOM + LANES * LINE
ROWS, SEEN_AT, STACK = ZEROS + LINE, ZEROS + 3 * LINE, ZEROS + 6 * LINE
SEEN_OF_ADDENDS, MOVED = SEEN_AT + 4 * SEEN, SEEN_AT + 8 * SEEN

# Addresses of x, of its rows and outer positions (offset, index) and of the buffers; the shape of the reduction;
# of products, whether float32 holds them.
Plan: Any = namedtuple(  # type: ignore[misc]
    "Plan",
    "x kept outer n n_inner step base table style counts order width out exact",
)


@outside
def add_lines(a, a_step, x, x_step, y, y_step, n, plan):  # pragma: no cover - compiled
    """Join n lines: offsets in the buffers, steps in lines."""
    join(
        plan.base + a, a_step * LINE, plan.base + x, x_step * LINE, plan.base + y, y_step * LINE, n,
        plan.style, plan.counts, plan.table, plan.base + SEEN_AT,
    )  # fmt: skip


@outside
def move_lines(source, target, n, plan):  # pragma: no cover - compiled
    """Copy n lines within the buffers."""
    copy_floats(plan.base + source, 1, plan.base + target, n * LANES)


@outside
def round_lines(at, n, plan):  # pragma: no cover - compiled
    """Round n lines of addends to the format, in place."""
    if plan.style != PLAIN:
        seen = plan.base + SEEN_OF_ADDENDS
        round_in_place(plan.base + at, 4 * n, plan.style, plan.counts, plan.base + MOVED, plan.table, seen)


@outside
def tree(at, m, plan):  # pragma: no cover - compiled
    """Add m lines pairwise, level by level, into the first."""
    while m > 1:
        half = m // 2
        add_lines(at, 2, at + LINE, 2, at, 1, half, plan)
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
    style = PLAIN if plan.counts else plan.style
    if is_side_by_side:
        for t in range(m):
            source, target = element(plan, group, p + t), plan.base + TILE + t * LINE
            if rows < LANES:
                copy_floats(plan.base + ZEROS, 1, target, LANES)
                copy_floats(source, 1, target, rows)
                source = target
            copy_line(source, target, POSITIONS * 4 * plan.step, style, plan.table, plan.base + SEEN_OF_ADDENDS)
        if plan.counts:
            round_lines(TILE, m, plan)
        return
    o, i = p // plan.n_inner, p % plan.n_inner
    is_direct = plan.step == 1 and i + m <= plan.n_inner and m % 16 == 0
    start = plan.x + 4 * (word(plan.outer + 16 * o) + i * plan.step)
    addresses = view(plan.base + ROWS, LANES, np.int64)
    for r in range(LANES):
        if r >= rows:
            addresses[r] = plan.base + ZEROS
        elif is_direct:
            addresses[r] = start + 4 * word(plan.kept + 16 * (group + r))
        else:
            addresses[r] = plan.base + ROOM + r * LINE
            copy_positions(plan, group + r, p, m, addresses[r])
    gather_rows(m, TILE, style, plan)
    if plan.counts:
        round_lines(TILE, m, plan)


@outside
def gather_rows(m, target, style, plan):  # pragma: no cover - compiled
    """Turn m floats at each of the 64 addresses at ROWS into m lines, rounded to `style`, up to a multiple of 16."""
    transpose(plan.base + ROWS, m, plan.base + target, LINE, style, plan.table, plan.base + SEEN_OF_ADDENDS)


@outside
def put(at, first, step, rows, plan):  # pragma: no cover - compiled
    """Store one line as sums first, first + step, ...; every NaN is the canonical one."""
    sums, line = view(plan.out, first + (rows - 1) * step + 1, u32), view(plan.base + at, rows, f32)
    for r in range(rows):
        sums[first + r * step] = as_uint32(line[r]) if line[r] == line[r] else u32(0x7FC00000)


@outside
def forget(seen, n):  # pragma: no cover - compiled
    """Make n blocks of what was seen empty."""
    words = view(seen, n * SEEN, u32)
    for j in range(n * SEEN):
        words[j] = u32(0xFFFFFFFF) if j % SEEN // 16 == 1 else u32(0)


@outside
def is_special(seen, special):  # pragma: no cover - compiled
    """Whether any magnitude in a block of what was seen is special."""
    words = view(seen, 16, u32)
    for j in range(16):  # noqa: SIM110 - numba compiles no generators here
        if words[j] >= u32(special):
            return True
    return False


@outside
def settle_seen(scratch, n, seen):  # pragma: no cover - compiled
    """Add n roundings and what was seen of them to a scratch."""
    counts, words = view(scratch, SCRATCH, np.int64), view(seen, SEEN, u32)
    counts[0] += n
    for j in range(16):
        counts[SUBNORMAL] += np.int64(words[32 + j])
        counts[UNDERFLOW] += np.int64(words[48 + j])
        if words[j] != u32(0):
            counts[LARGEST] = max(counts[LARGEST], as_int64(np.float64(as_float32(words[j]))))
            counts[SMALLEST] = min(counts[SMALLEST], as_int64(np.float64(as_float32(u32(words[16 + j] + u32(1))))))


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
