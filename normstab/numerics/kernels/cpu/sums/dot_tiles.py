"""Products of matrices to nearest, 64 columns at a time: the fast kernel of emulated accumulators.

Products that float32 holds exactly, as of operands of p <= 11, are one instruction; others are rounded to odd on the
way (`survey` tells which). A row of 64 columns that saw anything special is marked as failed and has counted nothing:
`dot_lines` does it again.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import as_uint32, kernel, outside, view
from normstab.numerics.kernels.cpu.sums.one_sum import BLOCKED, SEQUENTIAL
from normstab.numerics.kernels.cpu.sums.one_sum import LANES as LANES_ORDER
from normstab.numerics.kernels.cpu.sums.sum_tiles import add_to_lanes
from normstab.numerics.kernels.cpu.sums.tiles import (
    BLOCK,
    LEVELS,
    LINE,
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
    fold_stack,
    forget,
    is_special,
    move_lines,
    push_tree,
    put,
    settle_seen,
    tree,
)
from normstab.numerics.kernels.cpu.vector.lanes import LANES, multiply, multiply_chain, transpose, word
from normstab.numerics.kernels.nearest import PLAIN, SPECIAL, STYLE

__all__ = ["dot_room", "dot_tiles", "padded", "survey"]

u32 = np.uint32


@kernel
def survey(x, rows, n_rows, n, step, found):  # pragma: no cover - compiled
    """Set three uint32 at `found`: all bits that occur, the largest and the smallest nonzero magnitude (bits)."""
    result = view(found, 3, u32)
    any_bits, top, bottom = u32(0), u32(0), u32(0xFFFFFFFF)
    for r in range(n_rows):
        values = view(x + 4 * word(rows + 8 * r), (n - 1) * step + 1, u32)
        for i in range(n):
            size = u32(values[i * step] & u32(0x7FFFFFFF))
            any_bits = u32(any_bits | size)
            top, bottom = max(top, size), min(bottom, u32(size - u32(1)))
    result[0], result[1], result[2] = any_bits, top, u32(bottom + u32(1))


@outside
def pack(b, columns, b_step, found, k, panel, base, table):  # pragma: no cover - compiled
    """Lay `found` columns of b side by side: k lines at `panel`; lanes beyond them are zero."""
    is_side_by_side = found >= 8
    for j in range(1, found):
        is_side_by_side = is_side_by_side and word(columns + 8 * j) == word(columns) + j
    if is_side_by_side:
        for t in range(k):
            source, target = b + 4 * (word(columns) + t * b_step), panel + t * LINE
            if found < LANES:
                copy_floats(base + ZEROS, 1, target, LANES)
            copy_floats(source, 1, target, found)
        return
    addresses = view(base + ROWS, LANES, np.int64)
    for p in range(0, k, POSITIONS):
        m = min(POSITIONS, k - p)
        for j in range(LANES):
            if j >= found:
                addresses[j] = base + ZEROS
            elif b_step == 1 and m % 16 == 0:
                addresses[j] = b + 4 * (word(columns + 8 * j) + p)
            else:
                addresses[j] = base + ROOM + j * LINE
                copy_floats(b + 4 * (word(columns + 8 * j) + p * b_step), b_step, addresses[j], m)
        transpose(base + ROWS, m, panel + p * LINE, LINE, PLAIN, table, base + SEEN_OF_ADDENDS)


@outside
def dot_line(plan, a, panel):  # pragma: no cover - compiled
    """Leave in TOTAL the sums over k of a row of k floats at `a` times the lines at `panel`."""
    seen, of_products, depth = plan.base + SEEN_AT, plan.base + SEEN_OF_ADDENDS, 0
    if plan.order in (SEQUENTIAL, BLOCKED):
        for start in range(0, plan.n, plan.width):
            run, line = min(plan.width, plan.n - start), panel + start * LINE
            at = a + 4 * start
            multiply(at, line, plan.base + BLOCK, 1, plan.style, plan.counts, plan.exact, plan.table, of_products)
            multiply_chain(
                plan.base + BLOCK,
                at + 4,
                line + LINE,
                run - 1,
                plan.style,
                plan.counts,
                plan.exact,
                plan.table,
                seen,
                of_products,
            )
            if start == 0:
                move_lines(BLOCK, TOTAL, 1, plan)
            else:
                add_lines(TOTAL, 0, BLOCK, 0, TOTAL, 0, 1, plan)
        return
    for p in range(0, plan.n, POSITIONS):
        m = min(POSITIONS, plan.n - p)
        line = panel + p * LINE
        multiply(a + 4 * p, line, plan.base + TILE, m, plan.style, plan.counts, plan.exact, plan.table, of_products)
        if plan.order == LANES_ORDER:
            add_to_lanes(p, m, plan)
        else:
            depth = push_tree(p, m, depth, plan)
    if plan.order == LANES_ORDER:
        tree(STACK, min(plan.width, plan.n), plan)
    else:
        fold_stack(depth, plan)
    move_lines(STACK, TOTAL, 1, plan)


def padded(k: int) -> int:
    """Return how many floats a row of k and lines of it have room for: whole cache lines, and one more."""
    return (k + 15) // 16 * 16 + 16


def dot_room(order: str, width: int, k: int) -> int:
    """Return how many bytes of buffers `dot_tiles` needs."""
    lines = max(LEVELS, width if order == "lanes" else 0)
    return STACK + LINE * lines + (4 + LINE) * padded(k)


@kernel
def dot_tiles(
    a, a_rows, a_step, b, b_columns, b_step, out, first, last, m, n, k, order, width, table, exact, products, sums,
    counted, failed, least, base, factors,
):  # fmt: skip  # pragma: no cover - compiled
    """Compute rows first .. last - 1 of a product (B, M), N; `products` and `sums` are scratches.

    `exact`: float32 holds every product.

    `base` is the address of dot_room(...) bytes, the last of them, at `factors`, for a row of a and the packed
    columns of b. `failed` has one byte for each row and each 64 columns. `least` as in sum_tiles.
    """
    blocks, spec = (n + LANES - 1) // LANES, view(table, 5, np.int64)
    failures = view(failed, last * blocks, np.uint8)
    flushes = as_uint32(np.float32(np.float32(least) * np.float32(2.0**-40))) == u32(0)
    zeros = view(base + ZEROS, LANES, np.float32)
    for j in range(LANES):
        zeros[j] = np.float32(0.0)
    panel = factors + 4 * ((k + 15) // 16 * 16 + 16)
    plan = Plan(0, 0, 0, k, k, 1, base, table, spec[STYLE], counted, order, width, out, exact)
    for block in range(blocks):
        found, packed = min(LANES, n - block * LANES), -1
        for row in range(first, last):
            if row // m != packed:
                packed = row // m
                pack(b, b_columns + 8 * (packed * n + block * LANES), b_step, found, k, panel, base, table)
            source = a + 4 * word(a_rows + 8 * row)
            if a_step != 1:
                copy_floats(source, a_step, factors, k)
                source = factors
            forget(base + SEEN_AT, 2)
            if not flushes:
                dot_line(plan, source, panel)
            special = spec[SPECIAL]
            if flushes or is_special(base + SEEN_AT, special) or is_special(base + SEEN_OF_ADDENDS, special):
                failures[row * blocks + block] = 1
                continue
            put(TOTAL, row * n + block * LANES, 1, found, plan)
            if counted:
                settle_seen(sums, found * (k - 1), base + SEEN_AT)
                settle_seen(products, found * k, base + SEEN_OF_ADDENDS)
