"""What rounding destroyed: tallies per site and direction, with the step of each first offence.

A Ledger is filled by the one function that rounds, and read as a mapping from Site to Tally. It judges
nothing. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normstab.errors import NormstabError, lookup, near
from normstab.numerics.tallies.counter_row import Pending, Row, settle_all
from normstab.numerics.tallies.histogram import Histogram
from normstab.numerics.tallies.tally import COUNTERS, LOSSES, Tally

__all__ = ["COUNTERS", "LOSSES", "First", "Histogram", "Ledger", "Noted", "Row", "Site", "Tally"]

DIRECTIONS = ("forward", "backward", "optimizer")


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
    """The first offence of a kind: where, in which step, and in which of several processes (None: there is one)."""

    site: Site
    step: int
    rank: int | None = None


class Noted(NamedTuple):
    """What one call counted, as `Row.add` takes it."""

    row: Row
    counts: NDArray[np.int64]
    largest: float
    smallest: float
    stamp: int
    step: int


class Ledger(Mapping[Site, Tally]):
    """Tallies per Site, in order of first use.

    `inexact=True` also counts inexact results, which rules out the float32 fast path; `histogram=True` counts
    exact results per binade, `mse=True` squared errors of scaled formats. `losses=True` counts `absorbed` and
    `cancelled` on every add, sub, fma and inside sums, in a few times the time; `lost_updates` are counted
    always. `processes` says of how many it was joined. `ledger[site]` takes a Site, or a dotted prefix such as
    "conv1" or "bn1.square", for which it returns the sum.
    """

    def __init__(
        self, *, inexact: bool = False, histogram: bool = False, mse: bool = False, losses: bool = False
    ) -> None:
        self.counts_inexact = inexact
        self.counts_histogram = histogram
        self.counts_squares = mse
        self.counts_losses = losses
        self.processes = 1
        self.pending: set[Pending] = set()
        self._rows: dict[Site, Row] = {}
        self._recomputed: Ledger | None = None
        self._noted: list[Noted] | None = None
        self._stamp = 0

    @property
    def has_extras(self) -> bool:
        """Whether more is counted than the fastest kernels do."""
        return self.counts_inexact or self.counts_histogram or self.counts_losses

    @contextmanager
    def counting_losses(self) -> Iterator[None]:
        """Count `absorbed` and `cancelled` inside, at every site: a few steps of a long run tell what sums lose."""
        before = self.counts_losses
        self._count_losses(True)
        try:
            yield
        finally:
            self._count_losses(before)

    def _count_losses(self, is_counting: bool) -> None:
        self.counts_losses = is_counting
        for row in self._rows.values():
            row.counts_losses = is_counting
        if self._recomputed is not None:
            self._recomputed._count_losses(is_counting)

    @property
    def recomputed(self) -> Ledger:
        """What was computed once more in a backward pass (activation checkpointing), apart: it was counted before."""
        if self._recomputed is None:
            kinds = {"inexact": self.counts_inexact, "histogram": self.counts_histogram}
            self._recomputed = Ledger(**kinds, mse=self.counts_squares, losses=self.counts_losses)
        return self._recomputed

    def row(self, site: Site) -> Row:
        """Return the live row of `site`, made on first use."""
        row = self._rows.get(site)
        if row is None:
            row = Row(with_histogram=self.counts_histogram)
            row.counts_squares, row.counts_losses = self.counts_squares, self.counts_losses
            row = self._rows.setdefault(site, row)  # another thread may have been first
        return row

    def stamp(self, events: int = 1) -> int:
        """Return the number of the next of so many events, so that first offences have an order within a step."""
        first = self._stamp + 1
        self._stamp += events
        return first

    def pass_over(self, stamps: int) -> None:
        """Have as many events numbered, or none of the last ones where negative, by someone who numbers them."""
        self._stamp += stamps

    def add(self, noted: Noted) -> None:
        """Add what the host counted to its row; while a step is captured keep it, for each of its replays."""
        if self._noted is not None:
            self._noted.append(noted)
        else:
            row, counts, largest, smallest, stamp, step = noted
            row.add(counts, largest, smallest, stamp=stamp, step=step)

    @contextmanager
    def noting(self) -> Iterator[list[Noted]]:
        """Keep in a list what the host counts inside, and add none of it."""
        noted: list[Noted] = []
        self._noted = noted
        try:
            yield noted
        finally:
            self._noted = None

    def settle(self) -> None:
        """Add what other devices have counted at sites that come into being only if it is any: see `Row.settle`."""
        if self.pending:
            settle_all(self.pending)

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return {**self.__dict__, "pending": set()}

    def __getitem__(self, site: Site | str) -> Tally:
        self.settle()
        if isinstance(site, Site):
            return self._rows[site].tally(with_inexact=self.counts_inexact)
        if not isinstance(site, str):
            raise KeyError(f"a ledger's key is a Site or a dotted name, found {type(site).__name__}: {site!r:.60}")
        dotted = site.replace("::", ".")  # as the key of a rule has it: module::operation
        tallies = [self[s] for s in self._rows if _is_under(s, dotted)]
        if not tallies:
            names = {s.path for s in self._rows} | {s.module for s in self._rows}
            raise KeyError(f"no site under {site!r} in the ledger{near(site, names)}")
        return sum(tallies, Tally())

    def __iter__(self) -> Iterator[Site]:
        self.settle()
        return iter(self._rows)

    def __len__(self) -> int:
        self.settle()
        return len(self._rows)

    def first(self, *counters: str, besides: Collection[tuple[str, Site]] = ()) -> First | None:
        """Return the first site, in order of execution, where one of `counters` rose from zero, or None.

        `besides` are counters at sites that are passed over.
        """
        self.settle()
        names = {name: name for name in (*COUNTERS, *LOSSES)}
        earliest: tuple[int, First] | None = None
        for name in [lookup(names, counter, what="counter") for counter in counters]:
            for site, row in self._rows.items():
                stamp, step = row.first_of(name)
                if stamp >= 0 and (earliest is None or stamp < earliest[0]) and (name, site) not in besides:
                    earliest = stamp, First(site, step, row.first_ranks.get(name))
        return earliest[1] if earliest else None

    def first_step(self, site: Site, counter: str) -> int | None:
        """Return the step of the first `counter` at `site`, or None."""
        self.settle()
        _, step = self._rows[site].first_of(counter)
        return step if step >= 0 else None

    def drain(self) -> dict[Site, Tally]:
        """Return every tally and set the counts to zero; the first offences stay."""
        tallies = dict(self)
        for row in self._rows.values():
            row.reset()
        if self._recomputed is not None:
            self._recomputed.drain()
        return tallies

    @property
    def stamped(self) -> int:
        """The number of the last event so far: see `forget_after`."""
        return self._stamp

    def forget_after(self, stamp: int) -> None:
        """Drop every count since the last `drain`, and the first offences after the event `stamp`: they were no part.

        A run that goes back to an earlier step calls this; offences of before stay.
        """
        self.drain()
        for ledger in (self, self._recomputed):
            for row in () if ledger is None else ledger._rows.values():
                row.forget_firsts(after=stamp)

    def become_joined(self, ledgers: Sequence[Ledger]) -> None:
        """Become the sum of `ledgers`, one of each process in the order of their ranks, which stay as they are.

        Counters add. A first offence of one simulation is that of the earliest step, in it of the lowest rank, in
        that of the process's own order; it names its rank. Ledgers that were joined before
        keep the ranks that they name.
        """
        assert all(ledger is not self for ledger in ledgers), "what is joined into a ledger are copies"
        self.settle()
        events = []
        for rank, ledger in enumerate(ledgers):
            ledger.settle()
            for site, other in ledger._rows.items():
                firsts = {name: other.first_of(name) for name in (*COUNTERS, *LOSSES)}
                for name, (stamp, step) in firsts.items():
                    if stamp >= 0:
                        # What an earlier joining ordered keeps its order, and comes before what is joined now.
                        known = other.first_ranks.get(name)
                        order = (1, step, rank, stamp) if known is None else (0, stamp)
                        events.append((order, step, rank if known is None else known, site, name))
        for row in self._rows.values():
            row.reset()
            row.forget_firsts()
        for ledger in ledgers:
            for site, other in ledger._rows.items():
                self.row(site).add_row(other)
        self._rows = {site: self._rows[site] for site in dict.fromkeys((*_sites_of(ledgers), *self._rows))}
        for stamp, (_, step, rank, site, name) in enumerate(sorted(events, key=lambda event: event[0])):
            row = self.row(site)
            if row.first_of(name)[0] < 0:
                row.set_first(name, stamp, step, rank)
        self._stamp, self.processes = len(events), len(ledgers)
        if any(ledger._recomputed is not None for ledger in ledgers):
            self.recomputed.become_joined([ledger.recomputed for ledger in ledgers])

    def total(self) -> Tally:
        """Return the sum over all sites."""
        return sum(self.values(), Tally())

    def __repr__(self) -> str:
        total = self.total()
        shown = ", ".join(f"{f.name}={getattr(total, f.name)}" for f in fields(Tally)[:5])
        return f"Ledger({len(self)} sites, {shown})"


def _sites_of(ledgers: Sequence[Ledger]) -> Iterator[Site]:
    """Yield the sites of all ledgers, those of the first process first."""
    for ledger in ledgers:
        yield from ledger


def _is_under(site: Site, prefix: str) -> bool:
    """Whether `prefix` is the site itself or a dotted prefix of its path."""
    return prefix in (str(site), site.path) or site.path.startswith(prefix + ".")


def site_of(name: str, operation: str, direction: str) -> Site:
    """Return the Site of `operation` in the module called `name`."""
    if direction not in DIRECTIONS:
        raise NormstabError(f"unknown direction {direction!r} ({', '.join(DIRECTIONS)})")
    return Site(name, operation, direction)
