"""Outcomes of an expectation, and how several findings make one.

Knows neither runs nor scenarios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from normstab.assess.statistics import Interval

__all__ = ["Finding", "Outcome", "all_of", "any_of", "interval_finding"]


class Outcome(Enum):
    """Whether an expectation holds."""

    MET = "met"
    NOT_MET = "not met"
    INCONCLUSIVE = "inconclusive"
    NOT_EVALUATED = "not evaluated"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Finding:
    """An outcome, why, and the number it rests on: `found` is its text, `interval` what a plot shows."""

    outcome: Outcome
    reason: str
    found: str = ""
    interval: Interval | None = None


def all_of(findings: Sequence[Finding]) -> Finding:
    """Return what `findings` together say: not met if one is not, else inconclusive if one is, else met."""
    if not findings:
        return Finding(Outcome.NOT_MET, "no evidence: no records of the cells it speaks of pair", "no evidence")
    for outcome in (Outcome.NOT_MET, Outcome.INCONCLUSIVE):
        decisive = [finding for finding in findings if finding.outcome is outcome]
        if decisive:
            return _joined(outcome, decisive)
    return _joined(Outcome.MET, findings)


def any_of(findings: Sequence[Finding]) -> Finding:
    """Return what `findings` say of "at least one": met if one is, else inconclusive if one is, else not met."""
    for outcome in (Outcome.MET, Outcome.INCONCLUSIVE):
        decisive = [finding for finding in findings if finding.outcome is outcome]
        if decisive:
            return _joined(outcome, decisive)
    return _joined(Outcome.NOT_MET, findings)


MOST_SHOWN = 4
"""Reasons beyond this number are counted, not listed."""


def _joined(outcome: Outcome, findings: Sequence[Finding]) -> Finding:
    """Return one finding with the reasons and numbers of several."""
    reasons = list(dict.fromkeys(finding.reason for finding in findings))
    more = f"; and {len(reasons) - MOST_SHOWN} more" if len(reasons) > MOST_SHOWN else ""
    found = list(dict.fromkeys(finding.found for finding in findings if finding.found))
    shown = "; ".join(found[:MOST_SHOWN]) + (" ..." if len(found) > MOST_SHOWN else "")
    interval = findings[0].interval if len(findings) == 1 else None
    return Finding(outcome, "; ".join(reasons[:MOST_SHOWN]) + more, shown, interval)


def interval_finding(interval: Interval, low: float | None, high: float | None, reason: str, found: str) -> Finding:
    """Return met when `interval` lies inside the bounds, not met when it lies outside, else inconclusive."""
    if (low is None or interval.low >= low) and (high is None or interval.high <= high):
        return Finding(Outcome.MET, reason, found, interval)
    if (low is not None and interval.high < low) or (high is not None and interval.low > high):
        return Finding(Outcome.NOT_MET, reason, found, interval)
    return Finding(Outcome.INCONCLUSIVE, reason, found, interval)
