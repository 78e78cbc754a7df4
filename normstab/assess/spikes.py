"""Loss spikes: where a loss leaves its own recent course, how high it rises, how long, and whether it comes back.

A curve is compared with itself alone; nothing here knows records, references or verdicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normstab.assess.constants import constant
from normstab.assess.curves import start_step

__all__ = ["Spike", "spikes_of"]

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Spike:
    """One spike: it begins at `step` and lasts `steps`; `height` is its greatest loss minus the mean before it.

    `is_recovered`: the loss came back and stayed; else the spike lasts to the end of the run. The height is infinite
    where a loss in it is infinite or NaN.
    """

    step: int
    steps: int
    height: float
    is_recovered: bool


def spikes_of(losses: Curve) -> tuple[Spike, ...]:
    """Return the spikes of a run, in order.

    By the mean m and the standard deviation d of the W losses before, W = `smoothing_steps` or a quarter of the run, a
    loss is high above m + max(`spike_deviations` d, `spike_share` |m|). A spike begins at a high loss among whose
    `spike_interval` steps, itself included, at least `spike_count` are high. It has come back at the first step that
    begins as many steps in a row which are not high, by the m and d of before the spike; then W losses are gathered
    anew. Losses that are not finite are high. Runs of fewer than 2 W + `spike_interval` steps have no spikes.
    """
    window, interval = start_step(len(losses)) + 1, int(constant("spike_interval"))
    found: list[Spike] = []
    if len(losses) < 2 * window + interval:
        return ()
    limits = limits_after(losses, window)
    step = window
    for candidate in (window + np.flatnonzero(~(losses[window:] <= limits))).tolist():
        limit = limits[candidate - window]
        if candidate < step or (~(losses[candidate : candidate + interval] <= limit)).sum() < constant("spike_count"):
            continue
        is_high = ~(losses[candidate:] <= limit)
        back = steps_to_come_back(is_high, interval)
        steps = len(is_high) if back is None else back
        top, before = losses[candidate : candidate + steps], losses[candidate - window : candidate]
        height = float(top.max() - before.mean()) if np.isfinite(top).all() and np.isfinite(before).all() else math.inf
        found.append(Spike(candidate, steps, height, back is not None))
        step = candidate + steps + window
    return tuple(found)


def limits_after(losses: Curve, window: int) -> Curve:
    """Return, for each step from `window` on, the loss above which it is high, by the `window` losses before it."""
    before = np.lib.stride_tricks.sliding_window_view(losses, window)[:-1]
    with np.errstate(invalid="ignore", over="ignore"):
        mean = before.mean(axis=1)
        deviation = before.std(axis=1, ddof=1) if window > 1 else np.zeros_like(mean)
        return np.asarray(
            mean + np.maximum(constant("spike_deviations") * deviation, constant("spike_share") * np.abs(mean))
        )


def steps_to_come_back(is_high: NDArray[np.bool_], interval: int) -> int | None:
    """Return after how many steps the first `interval` in a row begin of which none is high; None for never."""
    calm = 0
    for step, high in enumerate(is_high):
        calm = 0 if high else calm + 1
        if calm == interval:
            return step - interval + 1
    return None
