"""Products of matrices and Welford's mean, one rounding after another: general kernels for every format and mode."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import kernel, view
from normstab.numerics.kernels.cpu.sums.steps import CONTEXT, add_step, fma_step, load_step, read, round_step, write
from normstab.numerics.kernels.cpu.sums.sum_rows import LANES, LEVELS, finish, take

__all__ = ["dot_rows", "welford_rows"]


@kernel
def dot_rows(
    a, a_size, a_rows, a_step, b, b_size, b_columns, b_step, out, out_size, first, last, m, n, k,
    order, width, contexts, has_kahan, is_fused,
):  # fmt: skip  # pragma: no cover - compiled
    """Compute elements first .. last - 1 of a product (B, M, N); contexts are those of mul, add and kahan.

    `a_rows` (B, M) and `b_columns` (B, N) are memory offsets, `a_step` and `b_step` strides along k.
    """
    all_contexts = view(contexts, 3 * CONTEXT, np.int64)
    product, add = all_contexts[:CONTEXT], all_contexts[CONTEXT : 2 * CONTEXT]
    kahan = all_contexts[2 * CONTEXT : (3 if has_kahan else 2) * CONTEXT]
    rows = view(a_rows, last // n + 1, np.int64)
    columns = view(b_columns, (last // (m * n) + 1) * n, np.int64)
    room = max(LEVELS, width) if order == LANES else LEVELS
    partial, leaves, state = np.zeros(room), np.zeros(room, np.int64), np.zeros(2, np.int64)
    for element in range(first, last):
        from_a, from_b = rows[element // n], columns[element // (m * n) * n + element % n]
        for i in range(k):
            x, y = read(a, a_size, from_a + i * a_step), read(b, b_size, from_b + i * b_step)
            leaf = element * k + i
            if is_fused and i % width != 0:
                total = fma_step(x, y, partial[1], leaf, add)
            else:
                has_inf = abs(x) == np.inf or abs(y) == np.inf
                total = round_step(x * y, leaf, x != x or y != y, has_inf, product)
            if not is_fused:
                take(order, width, i, k, total, leaf, partial, leaves, state, add, kahan)
                continue
            partial[1] = total
            if i % width == 0:
                state[0] = leaf
            if i % width == width - 1 or i == k - 1:
                partial[0] = total if i < width else add_step(partial[0], total, state[0], add)
        write(
            out, out_size, element, finish(order, width, k, partial, leaves, state, add) if not is_fused else partial[0]
        )


@kernel
def welford_rows(
    x, x_size, mean, m2, out_size, first, last, kept, outer, n_outer, n_inner, inner_memory, inner_index, contexts
):  # pragma: no cover - compiled
    """Run Welford's mean and M2 over rows first .. last - 1; contexts in the order of means.MEAN_SITES, M2_SITES."""
    at = view(contexts, 7 * CONTEXT, np.int64).reshape(7, CONTEXT)
    rows, outers = view(kept, 2 * last, np.int64), view(outer, 2 * n_outer, np.int64)
    for row in range(first, last):
        centre, squares, count = 0.0, 0.0, 0
        for o in range(n_outer):
            memory, leaf = rows[2 * row] + outers[2 * o], rows[2 * row + 1] + outers[2 * o + 1]
            for i in range(n_inner):
                where = leaf + i * inner_index
                value = load_step(read(x, x_size, memory + i * inner_memory), where, at[0])
                count += 1
                delta = add_step(value, -centre, where, at[1])
                step = round_step(delta / count, where, delta != delta, abs(delta) == np.inf, at[2])
                centre = add_step(centre, step, where, at[3])
                after = add_step(value, -centre, where, at[4])
                has_inf = abs(delta) == np.inf or abs(after) == np.inf
                product = round_step(delta * after, where, delta != delta or after != after, has_inf, at[5])
                squares = add_step(squares, product, where, at[6])
        write(mean, out_size, row, centre)
        write(m2, out_size, row, squares)
