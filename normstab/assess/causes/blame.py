"""Who is to blame: the operation that produced the first inf or NaN, told from those that passed it on.

An inf born at `stem.square` is blamed there, wherever the NaN surfaced. Judges no accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

from normstab.assess.constants import constant
from normstab.assess.runs import Run
from normstab.numerics.ledger import DIRECTIONS, Site, Tally

__all__ = ["Blame", "blame", "rate"]

# In the order of cause and effect: an inf comes before the NaN made of it.
PRODUCERS = {"overflow": "overflow", "divide_by_zero": "division by zero", "nan_produced": "NaN"}
PROPAGATORS = {"inf_propagated": "inf", "nan_propagated": "NaN"}


@dataclass(frozen=True)
class Blame:
    """The first offence of a run: the producing `site`, its first `step`, and how many of its results it cost.

    `passed_on` is where what it produced was first an operand elsewhere, as `site, step n`, or None.
    """

    site: str
    step: int | None
    counter: str
    count: int
    of: int
    passed_on: str | None = None

    @property
    def sentence(self) -> str:
        """The blame in words."""
        share = f"in {self.count:,} of {self.of:,} results" if self.of else ""
        when = "" if self.step is None else f", first in step {self.step}{',' if share else ''}"
        words = f"{COUNTER_WORDS[self.counter]} at `{self.site}`{when} {share}".rstrip()
        return words + (f"; passed on to `{self.passed_on.partition(',')[0]}`" if self.passed_on else "")


COUNTER_WORDS = {
    **PRODUCERS,
    "nan_produced": "NaN produced",
    "underflow": "underflow to zero",
    "precision": "loss of precision",
}


def blame(run: Run, *, left: float | None = None) -> Blame | None:
    """Return the first producing offence of `run`, else the worst underflow, else None.

    The first is by step; within one step a forward site comes before a backward one, and an overflow before the NaN
    that its infinity becomes. Underflow is blamed only where it flushes `flushed_share` of a site's results, and
    with no step of its own unless one was recorded. `left` is the step in which the run left its reference's band: an
    offence after it is a symptom where `vanished_share` of a site's results had begun to vanish before.
    """
    found = [
        (offence.step, DIRECTIONS.index(Site.parse(offence.site).direction), order, counter, offence.site)
        for order, counter in enumerate(PRODUCERS)
        if (offence := run.record.first.get(counter)) is not None
    ]
    vanished = _most_flushed(run)
    if found:
        step, _, _, counter, site = min(found)
        if left is None or step <= left or vanished is None or not _vanishes_by(run, vanished, left):
            return _blame(run, site, counter, step)
    if vanished is None or rate(run.totals[vanished], "underflow") < constant("flushed_share"):
        return None
    return _blame(run, vanished, "underflow", run.record.first_steps.get(vanished, {}).get("underflow"))


def _most_flushed(run: Run) -> str | None:
    """Return the site with the greatest share of its results flushed to zero."""
    return max(run.totals, key=lambda site: rate(run.totals[site], "underflow"), default=None)


def _vanishes_by(run: Run, site: str, step: float) -> bool:
    """Whether most results of a site, no cast of a constant, vanish, and some had by `step`."""
    first = run.record.first_steps.get(site, {}).get("underflow")
    is_constant = Site.parse(site).operation.endswith(".const")
    is_most = rate(run.totals[site], "underflow") >= constant("vanished_share")
    return is_most and not is_constant and first is not None and first <= step


def _blame(run: Run, site: str, counter: str, step: int | None) -> Blame:
    """Return the Blame of `counter` at `site`, with the first place that passed its result on."""
    tally = run.totals.get(site, Tally())
    later = [
        (offence.step, order, offence.site)
        for order, name in enumerate(PROPAGATORS)
        if (offence := run.record.first.get(name)) is not None and offence.site != site and counter in PRODUCERS
    ]
    passed_on = f"{min(later)[2]}, step {min(later)[0]}" if later else None
    return Blame(site, step, counter, getattr(tally, counter), tally.count, passed_on)


def rate(tally: Tally, counter: str) -> float:
    """Return the share of results at a site that `counter` counted; 0 where nothing was counted."""
    return (getattr(tally, counter) or 0) / tally.count if tally.count else 0.0
