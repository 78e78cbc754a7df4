"""Matrix products with an emulated accumulator on the CPU: which compiled kernel serves, and its layout.

None means that no kernel covers the case and the torch reference serves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.accumulate import SumCalls
from normstab.numerics.call import Call
from normstab.numerics.execute import carrier_dtype
from normstab.numerics.formats import AnyFormat
from normstab.numerics.kernels.cpu.sums.cpu_sums import (
    CACHE_LINE,
    CARRIERS,
    MOST_LANES,
    ROWS_AT_ONCE,
    counted,
    narrowed,
)
from normstab.numerics.kernels.cpu.sums.dot_tiles import dot_room, dot_tiles, padded, survey
from normstab.numerics.kernels.cpu.sums.draws import draws
from normstab.numerics.kernels.cpu.sums.one_sum import ORDERS
from normstab.numerics.kernels.cpu.sums.product_lines import dot_lines
from normstab.numerics.kernels.cpu.threads import run_chunks
from normstab.numerics.kernels.cpu.vector.lane_ways import Tallies, careful_way, way_of
from normstab.numerics.kernels.cpu.vector.ways import Lanes
from normstab.numerics.kernels.huge_pages import in_huge_pages
from normstab.numerics.precision import Accumulation
from normstab.numerics.sums.matmul import Shapes

__all__ = ["factors", "matmul"]

# Shapes: a (B, M, K), b (B, K, N), the result (B, M, N), flattened.
PRODUCTS_A_THREAD = 1 << 15
LOW_BITS_OF_P11 = (1 << 13) - 1  # those of a float32 that a significand of 11 bits leaves zero


class Factor(NamedTuple):
    """One operand: its tensor, the memory offset of each row (of a) or column (of b), and the stride along k."""

    values: Tensor
    offsets: NDArray[np.int64]
    step: int

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return CARRIERS[self.values.dtype]


def matmul(
    a: Tensor, b: Tensor, shapes: Shapes, accumulation: Accumulation, product: Call, at: SumCalls
) -> Tensor | None:
    """Return the B M N sums over k of the products, or None."""
    if a.dtype not in CARRIERS or b.dtype not in CARRIERS or b.device != a.device:
        return None
    a, b = a if a.dim() > 1 else a.unsqueeze(0), b if b.dim() > 1 else b.unsqueeze(1)
    dtype, calls = carrier_dtype((a, b), at.add.format), (product, at.add, at.kahan)
    if torch.float64 in (a.dtype, b.dtype) and at.add.format.fits_float32:
        narrow = [x if x.dtype == torch.float32 else narrowed(x) for x in (a, b)]
        if narrow[0] is not None and narrow[1] is not None:
            found = matmul(narrow[0], narrow[1], shapes, accumulation, product, at)
            return None if found is None else found.to(dtype)
    left, right = factors(a, b, shapes)
    out = in_huge_pages(a.new_empty((*shapes.batch, shapes.m, shapes.n), dtype=dtype))
    if out.numel() == 0 or shapes.k == 0:
        return out.zero_().flatten()
    left_out = None
    way = _fast_way(left, right, shapes, accumulation, calls)
    if way is not None:
        values = _surveyed(left, right, shapes)
        needs_exact = accumulation.fused or way.is_drawn
        # Fused and drawn ways know only products that float32 holds.
        if values.are_normal and (values.are_exact or not needs_exact):
            left_out = np.ones((len(left.offsets), -(-shapes.n // ROWS_AT_ONCE)), np.uint8)
            for one in _ways(way, at.add.format, are_finite=values.are_finite):
                _fast(one, left, right, out, shapes, accumulation, calls, left_out, are_exact=values.are_exact)
                if not left_out.any():
                    return out.flatten()
    # Of the turned product the columns are the many: the general kernel takes many columns at once.
    if left_out is None and shapes.n < shapes.m:
        turned = Shapes(shapes.batch, shapes.n, shapes.m, shapes.k, shapes.result)
        _general(right, a.mT, out, turned, accumulation, calls, None, is_turned=True)
    else:
        _general(left, b, out, shapes, accumulation, calls, left_out, is_turned=False)
    return out.flatten()


def factors(a: Tensor, b: Tensor, shapes: Shapes) -> tuple[Factor, Factor]:
    """Return both operands of a product, matrices or batches of them, as rows of `a` and columns of `b`."""
    columns = b.mT
    left = Factor(a, _offsets(a, shapes.batch), a.stride(-1))
    return left, Factor(b, _offsets(columns, shapes.batch), columns.stride(-1))


Calls = tuple[Call, Call, Call | None]


def _general(
    a: Factor,
    b: Tensor,
    out: Tensor,
    shapes: Shapes,
    accumulation: Accumulation,
    calls: Calls,
    wanted: NDArray[np.uint8] | None,
    *,
    is_turned: bool,
) -> None:
    """Run the general kernel over the panels that are `wanted` (None: all); turned over, rows are B N, columns M."""
    width = accumulation.width if accumulation.order in ("blocked", "lanes") else shapes.k
    b = b.contiguous()
    batches = _offsets(b.flatten(-2).unsqueeze(-2), shapes.batch)
    mask = 0 if wanted is None else wanted.ctypes.data

    def run(first: int, last: int, made: int) -> None:
        dot_lines(
            a.values.data_ptr(), a.size, a.offsets.ctypes.data, a.step, b.data_ptr(), CARRIERS[b.dtype],
            batches.ctypes.data, out.data_ptr(), CARRIERS[out.dtype], first, last, shapes.m, shapes.n, shapes.k,
            is_turned, ORDERS[accumulation.order], width, mask, made, accumulation.kahan,
            accumulation.fused,
        )  # fmt: skip

    counted(calls, run, 0, len(a.offsets), 2 * shapes.k * shapes.n)


def _fast_way(a: Factor, b: Factor, shapes: Shapes, accumulation: Accumulation, calls: Calls) -> Lanes | None:
    """Return the way in which the fast kernel does such products, as far as the operands' values allow, or None."""
    product, add, kahan = calls
    if a.size != 4 or b.size != 4 or shapes.k == 0:
        return None
    if accumulation.order == "lanes" and accumulation.width > MOST_LANES:
        return None
    return way_of(add, product, kahan, is_fused=accumulation.fused)


