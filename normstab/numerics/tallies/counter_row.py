"""The live counters of one site, as the kernels write them."""

from __future__ import annotations

from threading import RLock
from typing import Any, Protocol

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
    "Pending",
    "Row",
    "settle_all",
]

# Histogram layout: one bin per binade of float64 (subnormal binades included), then zero, infinity, NaN.
LEAST_BINADE, GREATEST_BINADE = -1074, 1023
BINADES = GREATEST_BINADE - LEAST_BINADE + 1
ZERO_BIN, INF_BIN, NAN_BIN, HISTOGRAM_BINS = BINADES, BINADES + 1, BINADES + 2, BINADES + 3


# Held by whoever adds to a row: kernels run without Python's lock, and threads may share a ledger.
COUNTING = RLock()


class Pending(Protocol):
    """Where counts wait, in the memory of a device, until someone looks."""

    def settle(self) -> None:
        """Wait for the device, and add what has been counted to the rows that it belongs to."""


def settle_all(pending: set[Pending]) -> None:
    """Settle and take out all that is pending."""
    with COUNTING:
        while pending:
            pending.pop().settle()


class Row:
    """The live counters of one site, laid out for the kernels.

    Kernels of a CPU write here at `address`; those of other devices count in memory of their own, which `pending`
    names, and which is added here before anything is read.

    `buffer` holds 31 int64: the ten COUNTERS; for each the stamp of its first offence (-1: none); for each
    the step of it; then the float32 pair (largest, smallest). `histogram` has HISTOGRAM_BINS int64, or is None.
    `losses` has for each of LOSSES its count, the stamp of its first and the step of it, which no kernel writes.
    `first_ranks` names the process of each first offence, where several were joined.
    """

    __slots__ = (
        "_buffer",
        "_counts",
        "_extremes",
        "_first_stamp",
        "_first_step",
        "_histogram",
        "address",
        "counts_losses",
        "counts_squares",
        "first_ranks",
        "granules",
        "has_histogram",
        "losses",
        "pending",
    )

    def __init__(self, *, with_histogram: bool) -> None:
        self.granules: GranuleCounts | None = None
        self.first_ranks: dict[str, int] = {}
        self.pending: set[Pending] = set()
        self.counts_squares = self.counts_losses = False
        self.losses: NDArray[np.int64] = np.zeros((3, len(LOSSES)), np.int64)
        self.losses[1:] = -1
        n = len(COUNTERS)
        self._buffer: NDArray[np.int64] = np.zeros(3 * n + 1, np.int64)
        self._counts = self._buffer[:n]
        self._first_stamp = self._buffer[n : 2 * n]
        self._first_step = self._buffer[2 * n : 3 * n]
        self._extremes = self._buffer[3 * n :].view(np.float32)
        self.has_histogram = with_histogram
        self._histogram = np.zeros(HISTOGRAM_BINS, np.int64) if with_histogram else None
        self.address = self._buffer.ctypes.data
        self._first_stamp[:] = -1
        self._first_step[:] = -1
        self.reset()

    def settle(self) -> None:
        """Add what was counted on other devices."""
        if self.pending:
            settle_all(self.pending)

    @property
    def buffer(self) -> NDArray[np.int64]:
        """All the counters, as laid out above."""
        self.settle()
        return self._buffer

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often, by COUNTERS."""
        self.settle()
        return self._counts

    @property
    def first_stamp(self) -> NDArray[np.int64]:
        """The stamp of each first offence, by COUNTERS."""
        self.settle()
        return self._first_stamp

    @property
    def first_step(self) -> NDArray[np.int64]:
        """The step of each first offence, by COUNTERS."""
        self.settle()
        return self._first_step

    @property
    def extremes(self) -> NDArray[np.float32]:
        """The largest and the smallest magnitude."""
        self.settle()
        return self._extremes

    @property
    def histogram(self) -> NDArray[np.int64] | None:
        """The bins, where anyone asked for them."""
        self.settle()
        return self._histogram

    def __reduce__(self) -> tuple[Any, ...]:
        # `address` is that of this very buffer, so a copy must be built, never restored field by field.
        asked = self.counts_squares, self.counts_losses
        with COUNTING:
            self.settle()
            histogram = None if self._histogram is None else self._histogram.copy()
            ranks = dict(self.first_ranks)
            return _copied_row, (self._buffer.copy(), histogram, self.granules, self.losses.copy(), asked, ranks)

    def reset(self) -> None:
        """Set every count to zero; the first offences stay."""
        with COUNTING:
            self.settle()
            self._counts[:] = 0
            self.losses[0] = 0
            self._extremes[:] = (0.0, np.inf)
            self.granules = None
            if self._histogram is not None:
                self._histogram[:] = 0

    def add(
        self,
        counts: NDArray[np.int64],
        largest: float,
        smallest: float,
        *,
        stamp: int | NDArray[np.int64],
        step: int | NDArray[np.int64],
    ) -> None:
        """Add the ten `counts` and the two magnitudes of one call, and mark what is a first offence.

        `stamp` and `step` are those of all counters, or of each.
        The first is that of the least stamp: what a device counted is added later than it happened.
        """
        with COUNTING:
            self._counts += counts
            self._extremes[0] = max(self._extremes[0], largest)
            self._extremes[1] = min(self._extremes[1], smallest)
            fresh = (counts > 0) & ((self._first_stamp < 0) | (stamp < self._first_stamp))
            self._first_stamp[fresh] = np.broadcast_to(stamp, fresh.shape)[fresh]
            self._first_step[fresh] = np.broadcast_to(step, fresh.shape)[fresh]

    def add_bins(self, bins: NDArray[np.int64]) -> None:
        """Add to the histogram, where there is one."""
        with COUNTING:
            if self._histogram is not None:
                self._histogram += bins

    def lose(self, counter: str, count: int, *, stamp: int, step: int) -> None:
        """Add `count` events of one of LOSSES, and mark the first."""
        i = LOSSES.index(counter)
        with COUNTING:
            self.losses[0, i] += count
            if count and (self.losses[1, i] < 0 or stamp < self.losses[1, i]):
                self.losses[1:, i] = stamp, step

    def count_of(self, counter: str) -> int:
        """Return how often one of LOSSES was counted."""
        self.settle()
        return int(self.losses[0, LOSSES.index(counter)])

    def first_of(self, counter: str) -> tuple[int, int]:
        """Return the stamp and the step of the first of `counter`, -1 where there was none."""
        self.settle()
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
            self._counts += other.counts
            self.losses[0] += other.losses[0]
            self._extremes[0] = max(self._extremes[0], other.extremes[0])
            self._extremes[1] = min(self._extremes[1], other.extremes[1])
            if other.granules is not None:
                self.granules = other.granules if self.granules is None else self.granules + other.granules
            if other.histogram is not None:
                self.add_bins(other.histogram)

    def set_first(self, counter: str, stamp: int, step: int, rank: int) -> None:
        """Say when the first of `counter` was, its step in 0 .. 2^64 - 1, and in which of several processes."""
        step = step - 2**64 if step >= 2**63 else step  # the int64 of the same bits
        with COUNTING:
            self.settle()
            if counter in LOSSES:
                self.losses[1:, LOSSES.index(counter)] = stamp, step
            else:
                i = COUNTERS.index(counter)
                self._first_stamp[i], self._first_step[i] = stamp, step
            self.first_ranks[counter] = rank

    def forget_firsts(self, *, after: int = -1) -> None:
        """Have no first offences with a stamp beyond `after`."""
        with COUNTING:
            self.settle()
            late, lost_late = self._first_stamp > after, self.losses[1] > after
            self._first_stamp[late] = self._first_step[late] = -1
            self.losses[1:, lost_late] = -1
            names = [*np.array(COUNTERS)[late], *np.array(LOSSES)[lost_late]]
            for name in names:
                self.first_ranks.pop(str(name), None)

    def tally(self, *, with_inexact: bool) -> Tally:
        """Return the counts so far as plain data."""
        self.settle()
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
    asked: tuple[bool, bool],
    ranks: dict[str, int],
) -> Row:
    """Return a row of its own memory with these counts, that counts on as `asked`."""
    row = Row(with_histogram=histogram is not None)
    row.granules, row.losses, row.first_ranks = granules, losses, ranks
    row.counts_squares, row.counts_losses = asked
    row.buffer[:] = buffer
    if histogram is not None:
        row.add_bins(histogram)
    return row


def _histogram(bins: NDArray[np.int64]) -> Histogram:
    """Return the nonempty bins as plain data."""
    occupied = np.flatnonzero(bins[:BINADES])
    binades = {int(i) + LEAST_BINADE: int(bins[i]) for i in occupied}
    return Histogram(binades, int(bins[ZERO_BIN]), int(bins[INF_BIN]), int(bins[NAN_BIN]))
