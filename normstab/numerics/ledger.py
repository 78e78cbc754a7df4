"""What rounding destroyed: tallies per site and direction, with the step of each first offence.

A Ledger is filled by the one function that rounds, and read as a mapping from Site to Tally. It judges
nothing. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normstab.errors import NormstabError, lookup, near
from normstab.numerics.readable.histogram import Histogram
from normstab.numerics.scaled.granule_counts import GranuleCounts

__all__ = ["COUNTERS", "First", "Histogram", "Ledger", "Row", "Site", "Tally"]

# The order is the layout of Row.buffer, which the kernels write.
COUNTERS = (
    "count",
    "overflow",
    "saturated",
    "underflow",
    "subnormal",
    "nan_produced",
    "nan_propagated",
    "inf_propagated",
    "divide_by_zero",
    "inexact",
)
DIRECTIONS = ("forward", "backward", "optimizer")

# Histogram layout: one bin per binade of float64 (subnormal binades included), then zero, infinity, NaN.
LEAST_BINADE, GREATEST_BINADE = -1074, 1023
BINADES = GREATEST_BINADE - LEAST_BINADE + 1
ZERO_BIN, INF_BIN, NAN_BIN, HISTOGRAM_BINS = BINADES, BINADES + 1, BINADES + 2, BINADES + 3


@dataclass(frozen=True)
class Site:
    """A place that rounds: `module.operation[direction]`."""

    module: str
    operation: str
    direction: str = "forward"

    @property
    def path(self) -> str:
        """The dotted name without the direction: `module.operation`."""
        return f"{self.module}.{self.operation}" if self.module else self.operation

    def __str__(self) -> str:
        return f"{self.path}[{self.direction}]"

    @staticmethod
    def parse(text: str, *, operation: str = "") -> Site:
        """Return the Site that prints as `text`; with `operation` given, `text` is the module."""
        if operation:
            return Site(text, operation)
        path, _, direction = text.removesuffix("]").partition("[")
        module, _, last = path.rpartition(".")
        return Site(module, last, direction or "forward")


class First(NamedTuple):
    """The first offence of a kind: where, and in which step."""

    site: Site
    step: int


@dataclass(frozen=True)
class Tally:
    """Counts at one site, and the largest and smallest finite nonzero magnitude that arrived there.

    The magnitudes are exact results rounded to float32 toward zero; with none seen, `largest` is 0 and
    `smallest` infinity, so that tallies add. `inexact` and `histogram` are None unless the ledger asked.
    """

    count: int = 0
    overflow: int = 0
    saturated: int = 0
    underflow: int = 0
    subnormal: int = 0
    nan_produced: int = 0
    nan_propagated: int = 0
    inf_propagated: int = 0
    divide_by_zero: int = 0
    inexact: int | None = None
    largest: float = 0.0
    smallest: float = float("inf")
    histogram: Histogram | None = None
    granules: GranuleCounts | None = None

    @property
    def zero_granules(self) -> int:
        """How many granules of a scaled format were all zeros."""
        return self.granules.zero_granules if self.granules else 0

    @property
    def dead_granules(self) -> int:
        """How many granules of a scaled format had every element flushed."""
        return self.granules.dead_granules if self.granules else 0

    @property
    def scale_spread(self) -> float:
        """The log2 of the largest scale over the smallest."""
        return self.granules.scale_spread if self.granules else 0.0

    @property
    def mse(self) -> float | None:
        """The mean squared error of quantizing; None unless the ledger asked."""
        return self.granules.squares.mse if self.granules and self.granules.squares else None

    @property
    def sqnr(self) -> float | None:
        """Signal over quantization noise in decibels; None unless the ledger asked."""
        return self.granules.squares.sqnr if self.granules and self.granules.squares else None

    def __add__(self, other: Tally) -> Tally:
        sums: dict[str, Any] = {name: _total(getattr(self, name), getattr(other, name)) for name in COUNTERS}
        sums["histogram"] = _total(self.histogram, other.histogram)
        sums["granules"] = _total(self.granules, other.granules)
        largest, smallest = max(self.largest, other.largest), min(self.smallest, other.smallest)
        return Tally(**sums, largest=largest, smallest=smallest)


def _total(a: Any, b: Any) -> Any:
    """Return a + b, where None means that it was not counted."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


class Row:
    """The live counters of one site, laid out for the kernels.

    `buffer` holds 31 int64: the ten COUNTERS; for each the stamp of its first offence (-1: none); for each
    the step of it; then the float32 pair (largest, smallest). `histogram` has HISTOGRAM_BINS int64, or is None.
    """

    __slots__ = (
        "address",
        "buffer",
        "counts",
        "counts_squares",
        "extremes",
        "first_stamp",
        "first_step",
        "granules",
        "histogram",
    )

    def __init__(self, *, with_histogram: bool) -> None:
        self.granules: GranuleCounts | None = None
        self.counts_squares = False
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
        histogram = None if self.histogram is None else self.histogram.copy()
        return _copied_row, (self.buffer.copy(), histogram, self.granules)

    def reset(self) -> None:
        """Set every count to zero; the first offences stay."""
        self.counts[:] = 0
        self.extremes[:] = (0.0, np.inf)
        self.granules = None
        if self.histogram is not None:
            self.histogram[:] = 0

    def add(self, counts: NDArray[np.int64], largest: float, smallest: float, *, stamp: int, step: int) -> None:
        """Add the ten `counts` and the two magnitudes of one call, and mark what is a first offence."""
        self.counts += counts
        self.extremes[0] = max(self.extremes[0], largest)
        self.extremes[1] = min(self.extremes[1], smallest)
        fresh = (counts > 0) & (self.first_stamp < 0)
        self.first_stamp[fresh] = stamp
        self.first_step[fresh] = step

    def tally(self, *, with_inexact: bool) -> Tally:
        """Return the counts so far as plain data."""
        counts: dict[str, Any] = dict(zip(COUNTERS, self.counts.tolist(), strict=True))
        if not with_inexact:
            counts["inexact"] = None
        histogram = None if self.histogram is None else _histogram(self.histogram)
        largest, smallest = self.extremes.tolist()
        return Tally(**counts, largest=largest, smallest=smallest, histogram=histogram, granules=self.granules)