def _ways(way: Lanes, format: AnyFormat, *, are_finite: bool) -> list[Lanes]:
    """Return in which ways to do what the ones before left: last with a look at all that leaves the range."""
    careful = careful_way(way, format)
    if careful is None:
        return [way]
    return [way, careful] if are_finite else [careful]


class Values(NamedTuple):
    """What the values of two operands allow: products that float32 holds, none below its normal range; all finite."""

    are_exact: bool
    are_normal: bool
    are_finite: bool


def _surveyed(a: Factor, b: Factor, shapes: Shapes) -> Values:
    """Look at every value once."""
    seen = np.zeros((2, 4), np.uint32)
    for factor, found in zip((a, b), seen, strict=True):
        at = factor.offsets.ctypes.data
        survey(factor.values.data_ptr(), at, len(factor.offsets), shapes.k, factor.step, found.ctypes.data)
    (most_a, least_a), (most_b, least_b) = seen[:, 1:3].copy().view(np.float32).astype(np.float64)
    are_normal = least_a == 0 or least_b == 0 or least_a * least_b >= 2.0**-126  # zero: one has no other number
    # Two significands of 11 bits multiply to 22, which float32 holds if the exponent fits.
    is_narrow = not ((seen[0, 0] | seen[1, 0]) & LOW_BITS_OF_P11)
    return Values(bool(is_narrow and most_a * most_b < 2.0**127), bool(are_normal), not seen[:, 3].any())


def _fast(
    way: Lanes,
    a: Factor,
    b: Factor,
    out: Tensor,
    shapes: Shapes,
    accumulation: Accumulation,
    calls: Calls,
    left: NDArray[np.uint8],
    *,
    are_exact: bool,
) -> None:
    """Run the fast kernel over what is marked in `left`, (rows, panels of 64 columns); unmark what it has done."""
    product, add, kahan = calls
    rows, n, k = len(a.offsets), shapes.n, shapes.k
    # A sequential sum is one block of all.
    width = accumulation.width if accumulation.order in ("blocked", "lanes") else k
    pieces = max(1, min(torch.get_num_threads(), rows, rows * n * k // PRODUCTS_A_THREAD))
    bounds = [rows * i // pieces for i in range(pieces + 1)]
    table = draws(add, product) if way.is_drawn else None
    tallies = Tallies(pieces, way)
    room, packed = dot_room(accumulation.order, width), 4 * padded(k) * (1 + ROWS_AT_ONCE)
    way, size = (way._replace(away=room), 3 * room + packed) if way.is_drawn else (way, room + packed)
    memory = np.empty(CACHE_LINE + pieces * size, np.uint8)
    buffers_at = -(-memory.ctypes.data // CACHE_LINE) * CACHE_LINE

    def run(i: int) -> None:
        base = buffers_at + i * size
        dot_tiles(
            way, a.values.data_ptr(), a.offsets.ctypes.data, a.step, b.values.data_ptr(), b.offsets.ctypes.data, b.step,
            out.data_ptr(), bounds[i], bounds[i + 1], shapes.m, n, k, ORDERS[accumulation.order], width,
            int(are_exact), *tallies.of(i), left.ctypes.data, base, base + size - packed,
            0 if table is None else table.ctypes.data,
        )  # fmt: skip

    run_chunks(run, pieces)
    tallies.settle((add, product, kahan))


def _offsets(x: Tensor, batch: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the memory offsets (B, rows), flattened, of the rows of `x`, whose batch axes are broadcast."""
    spread = x.expand(*batch, *x.shape[-2:])
    offsets = np.zeros(1, np.int64)
    for size, stride in zip(spread.shape[:-1], spread.stride()[:-1], strict=True):
        offsets = (offsets[:, None] + stride * np.arange(size, dtype=np.int64)).reshape(-1)
    return offsets
