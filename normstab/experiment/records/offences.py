"""The ledger of a run, epoch by epoch and over all of it, as plain data that survives a resume.

A live ledger restarts empty after a resume; what came before is kept here, and the earlier offence wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from normstab.experiment.records.cell_record import Offence
from normstab.numerics.ledger import COUNTERS, Ledger, Tally

__all__ = ["OFFENCES", "Tallies", "origin_of_nonfinite"]

# What may be named as a first offence: everything that destroys a value, but not what is merely passed on or inexact.
OFFENCES = tuple(name for name in COUNTERS if name not in ("count", "nan_propagated", "inf_propagated", "inexact"))
# What makes an inf or a NaN out of finite numbers.
PRODUCERS = ("overflow", "divide_by_zero", "nan_produced")


@dataclass
class Tallies:
    """`sites`: this epoch so far; `first` per counter and `first_steps` per site and counter: the whole run."""

    sites: dict[str, Tally] = field(default_factory=dict)
    first: dict[str, Offence] = field(default_factory=dict)
    first_steps: dict[str, dict[str, int]] = field(default_factory=dict)

    def collect(self, ledger: Ledger) -> None:
        """Move the ledger's counts here, and note its first offences where none was noted before."""
        for site, tally in ledger.drain().items():
            passed_on = tally.nan_propagated or tally.inf_propagated
            if tally.count or tally.lost_updates or tally.overflow or tally.underflow or passed_on:
                name = str(site)
                known = self.sites.get(name)
                self.sites[name] = tally if known is None else known + tally
        for counter in OFFENCES:
            found = ledger.first(counter)
            if found is not None and counter not in self.first:
                self.first[counter] = Offence(str(found.site), found.step, found.rank)
        for site in ledger:
            steps = self.first_steps.setdefault(str(site), {})
            for counter in OFFENCES:
                step = ledger.first_step(site, counter)
                if step is not None:
                    steps.setdefault(counter, step)

    def steps_by_site(self) -> dict[str, dict[str, int]]:
        """Return the step of every first offence, by site and counter, both in order of their names."""
        return {site: dict(sorted(steps.items())) for site, steps in sorted(self.first_steps.items()) if steps}

    def end_epoch(self) -> Mapping[str, Tally]:
        """Return the epoch's tallies by site, in order of their names, and begin the next epoch."""
        ended, self.sites = dict(sorted(self.sites.items())), {}
        return ended


def origin_of_nonfinite(first: Mapping[str, Offence]) -> str | None:
    """Return the site of the earliest offence that can make an inf or a NaN, or None."""
    found = [first[counter] for counter in PRODUCERS if counter in first]
    return min(found, key=lambda offence: offence.step).site if found else None
