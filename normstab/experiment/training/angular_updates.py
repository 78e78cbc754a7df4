"""By what angle an optimizer's step turns the weights of each layer under a norm.

To a layer under a norm only the direction of its weights matters. Decay shrinks them and gradients, at right angles to
them, lengthen them, until both balance: then every step of SGD with rate eta, decay lambda and momentum alpha turns
them by about sqrt(2 eta lambda / (1 + alpha)).
Source: Wan et al. 2021, "Spherical motion dynamics"; Kosson et al. 2023, "Rotational equilibrium".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from normstab.experiment.network.weighted_layers import hidden_layers

__all__ = ["angle_between", "angles_since", "weights_now"]


def weights_now(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights of every layer under a norm; of a weight norm, of the direction that it learns."""
    return {name: _learned(layer).detach().clone() for name, layer in hidden_layers(model).items()}


def angles_since(before: Mapping[str, Tensor], model: nn.Module) -> dict[str, float]:
    """Return, by layer, the angle between the weights `before` and those of now."""
    layers = hidden_layers(model)
    return {name: angle_between(old, _learned(layers[name]).detach()) for name, old in before.items()}


def angle_between(a: Tensor, b: Tensor) -> float:
    """Return the angle of two tensors, taken as vectors, in radians and float64; 0 where one of them is zero.

    2 atan2(|u - v|, |u + v|) with u and v of length 1, which is accurate for small angles, where acos is not.
    Source: Kahan 2006, "How futile are mindless assessments of roundoff in floating-point computation?", section 12.
    """
    a, b = a.double().flatten(), b.double().flatten()
    lengths = a.norm(), b.norm()
    if not all(length > 0 for length in lengths):
        return 0.0
    u, v = a / lengths[0], b / lengths[1]
    return 2.0 * math.atan2((u - v).norm().item(), (u + v).norm().item())


def _learned(layer: nn.Module) -> Tensor:
    """Return the largest parameter of a layer: its weight, or the direction of a weight under a weight norm."""
    return max(layer.parameters(), key=torch.numel)
