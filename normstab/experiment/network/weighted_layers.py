"""The layers of a network that an experiment speaks of: those with weights, those that normalise, the last one.

Puts the norms and weight norms of a ModelSpec into a network, and measures weights. Output channels are axis 0 of
a weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from normstab.errors import NormstabError
from normstab.experiment.scenario.spec import ModelSpec
from normstab.norms.catalogue import parse_norm
from normstab.norms.modules import MeanOnlyBatchNorm1d, MeanOnlyBatchNorm2d, Normalizing
from normstab.norms.replace import is_norm, replace_norms_
from normstab.norms.weight import bounded_weight_norm, weight_norm
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.philox import Key
from normstab.numerics.rules import DEFAULT, Rules
from normstab.numerics.steps.clock import Clock

__all__ = [
    "apply_noise_",
    "apply_norms_",
    "apply_weight_norm_",
    "channel_norms",
    "hidden_layers",
    "last_layer",
    "noise_clocks",
    "norm_layers",
    "scale_weights_",
    "weight_layers",
]

WeightLayer = nn.modules.conv._ConvNd | nn.Linear


class ChannelBias(nn.Module):
    """What is left of a norm layer without its norm: a learned shift of each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, *) plus the bias of each channel."""
        return x + self.bias.view(-1, *([1] * (x.ndim - 2)))


def weight_layers(model: nn.Module) -> dict[str, WeightLayer]:
    """Return the convolutions and linear layers by name, in the model's order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
    }


def last_layer(model: nn.Module) -> nn.Module:
    """Return the last layer with a weight: the classifier."""
    layers = list(weight_layers(model).values())
    if not layers:
        raise NormstabError(f"{type(model).__name__} has no convolution and no linear layer")
    return layers[-1]


def hidden_layers(model: nn.Module) -> dict[str, WeightLayer]:
    """Return the layers with weights but the last: those under a norm."""
    layers = weight_layers(model)
    return {name: layer for name, layer in layers.items() if layer is not last_layer(model)}


def norm_layers(model: nn.Module) -> dict[str, Normalizing]:
    """Return the norm layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Normalizing)}


def scale_weights_(model: nn.Module, factor: float) -> None:
    """Multiply weights and biases of every layer but the last by `factor`."""
    if factor == 1.0:
        return
    with torch.no_grad():
        for layer in hidden_layers(model).values():
            for parameter in layer.parameters(recurse=False):
                parameter.mul_(factor)


def channel_norms(weight: Tensor, p: float = 2) -> Tensor:
    """Return ||w_i||_p of every output channel i, in float64."""
    norms: Tensor = torch.linalg.vector_norm(weight.detach().double().flatten(1), p, dim=1)
    return norms


def apply_norms_(model: nn.Module, spec: ModelSpec) -> None:
    """Give each normalization layer of the model the norm that `spec` wants for its name."""
    chosen = spec.norm if isinstance(spec.norm, Mapping) else {DEFAULT: spec.norm}
    rules = Rules(chosen, "l2")
    wanted = {name: rules.of(name) for name, module in model.named_modules() if is_norm(module)}
    if not wanted:
        raise NormstabError(f"model {spec.name!r} has no normalization layer for model.norm")
    rules.check(wanted, what="no normalization layer is called")
    scaling = {name: norm for name, norm in wanted.items() if norm not in ("mean-only", "none")}
    if spec.norm_constant != 1.0 and not any(parse_norm(norm).has_constant for norm in scaling.values()):
        raise NormstabError(f"model.norm_constant multiplies the constant of l1, linf, topK, range, not of {spec.norm}")
    for name, norm in wanted.items():
        if name not in scaling:
            _put(model, name, _unscaled(name, model.get_submodule(name), norm))
    left = replace_norms_(model, scaling, norm_constant=spec.norm_constant).left if scaling else {}
    for name, reason in left.items():
        if name in scaling:
            raise NormstabError(f"layer {name!r} cannot have norm {scaling[name]!r}: {reason}")
    if spec.eps is not None:
        for layer in norm_layers(model).values():
            setattr(layer, "eps", spec.eps)  # noqa: B010 - the attribute is torch's, of every norm layer


def apply_noise_(model: nn.Module, spec: ModelSpec, seed: int) -> None:
    """Give every norm layer the noise of `spec`, with the key of `seed`, its name and one clock for all."""
    if spec.norm_noise is None:
        return
    noise, native = spec.norm_noise.noise(), Arithmetic("native", key=Key(seed=seed))
    for name, layer in norm_layers(model).items():
        layer.arithmetic = native.at(name)
        layer.norm_noise = noise


def noise_clocks(model: nn.Module) -> list[Clock]:
    """Return the clocks by which the noise of a network is keyed, each once."""
    found = [layer.arithmetic.clock for layer in norm_layers(model).values() if layer.norm_noise is not None]
    return list({id(clock): clock for clock in found}.values())


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` at the dotted `name`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


def _unscaled(name: str, old: nn.Module, norm: str) -> nn.Module:
    """Return what stands for the norm layer `old` without a scale: mean-only normalization, or none at all.

    After a layer or RMS norm come linear layers with biases of their own, so that nothing of it is left.
    """
    if norm == "none" and isinstance(old, nn.LayerNorm | nn.RMSNorm):
        return nn.Identity()
    if not isinstance(old, nn.BatchNorm1d | nn.BatchNorm2d):
        stands_for = "batch, layer and RMS norm" if norm == "none" else "batch norm"
        raise NormstabError(f"layer {name!r} is a {type(old).__name__}; {norm!r} stands in for {stands_for} only")
    if norm == "none":
        return ChannelBias(old.num_features)
    make = MeanOnlyBatchNorm1d if isinstance(old, nn.BatchNorm1d) else MeanOnlyBatchNorm2d
    return make(old.num_features)


def apply_weight_norm_(model: nn.Module, spec: ModelSpec) -> None:
    """Give every layer under a norm the weight norm of `spec`; the last layer keeps its weight as it is."""
    if spec.weight_norm == "none":
        return
    wrap = {"wn": weight_norm, "bwn": bounded_weight_norm}[spec.weight_norm]
    for layer in hidden_layers(model).values():
        wrap(layer, norm={1: "l1", 2: "l2", "inf": "linf"}[spec.weight_norm_p])
