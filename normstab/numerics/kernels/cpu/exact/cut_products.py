"""Exact sums of products of float32 on the CPU, by float64 products of matrices that round nothing.

Both operands are cut into slices (see slices). All sums of products of one slice of a and one of b are whole numbers
of a unit of their row and column, and less than 2^53 of them: every order of adding gives the same, exactly, so that
torch's product of matrices may be used, which else is for no rounded result. What it gives is then joined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.kernels.cpu.exact.slices import HAS_INF, HAS_NAN, REACH, WIDTH, cut, join, mend, reach
from normstab.numerics.kernels.cpu.sums.cpu_matmul import factors
from normstab.numerics.kernels.cpu.threads import run_chunks
from normstab.numerics.readable.operations import Carried
from normstab.numerics.sums.matmul import Shapes
from normstab.torch_private import modes_off

__all__ = ["cut_products"]

DIGITS = 53  # of float64
MOST_WIDTH = 51  # positions of a slice, so that 1.5 2^52 units may be added to it
# Slices of an operand, and pairs of slices: beyond them the accumulator of exact_rows takes no longer.
MOST_SLICES, MOST_PIECES = 24, 32
NUMBERS_AT_ONCE = 1 << 26  # in the pieces that are joined
# Work below which a thread is not worth waking.
NUMBERS_A_THREAD = 1 << 16


class Cut(NamedTuple):
    """One operand: its rows of K numbers, dense (..., rows, K); what `reach` tells of each; its slices in float64."""

    rows: Tensor
    found: NDArray[np.int64]
    slices: list[Tensor]


def cut_products(a: Tensor, b: Tensor, shapes: Shapes, *, rounds_down: bool) -> Carried | None:
    """Return the B M N exact sums over k, rounded to odd, of float32 matrices; None if there would be many slices."""
    rows, columns = a.detach().contiguous(), b.detach().mT.contiguous()
    found = [_reached(x) for x in (rows, columns)]
    span_a, span_b = (max(int(told[:, WIDTH].max()), 1) for told in found)
    widths = _widths(span_a, span_b, shapes.k)
    if widths is None:
        return None
    left, right = (_cut(x, told, width) for x, told, width in zip((rows, columns), found, widths, strict=True))
    if len(left.slices) * len(right.slices) > MOST_PIECES:
        return None
    with modes_off():  # a mode of the caller's would emulate this product
        total = _joined(left.slices, right.slices, shapes)
    return _mended(total, left, right, shapes, rounds_down=rounds_down)


def _reached(x: Tensor) -> NDArray[np.int64]:
    """Return what `reach` tells of the rows of `x`."""
    found = np.empty((x.numel() // x.shape[-1], REACH), np.int64)
    reach(x.data_ptr(), len(found), x.shape[-1], found.ctypes.data)
    return found


def _widths(span_a: int, span_b: int, k: int) -> tuple[int, int] | None:
    """Return how many positions slices of a and of b have, for the fewest products of them; None if there are many.

    k products of w and v positions add up to k 2^(w + v) units at most, which 53 digits must hold.
    """
    both = DIGITS - (k - 1).bit_length()
    if span_a + span_b <= both and max(span_a, span_b) <= MOST_WIDTH:
        return span_a, span_b
    widths = [(w, both - w) for w in range(max(1, both - MOST_WIDTH), min(MOST_WIDTH, both - 1) + 1)]
    counts = [(-(-span_a // w), -(-span_b // v)) for w, v in widths]
    fewest = min(range(len(widths)), key=lambda i: counts[i][0] * counts[i][1])
    return widths[fewest] if max(counts[fewest]) <= MOST_SLICES else None


def _cut(x: Tensor, found: NDArray[np.int64], width: int) -> Cut:
    """Return `x` with those of its slices that have a number."""
    slices = max(-(-int(found[:, WIDTH].max()) // width), 1)
    out = x.new_empty((slices, *x.shape), dtype=torch.float64)
    filled = np.zeros(slices, np.uint8)
    cut(
        x.data_ptr(), len(found), x.shape[-1], found.ctypes.data, width, slices, out.data_ptr(), filled.ctypes.data
    )  # fmt: skip
    return Cut(x, found, [out[i] for i in np.flatnonzero(filled)])


def _joined(left: list[Tensor], right: list[Tensor], shapes: Shapes) -> Tensor:
    """Return the sums (..., M, N) of the products of all pairs of slices, a few lines of M at a time."""
    pairs = [(x, y) for x in left for y in right]
    batch, m, n = shapes.batch, shapes.m, shapes.n
    if not pairs:
        return torch.zeros((*batch, m, n), dtype=torch.float64, device="cpu")
    at_once = max(1, NUMBERS_AT_ONCE * m // (len(pairs) * left[0].numel() // shapes.k * n + 1))
    parts = [_panel([(x[..., i : i + at_once, :], y) for x, y in pairs], shapes) for i in range(0, m, at_once)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


def _panel(pairs: list[tuple[Tensor, Tensor]], shapes: Shapes) -> Tensor:
    """Return the sum of the products of pairs of slices."""
    sizes = (*shapes.batch, pairs[0][0].shape[-2], shapes.n)
    pieces = torch.empty((len(pairs), *sizes), dtype=torch.float64, device="cpu")
    for (x, y), piece in zip(pairs, pieces, strict=True):
        torch.matmul(x, y.mT, out=piece)
    if len(pairs) == 1:
        return pieces[0]
    total = torch.empty(sizes, dtype=torch.float64, device="cpu")
    source, target, apart = pieces.data_ptr(), total.data_ptr(), total.numel()

    def run(first: int, last: int) -> None:
        join(source + 8 * first, len(pairs), apart, last - first, target + 8 * first)

    _in_threads(run, apart, len(pairs))
    return total


def _mended(total: Tensor, left: Cut, right: Cut, shapes: Shapes, *, rounds_down: bool) -> Carried:
    """Return the sums with the signs of zeros, those of special products, and what the operands were."""
    a, b = factors(left.rows, right.rows.mT, shapes)
    m, n, k = shapes.m, shapes.n, shapes.k
    told = [x.found[y.offsets // k, : HAS_INF + 1] != 0 for x, y in ((left, a), (right, b))]
    of_a, of_b = (np.ascontiguousarray(x.any(1)) for x in told)

    def run(first: int, last: int) -> None:
        mend(
            a.values.data_ptr(), a.offsets.ctypes.data, of_a.ctypes.data, b.values.data_ptr(),
            b.offsets.ctypes.data, of_b.ctypes.data, first, last, m, n, k, total.data_ptr(), rounds_down,
        )  # fmt: skip

    _in_threads(run, len(a.offsets), n)
    rows, columns = told[0].reshape(-1, m, 1, 2), told[1].reshape(-1, 1, n, 2)
    nan, inf = (torch.from_numpy((rows[..., i] | columns[..., i]).reshape(-1)) for i in (HAS_NAN, HAS_INF))
    return Carried(total.flatten(), nan, inf, None)


def _in_threads(run: Callable[[int, int], None], n: int, work: int) -> None:
    """Call run(first, last) over all of n, in threads if so much work each is worth it."""
    pieces = max(1, min(torch.get_num_threads(), n, n * work // NUMBERS_A_THREAD))
    bounds = [n * i // pieces for i in range(pieces + 1)]
    run_chunks(lambda i: run(bounds[i], bounds[i + 1]), pieces)
