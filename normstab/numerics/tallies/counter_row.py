"""The live counters of one site, as the kernels write them."""

from __future__ import annotations

from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normstab.numerics.scaled.granule_counts import GranuleCounts
from normstab.numerics.tallies.histogram import Histogram
from normstab.numerics.tallies.tally import COUNTERS, LOSSES, Tally

__all__ = [
    "BINADES",
    "COUNTING",
    "GREATEST_BINADE",
    "HISTOGRAM_BINS",
    "INF_BIN",
    "LEAST_BINADE",
    "NAN_BIN",
    "ZERO_BIN",
    "Row",
]

# Histogram layout: one bin per binade of float64 (subnormal binades included), then zero, infinity, NaN.
LEAST_BINADE, GREATEST_BINADE = -1074, 1023
BINADES = GREATEST_BINADE - LEAST_BINADE + 1
ZERO_BIN, INF_BIN, NAN_BIN, HISTOGRAM_BINS = BINADES, BINADES + 1, BINADES + 2, BINADES + 3


# Held by whoever adds to a row: kernels run without Python's lock, and threads may share a ledger.
COUNTING = RLock()


class Row:
    """The live counters of one site, laid out for the kernels.

    `buffer` holds 31 int64: the ten COUNTERS; for each the stamp of its first offence (-1: none); for each
    the step of it; then the float32 pair (largest, smallest). `histogram` has HISTOGRAM_BINS int64, or is None.
    `losses` has for each of LOSSES its count, the stamp of its first and the step of it, which no kernel writes;
    `counts_losses_alone` says that nothing else of the row is read. `first_ranks` names the process of each first
    offence, where several were joined.
    """

    __slots__ = (
        "address",
        "buffer",
        "counts",
        "counts_losses",
        "counts_losses_alone",
        "counts_squares",
        "extremes",
        "first_ranks",
        "first_stamp",
        "first_step",
        "granules",
        "histogram",
        "losses",
    )

    def __init__(self, *, with_histogram: bool) -> None:
        self.granules: GranuleCounts | None = None
        self.first_ranks: dict[str, int] = {}
        self.counts_squares = self.counts_losses = self.counts_losses_alone = False
        self.losses: NDArray[np.int64] = np.zeros((3, len(LOSSES)), np.int64)
        self.losses[1:] = -1
        n = len(COUNTERS)
        self.buffer: NDArray[np.int64] = np.zeros(3 * n + 1, np.int64)
        self.counts = self.buffer[:n]
        self.first_stamp = self.buffer[n : 2 * n]
        self.first_step = self.buffer[2 * n : 3 * n]
        self.extremes = self.buffer[3 * n :].view(np.float32)
        self.histogram = np.zeros(HISTOGRAM_BINS, np.int64) if with_histogram else None
        self.address = self.buffer.ctypes.data
        self.first_stamp[:] = -1
        self.first_step[:] = -1
        self.reset()

    def __reduce__(self) -> tuple[Any, ...]:
        # `address` is that of this very buffer, so a copy must be built, never restored field by field.
        asked = self.counts_squares, self.counts_losses, self.counts_losses_alone
        with COUNTING:
            histogram = None if self.histogram is None else self.histogram.copy()
            ranks = dict(self.first_ranks)
            return _copied_row, (self.buffer.copy(), histogram, self.granules, self.losses.copy(), asked, ranks)

    def reset(self) -> None:
        """Set every count to zero; the first offences stay."""
        with COUNTING:
            self.counts[:] = 0
            self.losses[0] = 0
            self.extremes[:] = (0.0, np.inf)
            self.granules = None
            if self.histogram is not None:
                self.histogram[:] = 0

    def add(self, counts: NDArray[np.int64], largest: float, smallest: float, *, stamp: int, step: int) -> None:
        """Add the ten `counts` and the two magnitudes of one call, and mark what is a first offence."""
        with COUNTING:
            self.counts += counts
            self.extremes[0] = max(self.extremes[0], largest)
            self.extremes[1] = min(self.extremes[1], smallest)
            fresh = (counts > 0) & (self.first_stamp < 0)
            self.first_stamp[fresh] = stamp
            self.first_step[fresh] = step

    def lose(self, counter: str, count: int, *, stamp: int, step: int) -> None:
        """Add `count` events of one of LOSSES, and mark the first."""
        i = LOSSES.index(counter)
        with COUNTING:
            self.losses[0, i] += count
            if count and self.losses[1, i] < 0:
                self.losses[1:, i] = stamp, step

    def count_of(self, counter: str) -> int:
        """Return how often one of LOSSES was counted."""
        return int(self.losses[0, LOSSES.index(counter)])

    def first_of(self, counter: str) -> tuple[int, int]:
        """Return the stamp and the step of the first of `counter`, -1 where there was none."""
        if counter in LOSSES:
            i = LOSSES.index(counter)
            stamp, step = int(self.losses[1, i]), int(self.losses[2, i])
        else:
            i = COUNTERS.index(counter)
            stamp, step = int(self.first_stamp[i]), int(self.first_step[i])
        return (stamp, step % 2**64) if stamp >= 0 else (-1, -1)

    def add_row(self, other: Row) -> None:
        """Add the counts of another row of the same kind; the first offences stay."""
        with COUNTING:
            self.counts += other.counts
            self.losses[0] += other.losses[0]
            self.extremes[0] = max(self.extremes[0], other.extremes[0])
            self.extremes[1] = min(self.extremes[1], other.extremes[1])
            if other.granules is not None:
                self.granules = other.granules if self.granules is None else self.granules + other.granules
            if self.histogram is not None and other.histogram is not None:
                self.histogram += other.histogram

    def set_first(self, counter: str, stamp: int, step: int, rank: int) -> None:
        """Say when the first of `counter` was, its step in 0 .. 2^64 - 1, and in which of several processes."""
        step = step - 2**64 if step >= 2**63 else step  # the int64 of the same bits
        with COUNTING:
            if counter in LOSSES:
                self.losses[1:, LOSSES.index(counter)] = stamp, step
            else:
                i = COUNTERS.index(counter)
                self.first_stamp[i], self.first_step[i] = stamp, step
            self.first_ranks[counter] = rank

    def forget_firsts(self) -> None:
        """Have no first offences."""
        with COUNTING:
            self.first_stamp[:] = self.first_step[:] = -1
            self.losses[1:] = -1
            self.first_ranks.clear()

    def tally(self, *, with_inexact: bool) -> Tally:
        """Return the counts so far as plain data."""
        counts: dict[str, Any] = dict(zip(COUNTERS, self.counts.tolist(), strict=True))
        counts |= dict(zip(LOSSES, self.losses[0].tolist(), strict=True))
        if not with_inexact:
            counts["inexact"] = None
        histogram = None if self.histogram is None else _histogram(self.histogram)
        largest, smallest = self.extremes.tolist()
        return Tally(**counts, largest=largest, smallest=smallest, histogram=histogram, granules=self.granules)


def _copied_row(
    buffer: NDArray[np.int64],
    histogram: NDArray[np.int64] | None,
    granules: GranuleCounts | None,
    losses: NDArray[np.int64],
    asked: tuple[bool, bool, bool],
    ranks: dict[str, int],
) -> Row:
    """Return a row of its own memory with these counts, that counts on as `asked`."""
    row = Row(with_histogram=histogram is not None)
    row.granules, row.losses, row.first_ranks = granules, losses, ranks
    row.counts_squares, row.counts_losses, row.counts_losses_alone = asked
    row.buffer[:] = buffer
    if row.histogram is not None and histogram is not None:
        row.histogram[:] = histogram
    return row


def _histogram(bins: NDArray[np.int64]) -> Histogram:
    """Return the nonempty bins as plain data."""
    occupied = np.flatnonzero(bins[:BINADES])
    binades = {int(i) + LEAST_BINADE: int(bins[i]) for i in occupied}
    return Histogram(binades, int(bins[ZERO_BIN]), int(bins[INF_BIN]), int(bins[NAN_BIN]))
