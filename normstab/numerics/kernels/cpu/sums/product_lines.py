"""Products of matrices in every format and mode: each row of the result is a sum of the lines of one factor.

    row of a:  a_0 a_1 ...      line k of b:  b_k0 b_k1 ...
    out_j = a_0 b_0j + a_1 b_1j + ...       the addends of column j, a product each, in the orders of line_sums

`dot_tiles` does the same faster for nearest rounding in narrow formats, with the same bits and counters.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import kernel, outside, view
from normstab.numerics.kernels.cpu.layout import FLOAT32, FLOAT64
from normstab.numerics.kernels.cpu.sums.line_sums import Source, bench, columns_at_once, shape_of, sum_columns
from normstab.numerics.kernels.cpu.sums.steps import CONTEXT, FIELD_WIDTH, read, write

__all__ = ["dot_lines"]


PANEL = 64  # columns that the mask of a product has one byte for


@outside
def length_of_run(wanted, panel, start, n, most):  # pragma: no cover - compiled
    """Return how many columns from `start` on are wanted, `most` at most; `panel` is the first byte of their row."""
    length = min(PANEL, n - start)
    while length < most and start + length < n and wanted[panel + (start + length) // PANEL] != 0:
        length = min(length + PANEL, n - start, most)
    return length


@kernel
def dot_lines(
    a, a_size, a_rows, a_step, b, b_size, b_batches, out, out_size, first, last, m, n, k, is_turned,
    order, width, mask, contexts, has_kahan, is_fused,
):  # fmt: skip  # pragma: no cover - compiled
    """Compute rows first .. last - 1 of a product (B M, N), each a row of `a` times the k lines of its batch of `b`.

    `a_rows` (B, M) and `b_batches` (B,) are memory offsets; b is dense. Element (row, column) has number
    batch m n + (row % m) step + column step', the steps being (n, 1), or (1, m) for a product turned over.
    `mask` (0: everything) has a byte for each row and each 64 columns.
    """
    every = view(contexts, 3 * CONTEXT, np.int64)
    kahan = every[2 * CONTEXT : (3 if has_kahan else 2) * CONTEXT]
    mine = (every[:CONTEXT], every[CONTEXT : 2 * CONTEXT], kahan)
    rows, batches = view(a_rows, last, np.int64), view(b_batches, (last + m - 1) // m, np.int64)
    panels = (n + PANEL - 1) // PANEL
    wanted = view(mask, last * panels if mask != 0 else 0, np.uint8)
    factors, places, kept = np.empty(k), np.empty(k, np.int64), np.empty(n, np.int64)
    row_step, column_step = (1, m) if is_turned else (n, 1)
    for p in range(k):
        places[p] = p
    most, at = columns_at_once(order, k), bench()
    partial = np.empty(shape_of(order, width, k)[0] * most)
    for row in range(first, last):
        number = row // m * m * n + row % m * row_step
        for p in range(k):
            factors[p] = read(a, a_size, rows[row] + p * a_step)
        for j in range(n):
            kept[j] = (number + j * column_step) * k
        source = Source(
            b + b_size * batches[row // m], FLOAT32 if b_size == 4 else FLOAT64, n, k, factors, kept, places,
            False, is_fused, every[FIELD_WIDTH] != 0,
        )  # fmt: skip
        start = 0
        while start < n:
            if mask != 0 and wanted[row * panels + start // PANEL] == 0:
                # The fast kernel has done this panel.
                start += PANEL
                continue
            length = min(most, n - start)
            if mask != 0:
                length = length_of_run(wanted, row * panels, start, n, most)
            sum_columns(source, start, length, order, width, partial, mine, at)
            for j in range(length):
                write(out, out_size, number + (start + j) * column_step, partial[j])
            start += length
