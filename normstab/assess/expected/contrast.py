"""Contrasts: a weighted sum of a metric over paired groups, with its interval, and whether it keeps within bounds.

Accuracy at the end is contrasted image by image, pooled over seeds; counted metrics are judged seed by seed; all
others by Student's interval over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from normstab.assess.constants import constant
from normstab.assess.expected.group_selection import paired_runs
from normstab.assess.expected.outcome import Finding, Outcome, interval_finding
from normstab.assess.metrics import METRICS
from normstab.assess.runs import Group, Run, contrast_of
from normstab.assess.statistics import Interval, PairedGap, mean_interval
from normstab.assess.swept import SWEPT
from normstab.assess.verdicts import missing_sentence
from normstab.errors import lookup

__all__ = ["EVERY", "contrast", "judge_contrast", "worded"]

EVERY = {**METRICS, **SWEPT}
"""The metrics of trained and of swept runs."""

PAIRED = ("accuracy", "error")
"""The metrics that per-image predictions can pair."""


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of `metric` over groups: one value per seed, and the pooled per-image form where there is one."""

    metric: str
    values: tuple[float, ...]
    pooled: PairedGap | None = None
    is_difference: bool = True

    @property
    def estimate(self) -> float:
        """The mean over the seeds."""
        return fmean(self.values)

    @property
    def interval(self) -> Interval | None:
        """The interval at `within_confidence`; None where one seed cannot give it."""
        confidence = constant("within_confidence")
        return self.pooled.interval(confidence) if self.pooled else mean_interval(self.values, confidence)

    @property
    def standard_error(self) -> float | None:
        """The standard error of the estimate; None where one seed cannot give it."""
        if self.pooled:
            return self.pooled.standard_error
        n = len(self.values)
        return math.sqrt(sum((v - self.estimate) ** 2 for v in self.values) / (n - 1) / n) if n > 1 else None

    def worded(self, value: float) -> str:
        """Return a value of this contrast in its unit: points for a difference of shares."""
        if self.is_difference and EVERY[self.metric].unit == "share":
            return f"{100 * value:.2f} points"
        return worded(self.metric, value)

    def missing(self, bound: float) -> str:
        """Return how many more seeds (or images) would tell on which side of `bound` the contrast lies."""
        if self.pooled:
            return missing_sentence(self.pooled, bound, constant("within_confidence"))
        interval = self.interval
        if interval is None:
            return "at least 1 more seed is needed for an interval"
        distance, reach = abs(self.estimate - bound), interval.high - self.estimate
        if reach > 20 * distance:
            return "it is too near the bound for any practical number of seeds"
        more = max(1, math.ceil(len(self.values) * ((reach / distance) ** 2 - 1)))
        return f"about {_seeds(more, 'more seed')} would settle it"


def value_of(run: Run, group: Group, metric: str, at: float | None = None) -> float | None:
    """Return the metric of `run` after the share `at` of its epochs.

    A run that died has the accuracy of chance; a step that never came is infinite.
    """
    if run.is_nonfinite and metric in PAIRED and at is None:
        return run.chance if metric == "accuracy" else 1.0 - run.chance
    value = lookup(EVERY, metric, what="metric").compute(run.until(at), group)
    never = value is None and EVERY[metric].unit == "step"
    return math.inf if never else value


def contrast(sides: Sequence[Group], weights: Sequence[float], metric: str, at: float | None) -> Contrast:
    """Return the sum of weight times metric over `sides`, paired by seed; without values where nothing pairs."""
    tuples, is_difference = paired_runs(sides), len(sides) > 1
    values = [[value_of(run, side, metric, at) for run, side in zip(runs, sides, strict=True)] for runs in tuples]
    sums = tuple(
        sum(weight * value for weight, value in zip(weights, row, strict=True) if value is not None)
        for row in values
        if None not in row
    )
    if metric not in PAIRED or at is not None or any(run.is_nonfinite for runs in tuples for run in runs):
        return Contrast(metric, sums, is_difference=is_difference)
    # How much a seed's luck matters is what the wide references show, as in a verdict, where there are any.
    seeds = max((side.references or side.runs for side in sides), key=len)
    weighted = [list(zip(weights, runs, strict=True)) for runs in tuples]
    pooled = contrast_of(weighted, seeds, of_errors=metric == "error")
    return Contrast(metric, sums, pooled, is_difference)


def judge_contrast(found: Contrast, low: float | None, high: float | None, subject: str) -> Finding:
    """Return whether a contrast keeps within the bounds, with its interval, and what is missing where it is open."""
    if not found.values:
        return Finding(Outcome.INCONCLUSIVE, f"{subject}: no finished runs that pair and have this metric")
    if EVERY[found.metric].is_counted:
        return _seed_by_seed(found, low, high, subject)
    interval, bounds = found.interval, [bound for bound in (low, high) if bound is not None]
    nearest = min(bounds, key=lambda bound: abs(found.estimate - bound))
    if interval is None:
        text = found.worded(found.estimate)
        return Finding(Outcome.INCONCLUSIVE, f"{subject}: {text} with one seed; {found.missing(nearest)}", text)
    low_end, high_end = found.worded(interval.low).removesuffix(" points"), found.worded(interval.high)
    text = f"{found.worded(interval.estimate)} ({low_end} to {high_end.removesuffix(' points')})"
    seeds = found.pooled.seeds if found.pooled else len(found.values)
    finding = interval_finding(interval, low, high, f"{subject}: {text}, 90 %, {_seeds(seeds)}", text)
    if finding.outcome is not Outcome.INCONCLUSIVE:
        return finding
    return Finding(finding.outcome, f"{finding.reason}; {found.missing(nearest)}", text, interval)


def _seed_by_seed(found: Contrast, low: float | None, high: float | None, subject: str) -> Finding:
    """Return the finding of a counted metric: met when every seed keeps within, not met when none does."""
    kept = [(low is None or value >= low) and (high is None or value <= high) for value in found.values]
    outcome = Outcome.MET if all(kept) else Outcome.INCONCLUSIVE if any(kept) else Outcome.NOT_MET
    least, most = found.worded(min(found.values)), found.worded(max(found.values))
    text = least if least == most else f"{least} to {most}"
    split = "" if outcome is not Outcome.INCONCLUSIVE else f", {sum(kept)} of them as expected"
    interval = Interval(found.estimate, min(found.values), max(found.values))
    return Finding(outcome, f"{subject}: {text} ({_seeds(len(kept))}{split})", text, interval)


def _seeds(n: int, noun: str = "seed") -> str:
    """Return `1 seed` or `3 seeds`."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def worded(metric: str, value: float) -> str:
    """Return a metric's value in its unit: percent for an accuracy, whole steps, else three digits."""
    if not math.isfinite(value):
        return "never" if EVERY[metric].unit == "step" and value > 0 else str(value)
    if EVERY[metric].unit == "share":
        return f"{100 * value:.2f} %"
    return f"{value:.0f}" if EVERY[metric].unit == "step" else f"{value:.3g}"
