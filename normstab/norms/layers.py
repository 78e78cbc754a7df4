"""torch's functional norms with a norm and an Arithmetic: the same arguments, the same meaning of each.

`native` l2 is torch's own function, its speed and its results; everything else is our own definition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from normstab.errors import NormstabError
from normstab.norms.autograd import Normalized, normalize
from normstab.norms.catalogue import NormSpec
from normstab.norms.functional import Reduction, Scheme, update_running
from normstab.norms.noise.norm_noise import NormNoise
from normstab.norms.noise.perturbation import disturb_gradient, disturbed
from normstab.numerics.arithmetic import Arithmetic

__all__ = ["How", "Running", "batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]


@dataclass(frozen=True)
class How:
    """What a layer adds to torch's arguments: the norm, a factor on its constant, the arithmetic, and noise.

    `spec` None is mean-only normalization. Noise stands in the place of rounding: it needs a native arithmetic.
    """

    spec: NormSpec | None
    ar: Arithmetic
    constant_factor: float = 1.0
    noise: NormNoise | None = None

    def __post_init__(self) -> None:
        has_constant = self.spec is not None and self.spec.has_constant
        if self.constant_factor != 1.0 and not has_constant:
            raise NormstabError(
                f"norm_constant multiplies the constant of l1, linf, topK and range; norm '{self.spec}' has none"
            )
        if not (math.isfinite(self.constant_factor) and self.constant_factor > 0):
            raise NormstabError(f"norm_constant is a positive factor, found {self.constant_factor}")
        if self.noise is not None and not self.ar.is_native:
            raise NormstabError(
                f"norm_noise disturbs a layer that rounds nothing; {self.ar.site or 'this layer'} rounds, "
                f"{self.ar.precision}: give the norm layers the rule 'native', or leave norm_noise out"
            )

    def is_torch(self, eps: float) -> bool:
        """Whether torch's own function computes it: native l2, its statistics undisturbed, with an eps it accepts."""
        is_l2 = self.spec is not None and self.spec.kind == "l2"
        return self.ar.is_native and is_l2 and eps > 0 and self.noise_at("statistics") is None

    def noise_at(self, place: str) -> NormNoise | None:
        """Return the noise where it disturbs `place`."""
        return self.noise if self.noise is not None and self.noise.at(place) else None

    def entered(self, x: Tensor) -> Tensor:
        """Return the input, whose gradient is disturbed where the noise is on gradients."""
        return disturb_gradient(x, self.noise_at("gradient"), self.ar)

    def left(self, z: Tensor) -> Tensor:
        """Return the output, disturbed where the noise is on outputs."""
        return disturbed(z, self.noise_at("output"), self.ar, "output")

    def widened(self, x: Tensor) -> Tensor:
        """Return the input of a layer, group or RMS norm: these are among the operations that autocast runs wide."""
        return x if self.ar.precision.autocast == "none" else x.to(torch.float32)

    def scheme(self, eps: float, *, tracks: bool = False, centres: bool = True) -> Scheme:
        """Return what is computed, with `eps`."""
        if not eps >= 0:
            raise NormstabError(f"eps is zero or positive, found {eps}")
        return Scheme(self.spec, eps, self.constant_factor, centres, tracks, self.noise_at("statistics"))


@dataclass(frozen=True)
class Running:
    """The running statistics of a layer, None where not tracked, and how they move.

    `uses_batch` says that the statistics are those of the input; then the buffers are updated with `momentum`.
    """

    mean: Tensor | None
    var: Tensor | None
    uses_batch: bool
    momentum: float

    def update(self, found: Normalized, reduction: Reduction, ar: Arithmetic) -> None:
        """Move the buffers towards the statistics of this batch."""
        for running, new, operation in (
            (self.mean, found.mean, "running_mean"),
            (self.var, found.stored, "running_var"),
        ):
            if running is not None and new is not None:
                update_running(running, new, self.momentum, reduction, ar, operation=operation)


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running, eps: float, how: How) -> Tensor:
    """Normalize each channel of x (N, C, *) over everything else, as F.batch_norm does."""
    x = how.entered(x)
    if how.is_torch(eps):
        momentum = running.momentum
        z = F.batch_norm(x, running.mean, running.var, weight, bias, running.uses_batch, momentum, eps)
        return how.left(z)
    reduction = Reduction.of_batch(x.shape)
    if how.ar.is_native and running.uses_batch and reduction.n == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    return how.left(_with_running(x, weight, bias, running, eps, how, reduction))


def instance_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running, eps: float, how: How
) -> Tensor:
    """Normalize each channel of each sample of x (N, C, *), as F.instance_norm does."""
    x = how.entered(x)
    if how.is_torch(eps):
        momentum = running.momentum
        z = F.instance_norm(x, running.mean, running.var, weight, bias, running.uses_batch, momentum, eps)
        return how.left(z)
    reduction = Reduction.of_instance(x.shape)
    if how.ar.is_native and running.uses_batch and reduction.n == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {tuple(x.shape)}")
    return how.left(_with_running(x, weight, bias, running, eps, how, reduction))


def _with_running(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: Running,
    eps: float,
    how: How,
    reduction: Reduction,
) -> Tensor:
    """Normalize by the batch and move the buffers, or normalize by the buffers."""
    for name, values in (("weight", weight), ("bias", bias), ("running_mean", running.mean)):
        if values is not None and values.numel() != x.shape[1]:
            raise NormstabError(
                f"{name} has {values.numel()} channels, the input has {x.shape[1]} (shape {tuple(x.shape)})"
            )
    if not running.uses_batch:
        return normalize(
            x, weight, bias, how.scheme(eps), reduction, how.ar, statistics=(running.mean, running.var)
        ).output
    tracks = running.var is not None
    found = normalize(x, weight, bias, how.scheme(eps, tracks=tracks), reduction, how.ar)
    running.update(found, reduction, how.ar)
    return found.output


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, how: How) -> Tensor:
    """Normalize each group of channels of each sample of x (N, C, *), as F.group_norm does."""
    x = how.entered(x)
    if how.is_torch(eps):
        return how.left(F.group_norm(x, groups, weight, bias, eps))
    reduction = Reduction.of_group(x.shape, groups)
    return how.left(normalize(how.widened(x), weight, bias, how.scheme(eps), reduction, how.ar).output)


def layer_norm(
    x: Tensor, normalized: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float, how: How
) -> Tensor:
    """Normalize each row of the trailing axes `normalized`, as F.layer_norm does."""
    x = how.entered(x)
    if how.is_torch(eps):
        return how.left(F.layer_norm(x, list(normalized), weight, bias, eps))
    reduction = Reduction.of_layer(x.shape, normalized)
    return how.left(normalize(how.widened(x), weight, bias, how.scheme(eps), reduction, how.ar).output)


def rms_norm(x: Tensor, normalized: Sequence[int], weight: Tensor | None, eps: float | None, how: How) -> Tensor:
    """Scale each row of the trailing axes `normalized` without centring it, as F.rms_norm does.

    eps None is the machine epsilon of the dtype of `x`, as in torch.
    """
    if eps is None:
        eps = torch.finfo(x.dtype).eps
    x = how.entered(x)
    if how.is_torch(eps):
        return how.left(F.rms_norm(x, list(normalized), weight, eps))
    reduction = Reduction.of_layer(x.shape, normalized)
    return how.left(normalize(how.widened(x), weight, None, how.scheme(eps, centres=False), reduction, how.ar).output)
