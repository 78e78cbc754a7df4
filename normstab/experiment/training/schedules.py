"""The learning rate over a run, as a factor on the peak rate; pure functions of the step.

A factor depends on nothing but the step, so a resume needs no state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from normstab.errors import lookup
from normstab.experiment.scenario.training_spec import ScheduleSpec

__all__ = ["SCHEDULES", "Span", "rate_factor"]


@dataclass(frozen=True)
class Span:
    """The length of a run: `steps` in all, `steps_per_epoch` in an epoch."""

    steps: int
    steps_per_epoch: int


# Source: Smith and Topin 2019, as torch's OneCycleLR has it by default, without its cycle of the momentum.
ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = ONE_CYCLE_START / 1e4


def rate_factor(spec: ScheduleSpec, step: int, span: Span) -> float:
    """Return the factor on the peak rate in `step` (from 0).

    `warmup` epochs rise linearly, 1/W, 2/W ... 1 over the W steps; `one-cycle` rises by its own curve, over
    `warmup` epochs where that is given and over 30 % of the run where not.
    """
    shape = lookup(SCHEDULES, spec.name, what="schedule")
    warm = min(span.steps, round(spec.warmup * span.steps_per_epoch))
    if spec.name == "one-cycle":
        return shape(spec, step, warm, span)
    if step < warm:
        return (step + 1) / warm
    return shape(spec, step, warm, span)


Shape = Callable[[ScheduleSpec, int, int, Span], float]


def _constant(spec: ScheduleSpec, step: int, warm: int, span: Span) -> float:
    """Return 1."""
    return 1.0


def _step(spec: ScheduleSpec, step: int, warm: int, span: Span) -> float:
    """Return gamma^m after m milestones, which are epochs."""
    epoch = step / span.steps_per_epoch
    return float(spec.gamma ** sum(epoch >= milestone for milestone in spec.milestones))


def _cosine(spec: ScheduleSpec, step: int, warm: int, span: Span) -> float:
    """Return half a cosine from 1, after the warm-up, towards 0 at the end (Loshchilov and Hutter 2017)."""
    return _cosine_between(1.0, 0.0, (step - warm) / max(1, span.steps - warm))


def _one_cycle(spec: ScheduleSpec, step: int, warm: int, span: Span) -> float:
    """Return the rise from 1/25 to 1 and the fall to 1/250000, both half cosines."""
    top = (warm if spec.warmup else ONE_CYCLE_RISE * span.steps) - 1
    if step <= top:
        return _cosine_between(ONE_CYCLE_START, 1.0, step / top) if top > 0 else 1.0
    return _cosine_between(1.0, ONE_CYCLE_END, (step - top) / max(1.0, span.steps - 1 - top))


def _cosine_between(start: float, end: float, share: float) -> float:
    """Return the value `share` of the way from `start` to `end` along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(1.0, share)))


# Name of a schedule -> the factor on the learning rate as a function of the run's span.
SCHEDULES: dict[str, Shape] = {"constant": _constant, "step": _step, "cosine": _cosine, "one-cycle": _one_cycle}
