"""Sums and Welford's mean in every format and mode: the general kernels, many sums at once.

Addend p of the sums lies in line p of the source, one column a sum. A column may be cut into groups that are added
side by side: blocks, lanes, or the single addends of a tree. What a buffer holds is group after group:

    line p, columns c0 c1 ...       group g, step i  ->  line  g group_step + i step
    partial:  | group 0: c0 c1 ... | group 1: c0 c1 ... | ...

`sum_tiles` does the same faster for nearest rounding in narrow formats, with the same bits and counters; products of
matrices, whose addends are made on the way, are `product_lines`.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from normstab.numerics.kernels.cpu.blocks import BLOCK
from normstab.numerics.kernels.cpu.compile import kernel, outside, view
from normstab.numerics.kernels.cpu.cpu_pointwise import read_run
from normstab.numerics.kernels.cpu.layout import FLOAT32, FLOAT64
from normstab.numerics.kernels.cpu.sums.lines import add_line, desk, divide_line, fma_line, load_line, multiply_line
from normstab.numerics.kernels.cpu.sums.one_sum import BLOCKED, BLOCKS_ONLY, LANES, PAIRWISE, SEQUENTIAL
from normstab.numerics.kernels.cpu.sums.steps import CONTEXT, FIELD_WIDTH, write

__all__ = ["Source", "bench", "columns_at_once", "shape_of", "sum_columns", "sum_lines", "welford_lines"]

# So many columns at once that the partial sums of all groups
# stay in a cache; of a tree all addends are partial sums.
COLUMNS_OF_GROUPS, NUMBERS_OF_A_TREE, LEAST_COLUMNS = 256, 1 << 16, 16

# Lines of `width` numbers at address x (`dtype`), n of them; for products the factor of each line. The leaf of an
# addend is kept[column] + places[line], which nobody asks for unless something `draws`. How addends are rounded:
# `loads`, or multiplied first; `fused`: with the sum.
Source: Any = namedtuple(  # type: ignore[misc]
    "Source", ("x", "dtype", "width", "n", "factors", "kept", "places", "loads", "fused", "draws")
)
# Buffers of a block: an addend, its factor, its leaf; compensation; and the desk of a step.
Bench: Any = namedtuple("Bench", ("raw", "factor", "x", "leaves", "lost", "y", "t", "minus", "desk"))  # type: ignore[misc]


@outside
def bench():  # pragma: no cover - compiled
    """Return fresh buffers."""
    return Bench(
        np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK, np.int64), np.empty(BLOCK),
        np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), desk(),
    )  # fmt: skip


@outside
def fetch_groups(source, line, group_step, groups, first, m, at):  # pragma: no cover - compiled
    """Read m columns of `groups` lines, `group_step` apart, as far as there are lines; return how many numbers.

    Factors have a place of their own, and other addends come where they are rounded.
    """
    found, target = 0, at.raw if len(source.factors) != 0 else at.x
    for g in range(groups):
        p = line + g * group_step
        if p >= source.n:
            break
        read_run(target[found:], source.x, source.dtype, p * source.width + first, 1, m)
        name_leaves(source, p, first, m, at.leaves[found:])
        if len(source.factors) != 0:
            for j in range(m):
                at.factor[found + j] = source.factors[p]
        found += m
    return found


@outside
def name_leaves(source, line, first, m, leaves):  # pragma: no cover - compiled
    """Set leaves[:m] to those of m columns of a line, if anyone draws by them."""
    if source.draws:
        place = source.places[line]
        for j in range(m):
            leaves[j] = source.kept[first + j] + place


@outside
def copy_numbers(source, target, n):  # pragma: no cover - compiled
    """Copy n numbers."""
    for i in range(n):
        target[i] = source[i]


@outside
def round_addends(source, n, first, at):  # pragma: no cover - compiled
    """Leave n addends in at.x: multiplied, or cast, as `first`, the context of products or of loads, says."""
    if len(source.factors) != 0:
        multiply_line(at.factor, at.raw, at.x, at.leaves, n, first, at.desk)
        return
    if source.loads:
        load_line(at.x, at.leaves, n, first, at.desk)


@outside
def negate(x, y, n):  # pragma: no cover - compiled
    """Set y to -x."""
    for i in range(n):
        y[i] = -x[i]


@outside
def compensated(total, x, n, add, kahan, at):  # pragma: no cover - compiled
    """Add x to total, whose lost parts are in at.lost."""
    negate(at.lost, at.minus, n)
    add_line(x, at.minus, at.y, at.leaves, n, kahan, at.desk)
    add_line(total, at.y, at.t, at.leaves, n, add, at.desk)
    negate(total, at.minus, n)
    add_line(at.t, at.minus, at.lost, at.leaves, n, kahan, at.desk)
    copy_numbers(at.t, total, n)
    negate(at.y, at.minus, n)
    add_line(at.lost, at.minus, at.t, at.leaves, n, kahan, at.desk)
    copy_numbers(at.t, at.lost, n)


@outside
def chains(source, first, m, shape, partial, contexts, at):  # pragma: no cover - compiled
    """Fill `partial` (groups, m) with the sums of each group; `shape` is (groups, group_step, steps, step)."""
    groups, group_step, steps, step = shape
    load, add, kahan = contexts
    # Groups are added side by side, so that few columns still fill a block.
    together = BLOCK // m
    for g in range(0, groups, together):
        count = min(together, groups - g)
        total = partial[g * m :]
        for i in range(steps):
            n = fetch_groups(source, g * group_step + i * step, group_step, count, first, m, at)
            if n == 0:
                break
            if i > 0 and source.fused:
                fma_line(at.factor, at.raw, total, at.leaves, n, add, at.desk)
                continue
            round_addends(source, n, load, at)
            # A chain begins with its first addend, and has lost nothing.
            if i == 0:
                copy_numbers(at.x, total, n)
                for j in range(n):
                    at.lost[j] = 0.0
            elif len(kahan) != 0:
                compensated(total, at.x, n, add, kahan, at)
            else:
                add_line(total, at.x, total, at.leaves, n, add, at.desk)


@outside
def chain_of_groups(source, first, m, shape, partial, contexts, at):  # pragma: no cover - compiled
    """Add the groups of `partial` (groups, m) one after the other into the first."""
    groups, group_step, _, _ = shape
    _, add, kahan = contexts
    for j in range(m):
        at.lost[j] = 0.0
    for g in range(1, groups):
        name_leaves(source, g * group_step, first, m, at.leaves)
        if len(kahan) != 0:
            compensated(partial, partial[g * m :], m, add, kahan, at)
        else:
            add_line(partial, partial[g * m :], partial, at.leaves, m, add, at.desk)


@outside
def tree_of_groups(source, first, m, groups, partial, add, at):  # pragma: no cover - compiled
    """Add the groups of `partial` (groups, m) pairwise, level by level, into the first."""
    span = 1  # how many groups one that is left stands for
    while groups > 1:
        numbers = groups // 2 * m
        for start in range(0, numbers, BLOCK):
            n, done = min(BLOCK, numbers - start), 0
            while done < n:
                pair, column = (start + done) // m, (start + done) % m
                run = min(m - column, n - done)
                left, right = 2 * pair * m + column, (2 * pair + 1) * m + column
                # An addition draws by the first leaf of its right operand.
                name_leaves(source, (2 * pair + 1) * span, first + column, run, at.leaves[done:])
                for j in range(run):
                    at.raw[done + j], at.x[done + j] = partial[left + j], partial[right + j]
                done += run
            add_line(at.raw, at.x, at.y, at.leaves, n, add, at.desk)
            copy_numbers(at.y, partial[start:], n)
        # An odd last one moves up unchanged.
        if groups % 2:
            copy_numbers(partial[(groups - 1) * m :], partial[groups // 2 * m :], m)
        groups, span = (groups + 1) // 2, 2 * span


@outside
def shape_of(order, width, n):  # pragma: no cover - compiled
    """Return (groups, group_step, steps, step) of a sum of n addends."""
    if order == SEQUENTIAL:
        return 1, 1, n, 1
    if order == PAIRWISE:
        return n, 1, 1, 1
    if order == LANES:
        return min(width, n), 1, (n + width - 1) // width, width
    return (n + width - 1) // width, width, width, 1


@outside
def sum_columns(source, first, m, order, width, partial, contexts, at):  # pragma: no cover - compiled
    """Leave the sums of m columns at the beginning of `partial`; of BLOCKS_ONLY, those of their blocks."""
    shape = shape_of(order, width, source.n)
    chains(source, first, m, shape, partial, contexts, at)
    if order == BLOCKED:
        chain_of_groups(source, first, m, shape, partial, contexts, at)
    elif order in (PAIRWISE, LANES):
        tree_of_groups(source, first, m, shape[0], partial, contexts[1], at)


@outside
def columns_at_once(order, n):  # pragma: no cover - compiled
    """Return how many columns are summed together, so that their partial sums stay in a cache."""
    if order == SEQUENTIAL:
        return BLOCK
    return (
        COLUMNS_OF_GROUPS if order != PAIRWISE else max(LEAST_COLUMNS, min(COLUMNS_OF_GROUPS, NUMBERS_OF_A_TREE // n))
    )


@kernel
def sum_lines(
    x, x_size, out, out_size, first, last, width_of_line, n, kept, places, order, width, contexts, has_load, has_kahan
):  # pragma: no cover - compiled
    """Sum columns first .. last - 1 of n lines into `out`; contexts are those of add, load and kahan."""
    every = view(contexts, 3 * CONTEXT, np.int64)
    kahan = every[2 * CONTEXT : (3 if has_kahan else 2) * CONTEXT]
    mine = (every[CONTEXT : 2 * CONTEXT], every[:CONTEXT], kahan)
    source = Source(
        x, FLOAT32 if x_size == 4 else FLOAT64, width_of_line, n, np.empty(0), view(kept, last, np.int64),
        view(places, n, np.int64), has_load, False, every[FIELD_WIDTH] != 0,
    )  # fmt: skip
    groups = shape_of(order, width, n)[0]
    most, at = min(columns_at_once(order, n), max(last - first, 1)), bench()
    partial = np.empty(groups * most)
    for start in range(first, last, most):
        m = min(most, last - start)
        sum_columns(source, start, m, order, width, partial, mine, at)
        blocks = groups if order == BLOCKS_ONLY else 1
        for g in range(blocks):
            for j in range(m):
                write(out, out_size, (start + j) * blocks + g, partial[g * m + j])


@kernel
def welford_lines(
    x, x_size, mean, m2, out_size, first, last, width_of_line, n, kept, places, contexts
):  # pragma: no cover - compiled
    """Run Welford's mean over columns first .. last - 1, and M2 unless `m2` is 0; contexts as MEAN_SITES, M2_SITES."""
    steps = 7 if m2 != 0 else 4
    sites = view(contexts, steps * CONTEXT, np.int64).reshape(steps, CONTEXT)
    source = Source(
        x, FLOAT32 if x_size == 4 else FLOAT64, width_of_line, n, np.empty(0), view(kept, last, np.int64),
        view(places, n, np.int64), True, False, sites[0, FIELD_WIDTH] != 0,
    )  # fmt: skip
    at, centre, squares = bench(), np.empty(BLOCK), np.empty(BLOCK)
    for start in range(first, last, BLOCK):
        m = min(BLOCK, last - start)
        for j in range(m):
            centre[j], squares[j] = 0.0, 0.0
        for p in range(n):
            fetch_groups(source, p, 1, 1, start, m, at)
            round_addends(source, m, sites[0], at)
            negate(centre, at.minus, m)
            add_line(at.x, at.minus, at.y, at.leaves, m, sites[1], at.desk)
            divide_line(at.y, np.float64(p + 1), at.t, at.leaves, m, sites[2], at.desk)
            add_line(centre, at.t, centre, at.leaves, m, sites[3], at.desk)
            if m2 != 0:
                negate(centre, at.minus, m)
                add_line(at.x, at.minus, at.t, at.leaves, m, sites[4], at.desk)
                multiply_line(at.y, at.t, at.x, at.leaves, m, sites[5], at.desk)
                add_line(squares, at.x, squares, at.leaves, m, sites[6], at.desk)
        for j in range(m):
            write(mean, out_size, start + j, centre[j])
            if m2 != 0:
                write(m2, out_size, start + j, squares[j])
