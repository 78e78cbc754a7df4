"""Metrics: what one trained run amounts to, each a function of the run and its group, and one row of METRICS.

None means that the run does not tell (no reference, no histogram, ended early). Nothing here judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from normstab.assess.causes.headroom import headroom
from normstab.assess.reference_gaps import (
    accuracy_gap,
    accuracy_gap_in_deviations,
    first_divergence_step,
    loss_gap_area,
    loss_gap_end,
)
from normstab.assess.runs import Group, Run

__all__ = ["METRICS", "Metric", "measure"]


@dataclass(frozen=True)
class Metric:
    """A number about a run: how it is computed, what it means, its unit, and whether more of it is better.

    `is_counted`: it counts roundings, millions to a run, so that every seed is judged as it is. The others vary with
    the luck of a seed and are judged by an interval over seeds.
    """

    compute: Callable[[Run, Group], float | None]
    meaning: str
    unit: str = ""
    more_is_better: bool = False
    is_counted: bool = False


def best_accuracy(run: Run) -> float | None:
    """Return the best accuracy after any epoch."""
    return max((epoch.accuracy for epoch in run.record.epochs), default=None)


def test_loss(run: Run) -> float | None:
    """Return the loss on the test images after the last epoch."""
    return run.record.epochs[-1].test_loss if run.record.epochs else None


def train_loss(run: Run) -> float | None:
    """Return the mean training loss of the last epoch."""
    return run.record.epochs[-1].train_loss if run.record.epochs else None


def token_loss(run: Run) -> float | None:
    """Return the loss on the test tokens after the last epoch, in nats; None of images."""
    return test_loss(run) if run.is_of_tokens else None


def token_accuracy(run: Run) -> float | None:
    """Return the share of the test tokens that are predicted rightly from those before them; None of images."""
    return run.accuracy if run.is_of_tokens else None


def word_accuracy(run: Run) -> float | None:
    """Return the share of the test sequences that the network writes rightly by itself, to their ends."""
    return None if run.record.language is None else run.record.language.word_accuracy


def chrf(run: Run) -> float | None:
    """Return chrF of what the network writes by itself."""
    return None if run.record.language is None else run.record.language.chrf


def error(run: Run) -> float | None:
    """Return 1 minus the accuracy."""
    return None if run.accuracy is None else 1.0 - run.accuracy


def nonfinite_step(run: Run) -> float | None:
    """Return the step in which a loss, parameter or logit became inf or NaN."""
    return run.record.nonfinite.step if run.record.nonfinite else None


def loss_spikes(run: Run) -> float | None:
    """Return how many spikes the loss had."""
    return float(len(run.spikes)) if run.steps else None


def loss_spike_height(run: Run) -> float | None:
    """Return the height of the highest spike above the loss before it, 0 without one."""
    return max((spike.height for spike in run.spikes), default=0.0) if run.steps else None


def loss_spike_steps(run: Run) -> float | None:
    """Return how many steps the longest spike lasted, 0 without one."""
    return float(max((spike.steps for spike in run.spikes), default=0)) if run.steps else None


def unrecovered_spikes(run: Run) -> float | None:
    """Return how many spikes lasted to the end of the run: one or none."""
    return float(sum(not spike.is_recovered for spike in run.spikes)) if run.steps else None


def counter_rate(counter: str, meaning: str, direction: str = "") -> Metric:
    """Return the metric: the share of all rounded results (of one direction) that `counter` counted."""

    def compute(run: Run, group: Group) -> float | None:
        total = run.total_of(direction)
        return getattr(total, counter) / total.count if total.count else None

    return Metric(compute, meaning, "rate", is_counted=True)


def collapsed_channels(run: Run) -> float | None:
    """Return the share of the norm layers' channels whose scale ended infinite, NaN or zero."""
    channels = sum(layer.channels for layer in run.record.norm_layers.values())
    collapsed = sum(layer.collapsed_channels for layer in run.record.norm_layers.values())
    return collapsed / channels if channels else None


