"""What stands in for weight decay: rates, gradients or weights corrected to the channel norms of a run that had it.

    lr_corrected = lr ||w||^2 / ||w_recorded||^2            per output channel
    g_corrected  = g  ||w||^2 / ||w_recorded||^2            the same without momentum
    norm schedule: ||w|| = ||w_recorded|| / sqrt(f) after every step, f the schedule's factor, and lr stays

A momentum buffer holds gradients that were proportional to the inverse of older norms: at a rate that grows with the
square of today's norm one jump feeds the next. Correcting each gradient before it enters the buffer has no such loop.
Recorded norms are those of the end of the same epoch. Layers under a norm only; the last layer is left alone.
Source: Hoffer et al. 2018, section 3, and the authors' poster (sqrt(10) per drop of the rate by 10); the released
optimizer multiplies the gradient.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from normstab.errors import NormstabError, RecordError
from normstab.experiment.network.weighted_layers import channel_norms, hidden_layers
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.training.optimizers import CompensatedSGD

__all__ = ["RecordedNorms", "correct_gradients", "correct_rates", "follow_norms"]


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
        if any(hasattr(layer, "parametrizations") for layer in layers.values()):
            raise NormstabError("train.weight_decay_correction follows plain weights; a weight norm has none")
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


def correct_rates(optimizer: CompensatedSGD, recorded: RecordedNorms, epoch: int) -> None:
    """Set the factor on the rate of every channel to ||w||^2 / ||w_recorded||^2, formed in float64."""
    optimizer.rates = _ratios(recorded, epoch)


def correct_gradients(optimizer: CompensatedSGD, recorded: RecordedNorms, epoch: int) -> None:
    """Set the factor on the gradient of every channel to ||w||^2 / ||w_recorded||^2, formed in float64."""
    optimizer.gradient_factors = _ratios(recorded, epoch)


def follow_norms(recorded: RecordedNorms, epoch: int, factor: float) -> None:
    """Renormalise every channel to ||w_recorded|| / sqrt(factor)."""
    with torch.no_grad():
        for name, weight in recorded.weights.items():
            target = recorded.epochs[epoch][name] * factor**-0.5
            weight.copy_(weight.double() * _over(weight, target / channel_norms(weight)))


def _ratios(recorded: RecordedNorms, epoch: int) -> dict[Tensor, Tensor]:
    """Return ||w||^2 / ||w_recorded||^2 of every channel, by weight, in a shape that broadcasts over it."""
    return {
        weight: _over(weight, channel_norms(weight).square() / recorded.epochs[epoch][name].square())
        for name, weight in recorded.weights.items()
    }


def _over(weight: Tensor, per_channel: Tensor) -> Tensor:
    """Return one number per output channel in a shape that broadcasts over `weight`."""
    return per_channel.view(-1, *([1] * (weight.ndim - 1)))
