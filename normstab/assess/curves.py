"""Loss curves: smoothing, the band of a reference's seeds, and where a curve leaves it for good.

Nothing here knows records or verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normstab.assess.constants import constant

__all__ = ["Band", "band_of", "end_steps", "first_divergence", "is_above", "smoothed", "start_step"]

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """The smoothed loss of a reference, step by step: the mean over its seeds, and the limit of what is near it."""

    mean: Curve
    limit: Curve


def smoothed(losses: Curve) -> Curve:
    """Return the trailing mean of `losses`, shorter at the start; a loss that is not finite stays visible.

    The window is `smoothing_steps`, or a quarter of the run where that is shorter.
    """
    if not len(losses):
        return losses
    window = max(1, min(int(constant("smoothing_steps")), len(losses) // 4))
    with np.errstate(invalid="ignore", over="ignore"):
        sums = np.convolve(losses, np.ones(window))[: len(losses)]
        return np.asarray(sums / np.minimum(np.arange(1, len(losses) + 1), window))


def band_of(curves: Sequence[Curve]) -> Band | None:
    """Return the band of smoothed reference curves, over the steps they share; None when there is none.

    The limit is the mean plus the larger of `band_deviations` standard deviations and `band_share` of the reference's
    progress, its loss at the start minus that at the end: a loss above it at the end has made less than that share.
    """
    finite = [curve for curve in curves if len(curve) and np.isfinite(curve).all()]
    if not finite:
        return None
    shared = np.stack([curve[: min(len(curve) for curve in finite)] for curve in finite])
    mean = shared.mean(axis=0)
    deviation = shared.std(axis=0, ddof=1) if len(finite) > 1 else np.zeros_like(mean)
    progress = max(0.0, float(mean[start_step(len(mean))] - mean[-1]))
    return Band(mean, mean + np.maximum(constant("band_deviations") * deviation, constant("band_share") * progress))


def start_step(steps: int) -> int:
    """Return the first step of a run of `steps` whose smoothing window is full."""
    return max(1, min(int(constant("smoothing_steps")), steps // 4)) - 1


def end_steps(steps: int) -> int:
    """Return how many steps are the end of a run of `steps`."""
    return max(1, math.ceil(constant("end_share") * steps))


def is_above(curve: Curve, band: Band) -> NDArray[np.bool_]:
    """Return, for the steps both have, whether `curve` lies above the band; a loss that is not finite does."""
    steps = min(len(curve), len(band.limit))
    return np.asarray(~(curve[:steps] <= band.limit[:steps]))


def first_divergence(curve: Curve, band: Band) -> int | None:
    """Return the first of at least `divergence_steps` consecutive steps above the band, or None."""
    needed, run = int(constant("divergence_steps")), 0
    for step, above in enumerate(is_above(curve, band)):
        run = run + 1 if above else 0
        if run == needed:
            return step - needed + 1
    return None