def _copied_row(buffer: NDArray[np.int64], histogram: NDArray[np.int64] | None, granules: GranuleCounts | None) -> Row:
    """Return a row of its own memory with the counts of `buffer`, `histogram` and `granules`."""
    row = Row(with_histogram=histogram is not None)
    row.granules = granules
    row.buffer[:] = buffer
    if row.histogram is not None and histogram is not None:
        row.histogram[:] = histogram
    return row


def _histogram(bins: NDArray[np.int64]) -> Histogram:
    """Return the nonempty bins as plain data."""
    occupied = np.flatnonzero(bins[:BINADES])
    binades = {int(i) + LEAST_BINADE: int(bins[i]) for i in occupied}
    return Histogram(binades, int(bins[ZERO_BIN]), int(bins[INF_BIN]), int(bins[NAN_BIN]))


class Ledger(Mapping[Site, Tally]):
    """Tallies per Site, in order of first use.

    `inexact=True` also counts inexact results, which rules out the float32 fast path; `histogram=True` counts
    exact results per binade, `mse=True` squared errors of scaled formats. `ledger[site]` takes a Site, or a
    dotted prefix such as "conv1" or "bn1.square", for which it returns the sum.
    """

    def __init__(self, *, inexact: bool = False, histogram: bool = False, mse: bool = False) -> None:
        self.counts_inexact = inexact
        self.counts_histogram = histogram
        self.counts_squares = mse
        self._rows: dict[Site, Row] = {}
        self._stamp = 0

    def row(self, site: Site) -> Row:
        """Return the live row of `site`, made on first use."""
        row = self._rows.get(site)
        if row is None:
            row = self._rows[site] = Row(with_histogram=self.counts_histogram)
            row.counts_squares = self.counts_squares
        return row

    def stamp(self) -> int:
        """Return the next number of an event, so that first offences have an order within a step."""
        self._stamp += 1
        return self._stamp

    def __getitem__(self, site: Site | str) -> Tally:
        if isinstance(site, Site):
            return self._rows[site].tally(with_inexact=self.counts_inexact)
        dotted = site.replace("::", ".")  # as the key of a rule has it: module::operation
        tallies = [self[s] for s in self._rows if _is_under(s, dotted)]
        if not tallies:
            names = {s.path for s in self._rows} | {s.module for s in self._rows}
            raise KeyError(f"no site under {site!r} in the ledger{near(site, names)}")
        return sum(tallies, Tally())

    def __iter__(self) -> Iterator[Site]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def first(self, *counters: str) -> First | None:
        """Return the first site, in order of execution, where one of `counters` rose from zero, or None."""
        places = {name: index for index, name in enumerate(COUNTERS)}
        earliest: tuple[int, First] | None = None
        for index in [lookup(places, counter, what="counter") for counter in counters]:
            for site, row in self._rows.items():
                stamp = int(row.first_stamp[index])
                if stamp >= 0 and (earliest is None or stamp < earliest[0]):
                    earliest = stamp, First(site, int(row.first_step[index]))
        return earliest[1] if earliest else None

    def first_step(self, site: Site, counter: str) -> int | None:
        """Return the step of the first `counter` at `site`, or None."""
        step = int(self._rows[site].first_step[COUNTERS.index(counter)])
        return step if step >= 0 else None

    def drain(self) -> dict[Site, Tally]:
        """Return every tally and set the counts to zero; the first offences stay."""
        tallies = dict(self)
        for row in self._rows.values():
            row.reset()
        return tallies

    def total(self) -> Tally:
        """Return the sum over all sites."""
        return sum(self.values(), Tally())

    def __repr__(self) -> str:
        total = self.total()
        shown = ", ".join(f"{f.name}={getattr(total, f.name)}" for f in fields(Tally)[:5])
        return f"Ledger({len(self)} sites, {shown})"


def _is_under(site: Site, prefix: str) -> bool:
    """Whether `prefix` is the site itself or a dotted prefix of its path."""
    return prefix in (str(site), site.path) or site.path.startswith(prefix + ".")


def site_of(name: str, operation: str, direction: str) -> Site:
    """Return the Site of `operation` in the module called `name`."""
    if direction not in DIRECTIONS:
        raise NormstabError(f"unknown direction {direction!r} ({', '.join(DIRECTIONS)})")
    return Site(name, operation, direction)