def gradient_cosine(run: Run) -> float | None:
    """Return the least cosine between the run's gradient and its reference's, over the probes."""
    return min((probe.gradient_cosine for probe in run.record.probes), default=None)


def weight_distance(run: Run) -> float | None:
    """Return the relative distance of the weights to the reference's at the last probe."""
    return run.record.probes[-1].weight_distance if run.record.probes else None


def zero_updates(run: Run) -> float | None:
    """Return the share of weight updates that changed nothing although the gradient was not zero."""
    updates = sum(epoch.updates for epoch in run.record.epochs)
    return sum(epoch.updates_zero for epoch in run.record.epochs) / updates if updates else None


def angular_update(run: Run) -> float | None:
    """Return the mean angle, in radians, by which a step of the last epoch turned the weights of a layer under a norm.

    SGD with rate eta, decay lambda and momentum alpha turns them by sqrt(2 eta lambda / (1 + alpha)) at equilibrium.
    Source: Wan et al. 2021, "Spherical motion dynamics"; Kosson et al. 2023, "Rotational equilibrium".
    """
    angles = run.record.epochs[-1].angular_update if run.record.epochs else {}
    return sum(angles.values()) / len(angles) if angles else None


def weight_gradient_zeros(run: Run) -> float | None:
    """Return the share of the convolutions' weight gradients that are zero; None without exponent histograms.

    What is computed from gradients that were flushed is exactly zero, and counts as no underflow.
    """
    tallies = [
        tally
        for epoch in run.record.epochs
        for site, tally in epoch.sites.items()
        if site.endswith("convolution_backward.weight[backward]")
    ]
    count = sum(tally.count for tally in tallies)
    if not count or any(tally.histogram is None for tally in tallies):
        return None
    return sum(tally.underflow + (tally.histogram.zero if tally.histogram else 0) for tally in tallies) / count


def headroom_up(run: Run) -> float | None:
    """Return the binades by which the inputs of the tightest norm layer could still grow."""
    return min((layer.up for layer in headroom(run) if layer.up is not None), default=None)


def headroom_down(run: Run) -> float | None:
    """Return the binades by which the inputs of the tightest norm layer could still shrink."""
    return min((layer.down for layer in headroom(run) if layer.down is not None), default=None)


def weight_norm_error(run: Run) -> float | None:
    """Return the largest relative distance of a channel's final weight norm from rho; None without bounded layers."""
    rho = run.record.rho
    norms = run.record.epochs[-1].weight_norms if run.record.epochs else {}
    return max((abs(norm / rho[name] - 1.0) for name in rho for norm in norms.get(name, ())), default=None)


def scale_low(run: Run) -> float | None:
    """Return the least scale s of any norm layer."""
    return min((s.scale_low for s in run.record.norm_layers.values() if s.scale_low is not None), default=None)


def scale_high(run: Run) -> float | None:
    """Return the greatest scale s of any norm layer."""
    return max((s.scale_high for s in run.record.norm_layers.values() if s.scale_high is not None), default=None)


def _alone(compute: Callable[[Run], float | None], meaning: str, unit: str = "", **traits: bool) -> Metric:
    """Return the metric that needs the run alone."""
    return Metric(lambda run, group: compute(run), meaning, unit, **traits)


