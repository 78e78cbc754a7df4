"""What stands in for weight decay: rates, gradients or weights corrected to the channel norms of a run that had it.

    lr_corrected = lr ||w||^2 / ||w_recorded||^2            per output channel
    g_corrected  = g  ||w||^2 / ||w_recorded||^2            the same without momentum
    norm schedule: ||w|| = ||w_recorded|| / sqrt(f) after every step, f the schedule's factor, and lr stays

A momentum buffer holds gradients that were proportional to the inverse of older norms: at a rate that grows with the
square of today's norm one jump feeds the next. Correcting each gradient before it enters the buffer has no such loop.
Recorded norms are those of the end of the same epoch. Layers under a norm only; the last layer is left alone.
Source: Hoffer et al. 2018, section 3, and the authors' poster (sqrt(10) per drop of the rate by 10); the released
optimizer multiplies the gradient.

A rate that grows needs no record. Decay turns w into (1 - lr wd) w - lr g(w); where a norm follows, g(w / P) = P g(w).
So v = w / P, P the product of all (1 - lr wd) so far, moves by -lr / (P_before P_after) g(v): the same directions in
weights that grow without end.
Source: Li and Arora 2020, "An exponential learning rate schedule for deep learning", theorem 2.1 (no momentum).
"""

from __future__ import annotations

import math
import operator
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn

from normstab.errors import NormstabError, RecordError
from normstab.experiment.network.weighted_layers import channel_norms, hidden_layers
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.scenario.training_spec import TrainSpec
from normstab.experiment.training.optimizers import CompensatedSGD
from normstab.experiment.training.schedules import Span, rate_factor

__all__ = [
    "CorrectedGradient",
    "CorrectedRate",
    "Correction",
    "FollowedNorms",
    "NormSchedule",
    "RecordedNorms",
    "correction_of",
]


class Correction:
    """What is done around the optimizer's steps, counted from 0, in the place of weight decay."""

    has_factors = True
    """Whether it sets factors of a CompensatedSGD; any optimizer serves the others."""
    moves_norms = False
    """Whether the schedule moves the norms of the weights, and the rate stays."""

    def before(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Prepare the optimizer for its step."""

    def after(self, step: int, factor: float) -> None:
        """Correct the weights after it; `factor` is that of the schedule in this step."""


def correction_of(train: TrainSpec, model: nn.Module, records: Path, span: Span) -> Correction | None:
    """Return what replaces weight decay in a run; None where nothing does.

    `records` holds the record that is followed, by its id. Raises where it is not there, has too few epochs or other
    layers, or where the weights of `model` are not plain.
    """
    kind = train.weight_decay_correction
    if kind is None:
        return None
    layers = hidden_layers(model)
    if any(hasattr(layer, "parametrizations") for layer in layers.values()):
        raise NormstabError("train.weight_decay_correction follows plain weights; a weight norm has none")
    if kind == "exponential":
        return ExponentialRate([layer.weight for layer in layers.values()], train, span)
    assert train.norm_record is not None, "the scenario's reader asks for it"
    recorded = RecordedNorms.read(records / train.norm_record, model, epochs=train.epochs)
    follow: dict[str, type[FollowedNorms]] = {
        "lr": CorrectedRate,
        "gradient": CorrectedGradient,
        "norm-schedule": NormSchedule,
    }
    return follow[kind](recorded, span)


class RecordedNorms:
    """The norms of every output channel of the layers of `model`, epoch by epoch, from another run's record."""

    def __init__(self, model: nn.Module, epochs: list[dict[str, Tensor]]) -> None:
        self.epochs = epochs
        self.weights: dict[str, Tensor] = {name: layer.weight for name, layer in hidden_layers(model).items()}

    @staticmethod
    def read(directory: Path, model: nn.Module, *, epochs: int) -> RecordedNorms:
        """Return the norms in the record at `directory`; raise where it has too few epochs or other layers."""
        record = read_record(directory)
        if len(record.epochs) < epochs or record.status != "finished":
            raise RecordError(
                f"{directory / 'record.json'}: has the channel norms of {len(record.epochs)} epochs "
                f"(status {record.status}), the run that follows them has {epochs} epochs"
            )
        layers = hidden_layers(model)
        found = []
        for epoch in record.epochs[:epochs]:
            missing = [
                name for name, layer in layers.items() if len(epoch.weight_norms.get(name, ())) != len(layer.weight)
            ]
            if missing:
                raise RecordError(f"{directory / 'record.json'}: has no channel norms of {missing[0]}: another network")
            device = next(model.parameters()).device
            norms = {
                name: torch.tensor(epoch.weight_norms[name], dtype=torch.float64, device=device) for name in layers
            }
            found.append(norms)
        return RecordedNorms(model, found)


class FollowedNorms(Correction):
    """A correction to the norms that another run recorded."""

    def __init__(self, recorded: RecordedNorms, span: Span) -> None:
        self.recorded, self.steps_per_epoch = recorded, span.steps_per_epoch

    def _ratios(self, step: int) -> dict[Tensor, Tensor]:
        """Return ||w||^2 / ||w_recorded||^2 of every channel by weight, in float64, in a shape that broadcasts."""
        then = self.recorded.epochs[step // self.steps_per_epoch]
        return {
            weight: _over(weight, channel_norms(weight).square() / then[name].square())
            for name, weight in self.recorded.weights.items()
        }


class CorrectedRate(FollowedNorms):
    """The rate of every channel times ||w||^2 / ||w_recorded||^2."""

    def before(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the factors on the rates."""
        assert isinstance(optimizer, CompensatedSGD)
        optimizer.rates = self._ratios(step)


class CorrectedGradient(FollowedNorms):
    """The gradient of every channel times ||w||^2 / ||w_recorded||^2, before it enters the momentum."""

    def before(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the factors on the gradients."""
        assert isinstance(optimizer, CompensatedSGD)
        optimizer.gradient_factors = self._ratios(step)


class NormSchedule(FollowedNorms):
    """Every channel renormalised to ||w_recorded|| / sqrt(factor), the rate as it is."""

    has_factors = False
    moves_norms = True

    def after(self, step: int, factor: float) -> None:
        """Renormalise."""
        then = self.recorded.epochs[step // self.steps_per_epoch]
        with torch.no_grad():
            for name, weight in self.recorded.weights.items():
                target = then[name] * factor**-0.5
                weight.copy_(weight.double() * _over(weight, target / channel_norms(weight)))


class ExponentialRate(Correction):
    """The rate of every weight under a norm times 1 / (P_t P_{t+1}), P_t the product of 1 - lr_s wd over s < t."""

    def __init__(self, weights: list[Tensor], train: TrainSpec, span: Span) -> None:
        self.weights = weights
        optimizer, schedule = train.optimizer, train.schedule
        peak = optimizer.lr * train.lr_multiplier * optimizer.weight_decay
        kept = (1.0 - peak * rate_factor(schedule, step, span) for step in range(span.steps))
        self.shrunk = list(accumulate(kept, operator.mul, initial=1.0))

    def before(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the factor on the rates."""
        assert isinstance(optimizer, CompensatedSGD)
        before, after = self.shrunk[step], self.shrunk[step + 1]
        growth = 1.0 / before / after if after else math.inf
        # Filled in on the device: a copy from the host would wait for it.
        optimizer.rates = {w: torch.full((), growth, dtype=torch.float64, device=w.device) for w in self.weights}


def _over(weight: Tensor, per_channel: Tensor) -> Tensor:
    """Return one number per output channel in a shape that broadcasts over `weight`."""
    return per_channel.view(-1, *([1] * (weight.ndim - 1)))
