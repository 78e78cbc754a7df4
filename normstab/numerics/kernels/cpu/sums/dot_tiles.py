"""Products of matrices to nearest, 64 columns at a time: the fast kernel of emulated accumulators.

    panel, k lines     [ b_00 .. b_0,63 ]     64 columns of b side by side, laid so once for all rows of a batch
                       [ b_10 .. b_1,63 ]
    a row of a         a_0, a_1, ...          each times its line of the panel, added to 64 open sums

Products that float32 holds exactly, as of operands of p <= 11, are one instruction; others are rounded to odd on the
way (`survey` tells which). A row of 64 columns that saw anything special stays marked as left and has counted nothing:
a careful way does it again, or `dot_lines`.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import kernel, outside, view
from normstab.numerics.kernels.cpu.sums.draws import draw_products
from normstab.numerics.kernels.cpu.sums.notes import (
    begin_group,
    begin_panel,
    drop_exponents,
    has_special,
    settle_group,
    tally,
)
from normstab.numerics.kernels.cpu.sums.one_sum import BLOCKED, SEQUENTIAL
from normstab.numerics.kernels.cpu.sums.one_sum import LANES as LANES_ORDER
from normstab.numerics.kernels.cpu.sums.sum_tiles import add_to_chains, add_to_lanes
from normstab.numerics.kernels.cpu.sums.tiles import (
    BLOCK,
    LEVELS,
    LOST,
    LOST_OF_TOTAL,
    MOST_AT_ONCE,
    POSITIONS,
    ROOM,
    ROWS,
    STACK,
    TILE,
    TOTAL,
    ZEROS,
    Plan,
    begin_chain,
    chain_lines,
    copy_floats,
    fold_stack,
    gather_rows,
    move_lines,
    push_tree,
    put,
    tree,
)
from normstab.numerics.kernels.cpu.vector.lane_operations import (
    is_compensated,
    is_counted,
    is_drawn,
    is_fused,
    multiply,
    multiply_chain,
    word,
)
from normstab.numerics.kernels.cpu.vector.lanes import KEPT_OF_KAHAN
from normstab.numerics.kernels.cpu.vector.note_code import OF_ADDENDS, OF_KAHAN, OF_SUMS
from normstab.numerics.kernels.cpu.vector.vectors import INFINITY, LANES, LINE, MAGNITUDE, VECTORS

__all__ = ["dot_room", "dot_tiles", "padded", "survey"]

u32 = np.uint32


@kernel
def survey(x, rows, n_rows, n, step, found):  # pragma: no cover - compiled
    """Set four uint32 at `found`: all bits of finite numbers, their largest and smallest nonzero magnitude; the others.

    Of these, infinities and NaN, how many there are.
    """
    result, special = view(found, 4, u32), u32(0)
    # All that decides between the ways: how many bits there are, and how large and small products can be.
    any_bits, top, bottom = u32(0), u32(0), u32(0xFFFFFFFF)
    for r in range(n_rows):
        values = view(x + 4 * word(rows + 8 * r), (n - 1) * step + 1, u32)
        for i in range(n):
            size = u32(values[i * step] & u32(MAGNITUDE))
            is_special = size >= u32(INFINITY)
            special = u32(special + u32(is_special))
            size = u32(0) if is_special else size
            any_bits = u32(any_bits | size)
            top, bottom = max(top, size), min(bottom, u32(size - u32(1)))
    result[0], result[1], result[2], result[3] = any_bits, top, u32(bottom + u32(1)), special


@outside
def pack(b, columns, b_step, found, panel, plan):  # pragma: no cover - compiled
    """Lay `found` columns of b side by side: n lines at `panel`; lanes beyond them are zero."""
    is_side_by_side, k, base = found >= 8, plan.n, plan.base
    for j in range(1, found):
        is_side_by_side = is_side_by_side and word(columns + 8 * j) == word(columns) + j
    if is_side_by_side:
        for t in range(k):
            source, target = b + 4 * (word(columns) + t * b_step), panel + t * LINE
            if found < LANES:
                # Idle lanes multiply zeros.
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
        gather_rows(m, panel + p * LINE - base, plan)


@outside
def multiply_lines(a, line, target, n, plan):  # pragma: no cover - compiled
    """Set n lines, 64 at most, at an offset to those at `line`, each times a float at a."""
    multiply(plan.way, (a, line, plan.base + target, n, plan.exact, plan.base))
    tally(plan, OF_ADDENDS, n * VECTORS)


@outside
def add_products(a, line, n, plan):  # pragma: no cover - compiled
    """Add n lines at `line`, each times a float at a, to the one at BLOCK."""
    base, most = plan.base, MOST_AT_ONCE if is_compensated(plan.way) else POSITIONS
    for start in range(0, n, most):
        run = min(most, n - start)
        multiply_chain(plan.way, (base + BLOCK, base + LOST, a + 4 * start, line + start * LINE, run, plan.exact, base))
        tally(plan, OF_SUMS, run * VECTORS)
        if not is_fused(plan.way):
            tally(plan, OF_ADDENDS, run * VECTORS)
        if is_compensated(plan.way):
            tally(plan, OF_KAHAN, run * KEPT_OF_KAHAN)


@outside
def dot_line(plan, a, panel, element, found):  # pragma: no cover - compiled
    """Leave in TOTAL the sums over k of a row of k floats at `a` times the lines at `panel`.

    The first of the `found` columns is number `element` of the result.
    """
    depth, is_chain = 0, plan.order in (SEQUENTIAL, BLOCKED)
    # Products of a chain are added as they are made, in registers.
    if is_chain and not is_drawn(plan.way):
        for start in range(0, plan.n, plan.width):
            run, line = min(plan.width, plan.n - start), panel + start * LINE
            at = a + 4 * start
            multiply_lines(at, line, BLOCK, 1, plan)
            begin_chain(LOST, plan)
            add_products(at + 4, line + LINE, run - 1, plan)
            if start == 0:
                move_lines(BLOCK, TOTAL, 1, plan)
                begin_chain(LOST_OF_TOTAL, plan)
            else:
                chain_lines(TOTAL, LOST_OF_TOTAL, plan.base + BLOCK, 1, True, plan)
        return
    # Else they are a tile, as addends are.
    for p in range(0, plan.n, POSITIONS):
        m = min(POSITIONS, plan.n - p)
        if is_drawn(plan.way):
            draw_products(plan, element, p, m)
        multiply_lines(a + 4 * p, panel + p * LINE, TILE, m, plan)
        if plan.order == LANES_ORDER:
            add_to_lanes(p, m, plan)
        elif is_chain:
            add_to_chains(p, m, 0, found, plan)
        else:
            depth = push_tree(p, m, depth, plan)
    if is_chain:
        return
    if plan.order == LANES_ORDER:
        tree(STACK, min(plan.width, plan.n), plan)
    else:
        fold_stack(depth, plan)
    move_lines(STACK, TOTAL, 1, plan)


def padded(k: int) -> int:
    """Return how many floats a row of k and lines of it have room for: whole cache lines, and one more."""
    return (k + 15) // 16 * 16 + 16


def dot_room(order: str, width: int) -> int:
    """Return how many bytes of buffers `dot_tiles` needs, but for a row and lines of factors."""
    return STACK + LINE * max(LEVELS, width if order == "lanes" else 0)


@kernel
def dot_tiles(
    way, a, a_rows, a_step, b, b_columns, b_step, out, first, last, m, n, k, order, width, exact, counts, apart, bins,
    left, base, factors, draws,
):  # fmt: skip  # pragma: no cover - compiled
    """Compute rows first .. last - 1 of a product (B, M), N; `exact`: float32 holds every product.

    `counts`, `apart` and `bins` as in sum_tiles, the second of each for products. `base` is the address of
    the buffers, `factors` that of room for a row of a and the packed columns of b. `left` has one byte for each row and
    each 64 columns: 1 as long as they are to be computed. `draws` as in sum_tiles.
    """
    blocks = (n + LANES - 1) // LANES
    is_left = view(left, last * blocks, np.uint8)
    rounded = (k + width - 1) // width if is_fused(way) else k  # products: of fused ones the first of each block
    zeros = view(base + ZEROS, LANES, np.float32)
    for j in range(LANES):
        zeros[j] = np.float32(0.0)
    panel = factors + 4 * ((k + 15) // 16 * 16 + 16)
    plan = Plan(way, 0, 0, 0, k, k, 1, base, order, width, out, exact, draws)
    drop_exponents(plan)
    for block in range(blocks):
        found, packed = min(LANES, n - block * LANES), -1
        begin_panel(plan, found)
        for row in range(first, last):
            if is_left[row * blocks + block] == 0:
                continue
            if row // m != packed:
                packed = row // m
                pack(b, b_columns + 8 * (packed * n + block * LANES), b_step, found, panel, plan)
            source = a + 4 * word(a_rows + 8 * row)
            if a_step != 1:
                copy_floats(source, a_step, factors, k)
                source = factors
            begin_group(plan)
            dot_line(plan, source, panel, row * n + block * LANES, found)
            if has_special(plan):
                drop_exponents(plan)
                continue
            is_left[row * blocks + block] = 0
            put(TOTAL, row * n + block * LANES, 1, found, plan)
            if is_counted(way):
                settle_group(plan, OF_SUMS, found * (k - 1), counts, apart, bins)
                settle_group(plan, OF_ADDENDS, found * rounded, counts, apart, bins)
                if is_compensated(way):
                    settle_group(plan, OF_KAHAN, 3 * found * (k - 1), counts, apart, bins)
