"""Which way of rounding and counting in float32 lanes gives the bits and counters of the calls of a sum, if any.

    scratches   [ sums: piece 0, piece 1 ... ][ addends: piece 0 ... ][ Kahan's: piece 0 ... ]     12 int64 each
    bins        [ piece 0: sums, addends, Kahan's ][ piece 1: ... ]                                 if one is asked for

Each piece of a kernel's work counts into its own, and all are added up when the last has ended.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from normstab.numerics.call import Call
from normstab.numerics.formats import AnyFormat
from normstab.numerics.kernels.cpu.bits import INF64
from normstab.numerics.kernels.cpu.counting import HISTOGRAM_BINS, SCRATCH, SMALLEST, settle
from normstab.numerics.kernels.cpu.openmp import flushes_subnormals
from normstab.numerics.kernels.cpu.vector.lane_operations import code_of
from normstab.numerics.kernels.cpu.vector.note_code import NOTES_OF_GROUP
from normstab.numerics.kernels.cpu.vector.ways import (
    BINNED,
    CAREFUL,
    COUNTED,
    FAILING,
    FULL,
    FULL_BINNED,
    FUSED,
    KAHAN,
    ONE_BY_ONE,
    SATURATING,
    UNCOUNTED,
    Lanes,
    Way,
)
from normstab.numerics.kernels.nearest import HALF, PLAIN, STYLE, lane_table, saturates
from normstab.numerics.readable.losses import counts_losses
from normstab.numerics.tallies.counter_row import COUNTING

__all__ = ["Tallies", "careful_way", "way_of"]


def way_of(add: Call, load: Call | None, kahan: Call | None, *, is_fused: bool = False) -> Lanes | None:
    """Return the way of these calls, all in the format and mode of `add`, or None.

    None also where what is lost is counted too, and where subnormals are flushed. `load` is that of addends or of
    products; `is_fused`: the products are added unrounded.
    """
    table = lane_table(add.format, add.rounding, is_odd=is_fused)
    if table is None or flushes_subnormals() or any(call is not None and counts_losses(call) for call in (add, kahan)):
        return None
    rows = [(call.row, call.inexact) for call in (add, load, kahan) if call is not None and call.row is not None]
    has_bins = any(row.histogram is not None for row, _ in rows)
    is_full = any(is_inexact for _, is_inexact in rows)
    counts = (FULL_BINNED if is_full else BINNED) if has_bins else FULL if is_full else COUNTED if rows else UNCOUNTED
    chain = KAHAN if kahan is not None else FUSED if is_fused else ONE_BY_ONE
    way = Way(table.item(STYLE), counts, chain, SATURATING if saturates(add.format) else FAILING)
    return Lanes(code_of(way), table.ctypes.data, *way, 0)


def careful_way(way: Lanes, format: AnyFormat) -> Lanes | None:
    """Return the way of the same calls that fails by nothing that leaves the range of their format, or None."""
    if way.counts == UNCOUNTED and way.style in (HALF, PLAIN):
        return None  # nor does this way: the processor's own infinities and NaN are those of these formats
    is_known = format.overflow in ("inf", "nan") or saturates(format)
    if not is_known or way.counts in (BINNED, FULL_BINNED) or way.chain == FUSED:
        return None
    return way._replace(code=code_of(Way(way.style, way.counts, way.chain, CAREFUL)), ends=CAREFUL)


class Tallies:
    """What the pieces of a kernel's work count: scratches and histograms of sums, of addends and of corrections."""

    def __init__(self, pieces: int, way: Lanes) -> None:
        self.scratches = np.zeros((NOTES_OF_GROUP, pieces, SCRATCH), np.int64)
        self.scratches[:, :, SMALLEST] = INF64
        has_bins = way.counts in (BINNED, FULL_BINNED)
        shape = (pieces, NOTES_OF_GROUP, HISTOGRAM_BINS)
        self.bins: NDArray[np.int64] | None = np.zeros(shape, np.int64) if has_bins else None
        self.apart = 8 * SCRATCH * pieces  # bytes from a scratch of a piece to its next

    def of(self, piece: int) -> tuple[int, int, int]:
        """Return where a piece counts: the address of its scratches, how far they are apart, that of its histograms."""
        bins = 0 if self.bins is None else int(self.bins.ctypes.data) + self.bins.strides[0] * piece
        return int(self.scratches.ctypes.data) + 8 * SCRATCH * piece, self.apart, bins

    def settle(self, calls: Sequence[Call | None]) -> None:
        """Add all to the rows of the calls of sums, of addends and of corrections."""
        for i, call in enumerate(calls):
            if call is None or call.row is None:
                continue
            scratches = self.scratches[i]
            with COUNTING:
                address = scratches.ctypes.data
                settle(address, len(scratches), call.row.address, call.stamp, call.step, call.inexact)
            if self.bins is not None:
                call.row.add_bins(self.bins[:, i].sum(0))
