"""The CPU kernels as tensors see them: round a tensor, or compute and round an operation, in one pass.

What they refuse (False, None) the torch reference computes. This file splits work, lays out arguments and
settles counts; the arithmetic is in cpu_round and cpu_pointwise. Importing it needs numba.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.kernels.cpu.casts.cpu_turned import BLOCK_BITS, turned32
from normstab.numerics.kernels.cpu.counting import SCRATCH, settle
from normstab.numerics.kernels.cpu.cpu_operations import pointwise
from normstab.numerics.kernels.cpu.cpu_round import (
    copied32_counted,
    histogram,
    nearest32,
    nearest32_counted,
    nearest64,
    quick32_chunk,
    quick32_uncounted,
    round32_chunk,
    round64_chunk,
)
from normstab.numerics.kernels.cpu.layout import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from normstab.numerics.kernels.cpu.threads import SERIAL_BELOW, chunks, run_chunks
from normstab.numerics.kernels.cpu.workspace import OWN, address_of
from normstab.numerics.kernels.format_table import PLAN, contains_dtype, plan
from normstab.numerics.kernels.shortcut_table import GENERIC, INTEGER, LANE32, LANE64, MAGIC
from normstab.numerics.kernels.strides import is_dense, turned
from normstab.numerics.philox import Draw, signed_step
from normstab.numerics.tallies.counter_row import COUNTING

__all__ = ["pointwise", "round_into"]

# Of each dtype: its code in the kernels, bytes per element, lane and name.
DTYPES = {
    torch.float16: (FLOAT16, 2, LANE32, "float16"),
    torch.bfloat16: (BFLOAT16, 2, LANE32, "bfloat16"),
    torch.float32: (FLOAT32, 4, LANE32, "float32"),
    torch.float64: (FLOAT64, 8, LANE64, "float64"),
}
SIZES = {code: size for code, size, _, _ in DTYPES.values()}
STYLE, FIELD_WIDTH = PLAN.index("cast_style"), PLAN.index("field_width")
LEAST_ACROSS = 32  # elements of a row in memory: shorter ones do not fill lanes
NEAREST_STYLES = (INTEGER, MAGIC)


def round_into(x: Tensor, out: Tensor, call: Call) -> bool:
    """Round `x` into `out`, of the same shape and dtype, which may be `x`; count. Always True: all is covered."""
    n = x.numel()
    if n == 0:
        return True
    if x.requires_grad or out.requires_grad:
        x, out = x.detach(), out.detach()
    address, target = x.data_ptr(), out.data_ptr()
    is_plain = x.is_contiguous() and out.is_contiguous() and not x.is_neg()
    # Elements may be taken in any order that both share, unless random bits go by their row-major index.
    if not is_plain and not call.rounding.is_stochastic and not x.is_neg():
        is_plain = x.stride() == out.stride() and is_dense(x)
    # Memory that overlaps but for a shift would be written before it is read.
    is_apart = address == target or abs(address - target) >= n * x.element_size()
    if not is_plain and is_apart and _round_turned(x, out, call):
        return True
    if not is_plain or not is_apart:
        dense = x.resolve_neg().contiguous()
        rounded = torch.empty_like(dense)
        round_into(dense, rounded, call)
        out.copy_(rounded)
        return True
    _round_dense(x, out, address, target, n, call)
    return True


def _round_turned(x: Tensor, out: Tensor, call: Call) -> bool:
    """Round a matrix, or several, whose columns lie in memory one after the other; False: it is something else."""
    if call.draw is None or x.dtype != torch.float32 or x.is_neg() or x.stride() != out.stride():
        return False
    table = plan(call.format, call.rounding, LANE32)
    found, rows = turned(x), BLOCK_BITS // table.item(FIELD_WIDTH)
    if found is None or contains_dtype(call.format, "float32") or table.item(STYLE) == GENERIC:
        return False
    if found.across < LEAST_ACROSS or found.down % rows or call.draw.first_index % rows:
        return False
    if call.row is not None and call.row.histogram is not None:
        with COUNTING:
            histogram(x.data_ptr(), FLOAT32, x.numel(), call.row.histogram.ctypes.data)
    groups, sizes, words = found.matrices * (found.down // rows), (found.across, found.down), words_of(call.draw)
    size = -(-groups // len(chunks(x.numel(), work=10)))
    pieces = [(start, min(start + size, groups)) for start in range(0, groups, size)]
    scratch = np.empty(SCRATCH * len(pieces), np.int64)
    source, target, counts = x.data_ptr(), out.data_ptr(), address_of(scratch)

    def work(i: int) -> None:
        into = 0 if call.row is None else counts + 8 * SCRATCH * i
        turned32(source, target, sizes, pieces[i], table, into, words)

    run_chunks(work, len(pieces))
    if call.row is not None:
        with COUNTING:
            settle(counts, len(pieces), call.row.address, call.stamp, call.step, call.inexact)
    return True


def _round_dense(x: Tensor, out: Tensor, source: int, target: int, n: int, call: Call) -> None:
    """Round `n` elements in storage order."""
    dtype, _, lane, name = DTYPES[x.dtype]
    row, copies = call.row, contains_dtype(call.format, name)
    table = plan(call.format, call.rounding, lane, copies=copies)
    style = table.item(STYLE)
    if row is None:
        if copies:
            out.copy_(x)
        elif style != GENERIC:
            _round_uncounted(source, target, n, dtype, table, style, call)
        else:
            _round_counted(source, target, n, dtype, table, style, call)
        return
    if copies and dtype == FLOAT32:
        _copy_counted(x, out, source, n, table, call)
        return
    # The histogram first, for the rounding may write over `x`; under the lock, for threads share it.
    if row.histogram is not None:
        with COUNTING:
            histogram(source, dtype, n, row.histogram.ctypes.data)
    target = 0 if copies else target
    if dtype == FLOAT32 and style in NEAREST_STYLES and 4 * n < SERIAL_BELOW:
        pieces, counts = 1, OWN.address
        nearest32_counted(source, target, n, table, counts)
    else:
        scratch, pieces = _round_counted(source, target, n, dtype, table, style, call)
        counts = address_of(scratch)
    if copies:
        out.copy_(x)
    with COUNTING:
        settle(counts, pieces, row.address, call.stamp, call.step, call.inexact)


def _copy_counted(x: Tensor, out: Tensor, source: int, n: int, table: NDArray[np.int64], call: Call) -> None:
    """Copy float32 that the format holds as they are, and count them."""
    row = call.row
    assert row is not None, "somebody counts"
    bins = 0 if row.histogram is None else row.histogram.ctypes.data
    pieces = chunks(n, work=1) if bins == 0 else [(0, n)]  # a histogram is shared
    scratch = np.empty(SCRATCH * len(pieces), np.int64)
    counts = address_of(scratch)

    def work(i: int) -> None:
        start, length = pieces[i]
        copied32_counted(source + 4 * start, length, table, counts + 8 * SCRATCH * i, bins)

    with COUNTING if bins else nullcontext():
        run_chunks(work, len(pieces))
    if x is not out:
        out.copy_(x)
    with COUNTING:
        settle(counts, len(pieces), row.address, call.stamp, call.step, call.inexact)


def _round_uncounted(
    source: int, target: int, n: int, dtype: int, table: NDArray[np.int64], style: int, call: Call
) -> None:
    """Round by the shortcut of the style."""
    size, is_nearest = SIZES[dtype], style in NEAREST_STYLES
    if dtype == FLOAT32 and is_nearest and n < SERIAL_BELOW:
        nearest32(source, target, n, table)
        return
    word, step, first = words_of(call.draw)

    def work(i: int) -> None:
        start, length = pieces[i]
        at, to = source + size * start, target + size * start
        if dtype == FLOAT64:
            nearest64(at, to, length, table)
        elif dtype == FLOAT32 and is_nearest:
            nearest32(at, to, length, table)
        else:
            quick32_uncounted(at, to, dtype, length, table, word, step, first + start)

    pieces = chunks(n, work=1 if is_nearest else 4)
    run_chunks(work, len(pieces))


def _round_counted(
    source: int, target: int, n: int, dtype: int, table: NDArray[np.int64], style: int, call: Call
) -> tuple[NDArray[np.int64], int]:
    """Round by whichever kernel covers the style; return the scratches and how many. Target 0: count only."""
    size = SIZES[dtype]
    word, step, first = words_of(call.draw)
    pieces = chunks(n, work=4 if style in NEAREST_STYLES else 10)
    scratch = np.empty(SCRATCH * len(pieces), np.int64)
    counts = address_of(scratch)

    def work(i: int) -> None:
        start, length = pieces[i]
        at, to, into = source + size * start, target + size * start if target else 0, counts + 8 * SCRATCH * i
        if dtype == FLOAT64:
            round64_chunk(at, to, length, table, into, word, step, first + start)
        elif dtype == FLOAT32 and style in NEAREST_STYLES:
            nearest32_counted(at, to, length, table, into)
        elif style != GENERIC:
            quick32_chunk(at, to, dtype, length, table, into, word, step, first + start)
        else:
            round32_chunk(at, to, dtype, length, table, into, word, step, first + start)

    run_chunks(work, len(pieces))
    return scratch, len(pieces)


def words_of(draw: Draw | None) -> tuple[int, int, int]:
    """Return the two words of a draw as int64 of the same bits, and its first index; zeros where nothing is drawn."""
    if draw is None:
        return 0, 0, 0
    return signed_step(draw.word), signed_step(draw.step), draw.first_index
