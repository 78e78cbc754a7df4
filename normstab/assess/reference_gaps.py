"""How far a run is from its reference: in accuracy, in loss, and from which step on. None without a reference."""

from __future__ import annotations

import numpy as np

from normstab.assess.curves import end_steps, first_divergence
from normstab.assess.runs import Group, Run

__all__ = ["accuracy_gap", "accuracy_gap_in_deviations", "first_divergence_step", "loss_gap_area", "loss_gap_end"]


def accuracy_gap(run: Run, group: Group) -> float | None:
    """Return how much less accurate the run is than its own reference."""
    reference = group.pairs.get(run.id)
    if reference is None or reference.accuracy is None or run.accuracy is None:
        return None
    return reference.accuracy - run.accuracy


def accuracy_gap_in_deviations(run: Run, group: Group) -> float | None:
    """Return the accuracy gap in standard deviations of the reference's accuracy over its seeds."""
    gap = accuracy_gap(run, group)
    return None if gap is None or not group.seed_deviation else gap / group.seed_deviation


def loss_gap_area(run: Run, group: Group) -> float | None:
    """Return the mean, over the steps, of the smoothed loss minus the reference's mean."""
    if group.band is None or not len(run.smoothed):
        return None
    steps = min(len(run.smoothed), len(group.band.mean))
    return float(np.mean(run.smoothed[:steps] - group.band.mean[:steps]))


def loss_gap_end(run: Run, group: Group) -> float | None:
    """Return the smoothed loss minus the reference's mean, over the last steps they share."""
    if group.band is None or not len(run.smoothed):
        return None
    steps = min(len(run.smoothed), len(group.band.mean))
    last = slice(steps - end_steps(steps), steps)
    return float(np.mean(run.smoothed[last] - group.band.mean[last]))


def first_divergence_step(run: Run, group: Group) -> float | None:
    """Return the step of the first divergence from the reference's band, or None when there is none."""
    return None if group.band is None else first_divergence(run.smoothed, group.band)
