"""Welford's running mean of many rows at once, one row a thread, every result rounded and counted at its site.

    row of a thread    x_1  x_2  x_3 ...                                     read where they lie
    registers          d = x_i - m;  m += d / i;  M2 += d (x_i - m)          seven sites, in emulated float64
    at the end         m, M2                                                 two numbers a row

A step needs the one before it, so that only rows run side by side.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.cuda_bits import SIGN64, as_int64, widened
from normstab.numerics.kernels.cuda.cuda_kernels import CODES
from normstab.numerics.kernels.cuda.device_log import COUNTED
from normstab.numerics.kernels.cuda.float32_bits import step_now
from normstab.numerics.kernels.cuda.sums.ordered_cells import MOST_STEPS, no_cells, settle_sums
from normstab.numerics.kernels.cuda.sums.ordered_kernel import leaf_of, place_of, write_at
from normstab.numerics.kernels.cuda.sums.ordered_steps import How, computed_step, load_step

__all__ = ["WELFORD_SITES", "welford_kernel"]

# The sites in the order of their counters and words; the last three are those of M2.
WELFORD_SITES = ("load", "delta", "div", "sum", "delta_after", "mul", "m2")
LOAD, DELTA, QUOTIENT, SUM, AFTER, PRODUCT, SQUARES = (tl.constexpr(i) for i in range(len(WELFORD_SITES)))
ADD, MUL, DIV = (tl.constexpr(CODES[name]) for name in ("add", "mul", "div"))
COUNTS, LOADS, FOLDS, WIDTH = (tl.constexpr(x) for x in (How.COUNTS, How.LOADS, How.FOLDS, How.WIDTHS))
LOSES = tl.constexpr(How.LOSES)
MOST, SITE = tl.constexpr(MOST_STEPS), tl.constexpr(COUNTED)


@triton.jit
def told_at(table, words, SITE_: tl.constexpr, HOW: tl.constexpr):
    """Return what a step at a site reads: plan of the format, key of Philox, step of training, half of the precision.

    `table` are the address of the plan, and that half; `words` the address of the keys, and that step.
    """
    word = tl.full([], 0, tl.int64)
    if (HOW & WIDTH) > 0:
        word = tl.load(words[0] + SITE_)
    return table[0], word, words[1], table[1]


@triton.jit
def site_step(
    a, b, index, inside, cells, table, words, OPERATION: tl.constexpr, SITE_: tl.constexpr, HOW: tl.constexpr
):  # fmt: skip
    """Return an operation on a and b, rounded at a site, and the site's cells; nothing has bins here."""
    told = told_at(table, words, SITE_, HOW)
    return computed_step(a, b, b, index, inside, cells, told, table[0], OPERATION, (HOW & FOLDS) > 0, HOW)


@triton.jit
def mean_step(x, mean, number, index, inside, cells, table, words, HOW: tl.constexpr):
    """Return x - m, the new mean m + (x - m) / i, and the cells of the three sites; `number` are the bits of i."""
    off, shared, moved = cells
    # Subtracted is by the bit of the sign, which keeps that of a zero.
    delta, off = site_step(x, mean ^ SIGN64, index, inside, off, table, words, ADD, DELTA, HOW)
    share, shared = site_step(delta, number, index, inside, shared, table, words, DIV, QUOTIENT, HOW)
    mean, moved = site_step(mean, share, index, inside, moved, table, words, ADD, SUM, HOW)
    return delta, mean, (off, shared, moved)


@triton.jit
def squares_step(x, delta, mean, m2, index, inside, cells, table, words, HOW: tl.constexpr):
    """Return M2 + (x - m_old) (x - m), and the cells of the three sites."""
    off, squared, grown = cells
    after, off = site_step(x, mean ^ SIGN64, index, inside, off, table, words, ADD, AFTER, HOW)
    product, squared = site_step(delta, after, index, inside, squared, table, words, MUL, PRODUCT, HOW)
    m2, grown = site_step(m2, product, index, inside, grown, table, words, ADD, SQUARES, HOW)
    return m2, (off, squared, grown)


@triton.jit
def settle_three(cells, counts, FIRST: tl.constexpr, HOW: tl.constexpr):
    """Add what three sites counted, the first of them number FIRST, to their counters."""
    for i in tl.static_range(3):
        settle_sums(cells[i], counts + (FIRST + i) * SITE, False, (HOW & LOSES) > 0)


@triton.jit(do_not_specialize=["rows", "n", "half", "step"])
def welford_kernel(
    source, means, squares, plan, keys, step: tl.int64, later, counts, rows, n, half,
    kept, reduced, kept_index, reduced_index,
    DIGITS: tl.constexpr, BIAS: tl.constexpr, HOW: tl.constexpr, HAS_M2: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write m, and M2 where HAS_M2, of each row, as float64 bits; axes and `later` are given as to `ordered_kernel`."""
    words = keys, step_now(step, later, HOW & WIDTH)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < rows
    memory, row_index = source + place_of(row, kept[0], kept[1]), place_of(row, kept_index[0], kept_index[1])
    mean, m2, table = row * 0, row * 0, (plan, half)
    for base in range(0, n, MOST):
        loaded = no_cells(mean, False)
        of_mean, of_squares = (loaded, loaded, loaded), (loaded, loaded, loaded)
        for t in range(base, tl.minimum(base + MOST, n)):
            position = row * 0 + t
            x = widened(tl.load(memory + place_of(position, reduced[0], reduced[1]), is_row, other=0), DIGITS, BIAS)
            index = leaf_of(row_index, position, 1, reduced_index, HOW)
            if (HOW & LOADS) > 0:
                x, loaded = load_step(x, index, is_row, loaded, told_at(table, words, LOAD, HOW), plan, HOW)
            number = as_int64((position + 1).to(tl.float64))
            delta, mean, of_mean = mean_step(x, mean, number, index, is_row, of_mean, table, words, HOW)
            if HAS_M2:
                m2, of_squares = squares_step(x, delta, mean, m2, index, is_row, of_squares, table, words, HOW)
        if (HOW & COUNTS) > 0:
            settle_three(of_mean, counts, DELTA, HOW)
            if (HOW & LOADS) > 0:
                settle_sums(loaded, counts + LOAD * SITE, False, False)
            if HAS_M2:
                settle_three(of_squares, counts, AFTER, HOW)
    write_at(means, row, mean, is_row, HOW)
    if HAS_M2:
        write_at(squares, row, m2, is_row, HOW)