METRICS: dict[str, Metric] = {
    "accuracy": _alone(lambda run: run.accuracy, "accuracy after the last epoch", "share", more_is_better=True),
    "best_accuracy": _alone(best_accuracy, "best accuracy after any epoch", "share", more_is_better=True),
    "error": _alone(error, "1 minus the accuracy", "share"),
    "accuracy_gap": Metric(accuracy_gap, "accuracy of the reference minus that of the cell", "share"),
    "accuracy_gap_sd": Metric(accuracy_gap_in_deviations, "accuracy gap over the seed noise of the reference", "sd"),
    "test_loss": _alone(test_loss, "test loss after the last epoch"),
    "train_loss": _alone(train_loss, "mean training loss of the last epoch"),
    "token_loss": _alone(token_loss, "loss of a test token after the last epoch, in nats"),
    "token_accuracy": _alone(
        token_accuracy, "test tokens predicted rightly from those before them", "share", more_is_better=True
    ),
    "word_accuracy": _alone(
        word_accuracy, "test sequences written rightly to their ends, token after token", "share", more_is_better=True
    ),
    "chrf": _alone(chrf, "chrF3 of the written sequences (Popovic 2015), over symbols", "share", more_is_better=True),
    "loss_gap_area": Metric(loss_gap_area, "mean excess of the smoothed loss over the reference's"),
    "loss_gap_end": Metric(loss_gap_end, "the same over the last tenth of the steps"),
    "first_divergence": Metric(
        first_divergence_step,
        "first of 20 steps above the reference's band",
        "step",
        more_is_better=True,
        is_counted=True,
    ),
    "nonfinite_step": _alone(
        nonfinite_step, "step of the first inf or NaN outcome", "step", more_is_better=True, is_counted=True
    ),
    "loss_spikes": _alone(loss_spikes, "spikes of the training loss", is_counted=True),
    "loss_spike_height": _alone(loss_spike_height, "height of the highest of them", is_counted=True),
    "loss_spike_steps": _alone(loss_spike_steps, "steps of the longest of them", is_counted=True),
    "unrecovered_spikes": _alone(unrecovered_spikes, "those that lasted to the end", is_counted=True),
    "overflow_rate": counter_rate("overflow", "rounded results that overflowed"),
    "underflow_rate": counter_rate("underflow", "rounded results flushed to zero"),
    "subnormal_rate": counter_rate("subnormal", "rounded results that are subnormal"),
    "saturation_rate": counter_rate("saturated", "rounded results that saturated"),
    "nan_rate": counter_rate("nan_produced", "rounded results that produced a NaN"),
    "gradient_overflow_rate": counter_rate("overflow", "overflows in the backward direction", "backward"),
    "gradient_underflow_rate": counter_rate(
        "underflow", "results flushed to zero in the backward direction", "backward"
    ),
    "collapsed_channels": _alone(
        collapsed_channels, "channels normalised by inf, NaN or zero", "share", is_counted=True
    ),
    "gradient_cosine": _alone(gradient_cosine, "least cosine of the gradient to the reference's", more_is_better=True),
    "weight_distance": _alone(weight_distance, "relative distance of the weights to the reference's"),
    "angular_update": _alone(angular_update, "angle by which a step turns the weights under a norm", "rad"),
    "weight_norm_error": _alone(
        weight_norm_error, "largest relative distance of a channel's weight norm from its layer's rho", is_counted=True
    ),
    "weight_gradient_zeros": _alone(
        weight_gradient_zeros, "weight gradients of convolutions that are zero", "share", is_counted=True
    ),
    "zero_updates": _alone(zero_updates, "weight updates that rounded to nothing", "share", is_counted=True),
    "headroom_up": _alone(
        headroom_up,
        "room for larger inputs of the tightest norm layer",
        "binades",
        more_is_better=True,
        is_counted=True,
    ),
    "headroom_down": _alone(
        headroom_down,
        "room for smaller inputs of the tightest norm layer",
        "binades",
        more_is_better=True,
        is_counted=True,
    ),
    "scale_low": _alone(scale_low, "least scale s of any norm layer", more_is_better=True, is_counted=True),
    "scale_high": _alone(scale_high, "greatest scale s of any norm layer", is_counted=True),
}
"""Every metric of a trained run by name."""


def measure(run: Run, group: Group) -> dict[str, float | None]:
    """Return every metric of `run`; a NaN is None, an infinity stays."""
    values = {name: metric.compute(run, group) for name, metric in METRICS.items()}
    return {name: None if value is None or math.isnan(value) else float(value) for name, value in values.items()}
