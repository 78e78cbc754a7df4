"""Sums on the CPU: which compiled kernel serves a sum, over how many threads, and the counting after it.

None means that no kernel covers the case and the torch reference serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.accumulate import SumCalls
from normstab.numerics.call import Call
from normstab.numerics.kernels.cpu.sums.draws import draws
from normstab.numerics.kernels.cpu.sums.geometry import Geometry, geometry
from normstab.numerics.kernels.cpu.sums.line_sums import sum_lines, welford_lines
from normstab.numerics.kernels.cpu.sums.one_sum import BLOCKED, BLOCKS_ONLY, LANES, ORDERS, PAIRWISE, SEQUENTIAL
from normstab.numerics.kernels.cpu.sums.steps import contexts, settle_all
from normstab.numerics.kernels.cpu.sums.sum_tiles import room, sum_tiles
from normstab.numerics.kernels.cpu.threads import run_chunks
from normstab.numerics.kernels.cpu.vector.lane_ways import Tallies, way_of
from normstab.numerics.kernels.cpu.vector.ways import Lanes
from normstab.numerics.kernels.cpu.workspace import address_of
from normstab.numerics.kernels.format_table import contains_dtype
from normstab.numerics.precision import Accumulation
from normstab.numerics.tallies.counter_row import COUNTING

__all__ = ["CARRIERS", "accumulate", "block_sums", "counted", "narrowed", "welford"]

# Bytes of an element, of the dtypes that the kernels sum.
CARRIERS = {torch.float32: 4, torch.float64: 8}
# Waking a thread costs about as much as this many additions of the general kernel, and of the fast one.
ADDITIONS_A_THREAD, FAST_ADDITIONS_A_THREAD = 1 << 11, 1 << 16
ROWS_AT_ONCE = 64
# Lane sums lie in the buffers of a thread, 256 bytes each: a megabyte at most.
MOST_LANES = 4096
CACHE_LINE = 64  # what buffers are aligned to


def accumulate(x: Tensor, reduced: Sequence[int], accumulation: Accumulation, at: SumCalls) -> Tensor | None:
    """Return the sums (K,) of `x` over the axes `reduced`, or None."""
    if x.dtype not in CARRIERS:
        return None
    if x.dtype == torch.float64 and way_of(*at) is not None and (narrow := narrowed(x)) is not None:
        sums = accumulate(narrow, reduced, accumulation, at)
        return None if sums is None else sums.double()
    where = geometry(x, reduced)
    order, width = ORDERS[accumulation.order], accumulation.width
    out = x.new_empty(where.rows, dtype=carrier(x, at.add))
    way = _fast_way(x, where, at, order, width)
    if way is None:
        _general(_lined(x, reduced), out, order, width, at)
        return out
    # A part of a row would not know the leaves of its sums.
    parts, part_order = (None, order) if way.is_drawn else _cut(where, order, width)
    if parts is None:
        _fast(way, x, out, where, order, width, at)
        return out
    sums = x.new_empty(where.rows, parts.rows // max(where.rows, 1))
    _fast(way, x, sums, parts, part_order, width, at)
    # Sums of parts are in the format already, so that nothing is loaded again.
    last_order = SEQUENTIAL if order == BLOCKED else PAIRWISE
    _fast(way, sums, out, geometry(sums, (1,)), last_order, width, at._replace(load=None))
    return out


def block_sums(x: Tensor, reduced: Sequence[int], width: int, at: SumCalls) -> Tensor | None:
    """Return the sums (K, blocks) of consecutive blocks of `width` addends, or None."""
    if x.dtype not in CARRIERS:
        return None
    where = geometry(x, reduced)
    out = x.new_empty(where.rows, -(-where.n // width), dtype=carrier(x, at.add))
    way = _fast_way(x, where, at, BLOCKS_ONLY, width)
    if way is not None:
        _fast(way, x, out, where, BLOCKS_ONLY, width, at)
    else:
        _general(_lined(x, reduced), out, BLOCKS_ONLY, width, at)
    return out


def welford(x: Tensor, reduced: Sequence[int], calls: Mapping[str, Call]) -> tuple[Tensor, Tensor] | None:
    """Return Welford's mean (K,) and M2 (K,) over the axes `reduced`, or None; `calls` by its sites.

    Without the site of M2 that is zeros.
    """
    if x.dtype not in CARRIERS:
        return None
    lines = _lined(x, reduced)
    mean = x.new_empty(lines.columns, dtype=carrier(x, calls["sum"]))
    m2 = torch.zeros_like(mean)
    squares = m2.data_ptr() if "m2" in calls else 0

    def run(first: int, last: int, made: int) -> None:
        welford_lines(
            lines.x.data_ptr(), CARRIERS[x.dtype], mean.data_ptr(), squares, CARRIERS[mean.dtype], first, last,
            lines.columns, lines.n, lines.kept.ctypes.data, lines.places.ctypes.data, made,
        )  # fmt: skip

    counted(tuple(calls.values()), run, 0, len(mean), len(calls) * lines.n)
    return mean, m2


def narrowed(x: Tensor) -> Tensor | None:
    """Return a float64 tensor as float32, or None unless that holds every number of it."""
    narrow = x.detach().float()
    return narrow if bool((narrow == x).all()) else None


class Lines(NamedTuple):
    """Addends with one line (n, columns) for each reduced position, and their leaves: kept[column] + places[line]."""

    x: Tensor
    kept: NDArray[np.int64]
    places: NDArray[np.int64]

    @property
    def n(self) -> int:
        """How many addends a sum has."""
        return len(self.places)

    @property
    def columns(self) -> int:
        """How many sums there are."""
        return len(self.kept)


def _lined(x: Tensor, reduced: Sequence[int]) -> Lines:
    """Return `x` in lines; copied unless its kept axes are the inner ones."""
    kept, places = geometry(x, reduced).leaves
    # One line for each addend: neighbours in a line are different sums, which vectors can add.
    order = (*reduced, *(axis for axis in range(x.dim()) if axis not in reduced))
    return Lines(x.detach().permute(order).reshape(len(places), len(kept)).contiguous(), kept, places)


def carrier(x: Tensor, call: Call) -> torch.dtype:
    """Return the dtype of sums of `x`."""
    return torch.float64 if x.dtype == torch.float64 or not call.format.fits_float32 else torch.float32


def counted(
    calls: Sequence[Call | None], run: Callable[[int, int, int], None], first: int, last: int, additions: int
) -> None:
    """Call run(first, last, address of contexts) over all rows, in threads if worth it; settle the counts.

    `additions` says how much work a row is. Histograms are shared, so they keep to one thread.
    """
    rows = last - first
    has_histogram = any(call is not None and call.row is not None and call.row.histogram is not None for call in calls)
    most = 1 if has_histogram else torch.get_num_threads()
    pieces = max(1, min(most, rows, rows * additions // ADDITIONS_A_THREAD))
    made = contexts(calls, pieces)
    bounds = [first + rows * i // pieces for i in range(pieces + 1)]
    with COUNTING if has_histogram else nullcontext():
        run_chunks(lambda i: run(bounds[i], bounds[i + 1], made[i].ctypes.data), pieces)
    settle_all(made, calls)


def _lines_of_rows(x: Tensor, where: Geometry, rows: NDArray[np.int64]) -> Lines:
    """Return some of the sums of `where` in lines."""
    inner = np.arange(where.n_inner, dtype=np.int64) * where.inner_memory
    offsets = (where.outer[:, 0, None] + inner).reshape(-1, 1) + where.kept[rows, 0]
    kept, places = where.leaves
    memory = x.detach().as_strided((int(offsets.max()) + 1,), (1,))
    return Lines(memory[torch.from_numpy(offsets)], np.ascontiguousarray(kept[rows]), places)


def _general(lines: Lines, out: Tensor, order: int, width: int, at: SumCalls) -> None:
    """Run the general kernel."""
    x = lines.x
    has_load = at.load is not None and not contains_dtype(at.add.format, str(x.dtype).removeprefix("torch."))

    def run(first: int, last: int, made: int) -> None:
        sum_lines(
            x.data_ptr(), CARRIERS[x.dtype], out.data_ptr(), CARRIERS[out.dtype], first, last, lines.columns, lines.n,
            lines.kept.ctypes.data, lines.places.ctypes.data, order, width, made, has_load, at.kahan is not None,
        )  # fmt: skip

    counted(tuple(at), run, 0, lines.columns, lines.n)


def _fast_way(x: Tensor, where: Geometry, at: SumCalls, order: int, width: int) -> Lanes | None:
    """Return the way in which the fast kernel gives the same bits and counters, or None."""
    if x.dtype != torch.float32 or (order == LANES and width > MOST_LANES):
        return None
    way = way_of(*at)
    is_known = way is None or not way.is_drawn or where.inner_index <= 1 or _is_side_by_side(where)
    return way if is_known else None


def _is_side_by_side(where: Geometry) -> bool:
    """Whether the kept positions are neighbours in the row-major index."""
    return where.rows > 1 and bool((np.diff(where.kept[:, 1]) == 1).all())


def _cut(where: Geometry, order: int, width: int) -> tuple[Geometry | None, int]:
    """Return the rows cut into parts that fill 64 lanes better, and the order within a part; None to leave them."""
    rows, n = where.rows, where.n
    if rows >= ROWS_AT_ONCE or order not in (PAIRWISE, BLOCKED):
        return None, order
    # Blocks are rows of their own, in which addends follow one another.
    # A part of a pairwise sum must be a whole subtree: a
    # power of two, doubled as long as 128 of them are left.
    if order == BLOCKED:
        return (where.in_chunks(width) if width >= 8 else None), SEQUENTIAL
    chunk = ROWS_AT_ONCE
    while 2 * ROWS_AT_ONCE * 2 * chunk <= rows * n:
        chunk *= 2
    while chunk > ROWS_AT_ONCE and where.n_inner % chunk:
        chunk //= 2
    return where.in_chunks(chunk), PAIRWISE


def _fast(way: Lanes, x: Tensor, out: Tensor, where: Geometry, order: int, width: int, at: SumCalls) -> None:
    """Run the fast kernel, and the general one over the rows that it left."""
    rows, n = where.rows, where.n
    kernel_width = n if order == SEQUENTIAL else width
    groups = -(-rows // ROWS_AT_ONCE)
    pieces = max(1, min(torch.get_num_threads(), groups, rows * n // FAST_ADDITIONS_A_THREAD))
    # Bytes of a thread's buffers; twice as many where random bits lie beside all of them.
    size, table = room(order, width, n), None
    if way.is_drawn:
        table = draws(at.add, None, where.inner_index, is_side_by_side=_is_side_by_side(where))
        way, size = way._replace(away=size), 2 * size
    memory = np.empty(CACHE_LINE + pieces * size + rows, np.uint8)  # the buffers of each piece; a mark a row
    memory_at = address_of(memory)
    buffers_at = -(-memory_at // CACHE_LINE) * CACHE_LINE
    failed_at = buffers_at + pieces * size
    bounds = [min(rows, ROWS_AT_ONCE * (groups * i // pieces)) for i in range(pieces + 1)]
    source, target, failures, tallies = x.data_ptr(), out.data_ptr(), [0] * pieces, Tallies(pieces, way)

    def run(i: int) -> None:
        failures[i] = sum_tiles(
            way, source, target, bounds[i], bounds[i + 1], where.kept_at, where.outer_at, len(where.outer),
            where.n_inner, where.inner_memory, order, max(kernel_width, 1), *tallies.of(i), failed_at,
            buffers_at + i * size, 0 if table is None else table.ctypes.data,
        )  # fmt: skip

    run_chunks(run, pieces)
    tallies.settle(at)
    if any(failures):
        left = np.flatnonzero(memory[failed_at - memory_at :][:rows])
        again = out.new_empty((len(left), out.numel() // rows))
        _general(_lines_of_rows(x, where, left), again, order, width, at)
        out.view(rows, -1)[torch.from_numpy(left)] = again
