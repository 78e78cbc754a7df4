"""Sweeps: over which scales 2^k of its input a norm layer's scale s stays right, from swept records.

A swept cell trains nothing, so it has metrics and no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence

from normstab.assess.metrics import Metric
from normstab.assess.runs import Group, Run
from normstab.experiment.records.cell_record import SweepPoint

__all__ = ["SWEPT", "tightest"]

ACCURATE = 0.01
"""The relative error of s up to which a scale counts as accurate. Source: normstab's contract, `scale_range`."""


def accurate_range(points: Sequence[SweepPoint]) -> tuple[int, int]:
    """Return the contiguous exponents around 0 at which s is within 1 % of the exact one; (0, -1) without 0."""
    good = {point.exponent for point in points if point.error <= ACCURATE and not point.collapsed_channels}
    if 0 not in good:
        return (0, -1)
    low = high = 0
    while low - 1 in good:
        low -= 1
    while high + 1 in good:
        high += 1
    return (low, high)


def tightest(run: Run) -> tuple[int, int] | None:
    """Return the exponents that every layer of a swept run stands; None for a run without a sweep."""
    ranges = [accurate_range(points) for points in run.record.sweep.values()]
    if not ranges:
        return None
    if (0, -1) in ranges:
        return (0, -1)
    return max(low for low, _ in ranges), min(high for _, high in ranges)


def sweep_low(run: Run, group: Group) -> float | None:
    """Return the least k of the scales 2^k that every layer stands."""
    found = tightest(run)
    return None if found is None else float(found[0])


def sweep_high(run: Run, group: Group) -> float | None:
    """Return the greatest k of the scales 2^k that every layer stands."""
    found = tightest(run)
    return None if found is None else float(found[1])


def sweep_binades(run: Run, group: Group) -> float | None:
    """Return how many scales 2^k around 1 every layer stands."""
    found = tightest(run)
    return None if found is None else float(found[1] - found[0] + 1)


SWEPT: dict[str, Metric] = {
    "sweep_low": Metric(sweep_low, "least accurate scale 2^k", "binade", is_counted=True),
    "sweep_high": Metric(sweep_high, "greatest accurate scale 2^k", "binade", more_is_better=True, is_counted=True),
    "sweep_binades": Metric(
        sweep_binades, "accurate scales 2^k around 1", "binades", more_is_better=True, is_counted=True
    ),
}
"""The metrics of a swept run by name."""
