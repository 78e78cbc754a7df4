"""Matrix products with an emulated accumulator: the sums of ordered_kernel, whose addends are products made on the way.

A row is one element (b, i, j) of the result, a position one k of its inner size; both operands are walked where they
lie, an axis that one of them lacks with stride 0:

    a (B, M, K)    [a_i0 a_i1 a_i2 ...]     a row of a: the same for neighbours j, which one load serves
    b (B, K, N)    [b_0j][b_0j+1] ...       neighbours j are neighbours in memory
    element i j    round(a_i0 b_0j) + round(a_i1 b_1j) + ...    in the order of the chunks and lanes of ordered_kernel

Every product is rounded before it is added; FUSED, only the first of a chain is, and the others are added unrounded.
The partial sums of chunks are joined by ordered_kernel.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.sums.ordered_cells import no_cells
from normstab.numerics.kernels.cuda.sums.ordered_kernel import (
    BINS,
    VARYING,
    joined,
    kahan_step,
    lanes_of,
    leaf_of,
    most_steps,
    own_rows,
    place_of,
    read_at,
    settle_all,
    told,
    write_at,
)
from normstab.numerics.kernels.cuda.sums.ordered_steps import (
    How,
    add_step,
    fused_step,
    is_narrow,
    product_step,
    rule_of,
)

__all__ = ["products_kernel"]

COUNTS, KAHAN, FUSED = (tl.constexpr(x) for x in (How.COUNTS, How.KAHAN, How.FUSED))


@triton.jit
def both_rows(first, second, row, kept):
    """Return where a row begins in both factors."""
    left = first + place_of(row, kept[0][0], kept[0][1])[:, None]
    right = second + place_of(row, kept[1][0], kept[1][1])[:, None]
    return left, right


@triton.jit
def read_both(first, second, position, inside, reduced, DIGITS: tl.constexpr, BIAS: tl.constexpr, HOW: tl.constexpr):
    """Return the bits of both factors at a position."""
    a = read_at(first, place_of(position, reduced[0][0], reduced[0][1]), inside, DIGITS, BIAS, HOW)
    b = read_at(second, place_of(position, reduced[1][0], reduced[1][1]), inside, DIGITS, BIAS, HOW)
    return a, b


@triton.jit(do_not_specialize=VARYING)
def products_kernel(
    first, second, target, table, counts, bins, rows, n, chunks, chunk_step, span, step, lanes, leaf_step,
    kept, reduced, reduced_index, target_row, target_chunk, half,
    add_word: tl.int64, add_step_word: tl.int64, load_word: tl.int64, load_step_word: tl.int64, later,
    DIGITS: tl.constexpr, BIAS: tl.constexpr, HOW: tl.constexpr, BY_ROWS: tl.constexpr, IS_LONG: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Sum chunks of products into `target`, one number for each row and chunk; LANES = 2^LEVELS.

    `kept` and `reduced` are (sizes, strides) of axes, fastest first, for each of the two factors.
    """
    row, chunk, is_row = own_rows(rows, chunks, BY_ROWS, ROWS)
    begin, start, end, live = lanes_of(chunk, chunk_step, span, n, is_row, lanes, IS_LONG, LANES)
    rule = rule_of(table, HOW)
    left, right = both_rows(first, second, row, kept)
    row_index = (row * n)[:, None]
    to_add, to_multiply = told(rule, (add_word, add_step_word), (load_word, load_step_word), later, half, HOW)
    next_a, next_b = read_both(left, right, start, live & (start < end), reduced, DIGITS, BIAS, HOW)
    total, lost = next_a * 0, next_a * 0
    steps = (tl.minimum(span, n) + step - 1) // step
    for base in range(0, steps, most_steps(HOW)):
        empty = no_cells(total, is_narrow(HOW))
        added, made, mended = empty, empty, empty
        for t in range(base, tl.minimum(base + most_steps(HOW), steps)):
            # The next factors are on their way while these are multiplied.
            a, b, position, following = next_a, next_b, start + t * step, start + (t + 1) * step
            next_a, next_b = read_both(left, right, following, live & (following < end), reduced, DIGITS, BIAS, HOW)
            inside, index = live & (position < end), leaf_of(row_index, position, leaf_step, reduced_index, HOW)
            joins = inside & (t > 0)
            is_made = inside & (((HOW & FUSED) == 0) | (t == 0))
            x, made = product_step(a, b, index, is_made, made, to_multiply, bins + BINS, HOW)
            if (HOW & FUSED) > 0:
                y, added = fused_step(a, b, total, index, joins, added, to_add, bins, HOW)
            elif (HOW & KAHAN) > 0:
                y, lost, added, mended = kahan_step(total, x, lost, index, joins, added, mended, to_add, bins, HOW)
            else:
                y, added = add_step(total, x, index, joins, added, to_add, bins, HOW)
            total = tl.where(joins, y, tl.where(inside, x, total))
        if (HOW & COUNTS) > 0:
            settle_all(added, made, mended, counts, HOW)
    present = tl.where(is_row[:, None], tl.minimum(end - begin, lanes), 0)
    total = joined(
        total, begin, present, row_index, leaf_step, reduced_index, to_add, counts, bins, HOW, ROWS, LANES, LEVELS
    )
    write_at(target, (row * target_row + chunk * target_chunk)[:, None], total, is_row[:, None], HOW)
