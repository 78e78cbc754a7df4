"""What a simulation hands to its user: the ledger, the first offences, what was not understood, and a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from normstab.errors import NormstabError
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import LOSSES, First, Ledger, Site, Tally
from normstab.simulation.around.parameters import Parameters
from normstab.simulation.around.places import Place
from normstab.simulation.code_lines import Sources
from normstab.simulation.loss_scale import LossScaler
from normstab.simulation.unsimulated import Unsimulated

__all__ = ["OFFENCES", "Captured", "Run", "in_columns", "worst_site"]

# What destroys values, gravest first; the other counters describe.
OFFENCES = ("nan_produced", "overflow", "divide_by_zero", "saturated", "underflow")
MOST_SITES = 10


class Joined(NamedTuple):
    """What one process counted and noted; see the fields of Run."""

    ledger: Ledger
    unrecognised: dict[str, int]
    results: int
    notes: list[str]
    ignored_upcasts: dict[str, int]
    lines: dict[str, dict[str, str]]


class Captured(Protocol):
    """A step of training that is replayed as a CUDA graph; see `captured.captured_step`."""

    @property
    def is_captured(self) -> bool:
        """Whether calls are replays by now."""

    @property
    def replays(self) -> int:
        """How many were."""

    def __call__(self, *inputs: Tensor) -> Any:
        """Take a step on `inputs`."""


@dataclass
class Run:
    """A simulation, while it runs and afterwards.

    `unrecognised` counts operations that were computed as torch does; `notes` say in words what else was
    not simulated; `sources` names the line of code of a first offence, where one is known. `parameters` are
    those that the network uses as rounded copies, `updated` those whose updates are looked at. `ignored_upcasts`
    counts, by site, the casts to a wider type that a machine without one ignored. `rank` is this process's number and
    how many there are, while a network is simulated in several; afterwards everything here is joined over them, and
    the same in each.
    """

    arithmetic: Arithmetic
    scaler: LossScaler
    unrecognised: Unsimulated = field(default_factory=Unsimulated)
    notes: list[str] = field(default_factory=list)
    sources: Sources = field(default_factory=Sources)
    parameters: Parameters = field(default_factory=lambda: Parameters(()), repr=False)
    updated: Parameters = field(default_factory=lambda: Parameters(()), repr=False)
    outside: Place | None = field(default=None, repr=False)
    ignored_upcasts: dict[str, int] = field(default_factory=dict)
    rank: tuple[int, int] | None = None
    capturing: Callable[[Callable[..., Any], int], Captured] | None = field(default=None, repr=False)

    @property
    def ledger(self) -> Ledger:
        """What rounding destroyed, per site."""
        assert self.arithmetic.ledger is not None
        return self.arithmetic.ledger

    @contextmanager
    def rounding_float32(self) -> Iterator[None]:
        """Round float32 results of code outside every module too, as where a network sees no other dtype."""
        if self.outside is None:
            yield
            return
        shown, self.outside.shown = self.outside.shown, None
        try:
            yield
        finally:
            self.outside.shown = shown

    @property
    def share_not_simulated(self) -> float:
        """Which share of the results was computed as torch does, 0 to 1."""
        return self.unrecognised.share_beside(self.ledger.total().count)

    @property
    def step(self) -> int:
        """The current step: of the optimizer, or of root forwards where there is none."""
        return self.arithmetic.step

    def capture(self, step: Callable[..., Any], *, warm_up: int = 3) -> Captured:
        """Return `step`, a function of tensors, as one that CUDA replays as a whole after `warm_up` calls.

        Each call takes a step of training, with the bits and counts of `step(*inputs)`. Inputs are copied; what it
        returns is overwritten by the next call. Where inputs change their shapes, or modes, learning rates or the
        places of parameters change, `step` itself is called. It must not wait for the device, nor go by anything else
        that changes on the host. Raises NormstabError where nothing can be captured: now, or in the call that tries.
        """
        if self.capturing is None:
            raise NormstabError("a step cannot be captured: nothing is simulated")
        return self.capturing(step, warm_up)

    def first(self, counter: str, *others: str) -> First | None:
        """Return the first site and step where `counter`, or one of the `others`, rose from zero, or None."""
        return self.ledger.first(counter, *others)

    def note(self, text: str) -> None:
        """Say `text` once."""
        if text not in self.notes:
            self.notes.append(text)

    def note_ignored(self) -> None:
        """Say which casts were ignored, most first."""
        if self.ignored_upcasts:
            sites = sorted(self.ignored_upcasts.items(), key=lambda entry: (-entry[1], entry[0]))
            listed = ", ".join(f"{site} ({n})" for site, n in sites[:MOST_SITES])
            more = f" and {len(sites) - MOST_SITES} more places" if len(sites) > MOST_SITES else ""
            total = sum(self.ignored_upcasts.values())
            self.note(f"casts=ignore: {total} casts to a wider type changed nothing: {listed}{more}")

    def report(self) -> str:
        """Return a plain text table of outcomes and first offences, the worst sites, and what was not simulated."""
        total = self.ledger.total()
        lines = [f"simulated in {self.arithmetic.precision}, {self.step} steps, {total.count} results rounded"]
        lines += [*self._processes(), ""]
        lines += self._first_offences()
        lines += self._precision_lost()
        lines += self._worst_sites()
        if recomputed := self.ledger.recomputed.total().count:
            lines += [f"{recomputed} results computed once more in backward passes, counted apart", ""]
        if self.unrecognised:
            listed = ", ".join(f"{name} ({n})" for name, n in sorted(self.unrecognised.items()))
            share = f"{self.share_not_simulated:.2%} of the results"
            lines += [f"not understood, computed as torch does ({share}): {listed}", ""]
        lines += [f"note: {text}" for text in self.notes]
        return "\n".join(lines).rstrip() + "\n"

    def _processes(self) -> list[str]:
        """Return of which processes this is, where there are several."""
        if self.rank is not None:
            return [f"by rank {self.rank[0]} of {self.rank[1]} alone: all are joined when the simulation ends"]
        return [f"in {self.ledger.processes} processes together"] if self.ledger.processes > 1 else []

    def to_join(self) -> Joined:
        """Return, as plain data, what is joined over processes."""
        unknown = dict(self.unrecognised)
        return Joined(
            self.ledger, unknown, self.unrecognised.results, self.notes, self.ignored_upcasts, self.sources.lines
        )

    def become_joined(self, parts: Sequence[Joined]) -> None:
        """Hold what every process counted and noted, of each a part, in the order of ranks."""
        self.rank = None
        self.ledger.become_joined([part.ledger for part in parts])
        self.unrecognised.clear()
        self.unrecognised.results = 0
        self.ignored_upcasts.clear()
        for part in parts:
            self.unrecognised.add(part.unrecognised, part.results)
            for site, count in part.ignored_upcasts.items():
                self.ignored_upcasts[site] = self.ignored_upcasts.get(site, 0) + count
            self.sources.add(part.lines)
        self.notes[:] = dict.fromkeys(note for part in parts for note in part.notes)

    def _first_offences(self) -> list[str]:
        """Return a line for every kind of offence."""
        total = self.ledger.total()
        several = self.ledger.processes > 1
        rows: list[tuple[str, ...]] = [("offence", "count", "first site", "step", *["rank"] * several, "code")]
        for counter in OFFENCES:
            first = self.first(counter)
            if first is not None:
                source = self.sources.of(first.site) or ""
                rank = [str(first.rank)] if several else []
                count = str(getattr(total, counter))
                rows.append((counter, count, str(first.site), str(first.step), *rank, source))
        if len(rows) == 1:
            where = f" on rank {self.rank[0]}" if self.rank is not None else ""
            return [f"nothing overflowed, vanished or became NaN{where}", ""]
        return [*in_columns(rows), ""]

    def _precision_lost(self) -> list[str]:
        """Return a line for every kind of loss that no overflow shows: where most of the results had it."""
        rows: list[tuple[str, ...]] = [("precision lost", "count", "most at", "results there", "first in step")]
        for counter in LOSSES:
            found = worst_site(self.ledger, counter)
            first = self.first(counter)
            if found is not None and first is not None:
                site, tally = found
                lost = getattr(tally, counter)
                share = f"{lost} elements" if counter == "lost_updates" else f"{lost} of {tally.count}"
                rows.append((counter, str(getattr(self.ledger.total(), counter)), str(site), share, str(first.step)))
        return [*in_columns(rows), ""] if len(rows) > 1 else []

    def _worst_sites(self) -> list[str]:
        """Return the sites with the greatest share of destroyed values."""
        shares = []
        for site, tally in self.ledger.items():
            lost = tally.overflow + tally.underflow + tally.nan_produced
            if lost:
                shares.append((lost / tally.count, site, tally))
        shares.sort(key=lambda entry: (-entry[0], str(entry[1])))
        if not shares:
            return []
        rows: list[tuple[str, ...]] = [("site", "count", "overflow", "underflow", "NaN", "largest", "smallest")]
        for _, site, tally in shares[:MOST_SITES]:
            numbers = (tally.count, tally.overflow, tally.underflow, tally.nan_produced)
            rows.append((str(site), *map(str, numbers), f"{tally.largest:.3g}", f"{tally.smallest:.3g}"))
        return [*in_columns(rows), ""]


def worst_site(ledger: Ledger, counter: str) -> tuple[Site, Tally] | None:
    """Return the site with the greatest share of results that `counter` counted, and its tally.

    Of `lost_updates` with the most: what a master weight holds is no rounded result, and not among them.
    """
    totals = {site: 1 if counter == "lost_updates" else max(tally.count, 1) for site, tally in ledger.items()}
    counted = [(getattr(tally, counter) / totals[site], site, tally) for site, tally in ledger.items()]
    share, site, tally = max(counted, key=lambda entry: entry[0], default=(0.0, None, None))
    return None if share == 0 or site is None or tally is None else (site, tally)


def in_columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows as lines with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
