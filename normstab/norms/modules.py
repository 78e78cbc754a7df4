"""The normalization layers as torch.nn modules: torch's constructors and state, with `norm=` and `arithmetic`.

`norm` is any name of the catalogue; `norm_constant` multiplies the constant of the norms that have one.
`arithmetic` is an Arithmetic, or a precision string, and `native` unless set: plain torch. `norm_noise` disturbs
a layer that rounds nothing, with the key of its arithmetic. Parameters, buffers, state_dict keys, momentum, train and
eval are torch's. `running_var` stores the unbiased variance for l2, and the scale s without eps for every other norm.
The sites of an emulated layer are listed in `op_by_op`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from normstab.norms.catalogue import NormSpec, parse_norm
from normstab.norms.layers import How, Running, batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from normstab.norms.noise.norm_noise import NormNoise
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.precision import Precision
from normstab.numerics.spelling.arguments import check_optional

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "MeanOnlyBatchNorm1d",
    "MeanOnlyBatchNorm2d",
    "MeanOnlyBatchNorm3d",
    "Normalizing",
    "RMSNorm",
]


class Normalizing(nn.Module):
    """What every layer here shares: a norm, a factor on its constant, and an arithmetic."""

    _how: How
    weight: Any
    bias: Any

    def __init__(self, *args: Any, norm: str | NormSpec = "l2", norm_constant: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_norm(norm, norm_constant)

    def set_norm(self, norm: str | NormSpec | None, norm_constant: float = 1.0) -> None:
        """Use another norm from now on; running statistics of the old one keep their values."""
        spec = None if norm is None else parse_norm(norm)
        before = self.__dict__.get("_how", How(None, Arithmetic("native")))
        self._how = How(spec, before.ar, float(norm_constant), before.noise)

    @property
    def norm(self) -> str:
        """The name of the norm."""
        return "mean-only" if self._how.spec is None else str(self._how.spec)

    @property
    def norm_constant(self) -> float:
        """The factor on the norm's constant."""
        return self._how.constant_factor

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic in which the layer computes; `native` is plain torch."""
        return self._how.ar

    @arithmetic.setter
    def arithmetic(self, value: Arithmetic | Precision | str) -> None:
        ar = value if isinstance(value, Arithmetic) else Arithmetic(value)
        self._how = replace(self._how, ar=ar)

    @property
    def norm_noise(self) -> NormNoise | None:
        """The noise that disturbs the layer, None for none; it needs a native arithmetic with a key."""
        return self._how.noise

    @norm_noise.setter
    def norm_noise(self, noise: NormNoise | None) -> None:
        check_optional(noise, NormNoise, "norm_noise", "a normstab.NormNoise, as NormNoise('uniform', like='q6.9')")
        self._how = replace(self._how, noise=noise)

    def extra_repr(self) -> str:
        """Describe the layer as torch does, with the norm."""
        factor = "" if self.norm_constant == 1.0 else f", norm_constant={self.norm_constant:g}"
        shown = "" if self.arithmetic.is_native else f", arithmetic={self.arithmetic.precision}"
        shown += "" if self.norm_noise is None else f", norm_noise={self.norm_noise}"
        return f"{super().extra_repr()}, norm={self.norm}{factor}{shown}".removeprefix(", ")


class BatchForward(Normalizing):
    """The forward pass of batch norm: torch's rules for momentum, training and evaluation."""

    eps: float
    momentum: float | None
    track_running_stats: bool
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    _check_input_dim: Callable[[Tensor], None]

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each channel of x (N, C, *)."""
        self._check_input_dim(x)
        return batch_norm(x, self.weight, self.bias, self._running(), self.eps, self._how)

    def _running(self) -> Running:
        """Count the batch, and return the buffers that this call uses."""
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        uses_batch = self.training or (self.running_mean is None and self.running_var is None)
        if self.training and not self.track_running_stats:
            return Running(None, None, uses_batch, momentum)
        return Running(self.running_mean, self.running_var, uses_batch, momentum)


class BatchNorm1d(BatchForward, nn.BatchNorm1d):
    """Batch norm of (N, C) or (N, C, L): torch.nn.BatchNorm1d with `norm=` and `arithmetic`."""


class BatchNorm2d(BatchForward, nn.BatchNorm2d):
    """Batch norm of (N, C, H, W): torch.nn.BatchNorm2d with `norm=` and `arithmetic`."""


class BatchNorm3d(BatchForward, nn.BatchNorm3d):
    """Batch norm of (N, C, D, H, W): torch.nn.BatchNorm3d with `norm=` and `arithmetic`."""


class InstanceForward(Normalizing):
    """The forward pass of instance norm; torch's checks and rules come from its own `forward`."""

    eps: float
    momentum: float | None
    track_running_stats: bool
    running_mean: Tensor | None
    running_var: Tensor | None

    def _apply_instance_norm(self, x: Tensor) -> Tensor:
        """Normalize each channel of each sample of x (N, C, *)."""
        uses_batch = self.training or not self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        running = Running(self.running_mean, self.running_var, uses_batch, momentum)
        return instance_norm(x, self.weight, self.bias, running, self.eps, self._how)


class InstanceNorm1d(InstanceForward, nn.InstanceNorm1d):
    """Instance norm of (N, C, L) or (C, L): torch.nn.InstanceNorm1d with `norm=` and `arithmetic`."""


class InstanceNorm2d(InstanceForward, nn.InstanceNorm2d):
    """Instance norm of (N, C, H, W) or (C, H, W): torch.nn.InstanceNorm2d with `norm=` and `arithmetic`."""


class InstanceNorm3d(InstanceForward, nn.InstanceNorm3d):
    """Instance norm of (N, C, D, H, W) or (C, D, H, W): torch.nn.InstanceNorm3d with `norm=` and `arithmetic`."""


# The images' instance norm under its short name.
InstanceNorm = InstanceNorm2d


class LayerNorm(Normalizing, nn.LayerNorm):
    """Layer norm over the trailing axes: torch.nn.LayerNorm with `norm=` and `arithmetic`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each row of `normalized_shape`."""
        return layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps, self._how)


class GroupNorm(Normalizing, nn.GroupNorm):
    """Group norm of (N, C, *): torch.nn.GroupNorm with `norm=` and `arithmetic`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each group of channels of each sample."""
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps, self._how)


class RMSNorm(Normalizing, nn.RMSNorm):
    """RMS norm over the trailing axes, nothing is centred: torch.nn.RMSNorm with `norm=` and `arithmetic`.

    With another norm it is that norm of the values as they are: mean(abs x) times C1 for l1, and so on.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Scale each row of `normalized_shape`."""
        return rms_norm(x, self.normalized_shape, self.weight, self.eps, self._how)


class MeanOnlyBatchNorm(BatchForward):
    """Subtract the mean of each channel and add a learned bias; nothing is scaled.

    Source: Salimans and Kingma 2016, section 4: the companion of weight norm. Evaluation subtracts
    `running_mean`, which moves as torch.nn.BatchNorm's does.
    """

    dimensions: tuple[int, ...] = ()

    def __init__(
        self,
        num_features: int,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.num_features, self.eps, self.momentum = num_features, 0.0, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.set_norm(None)
        self.register_parameter("weight", None)
        zeros = torch.zeros(num_features, device=device, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(zeros) if affine else None)
        self.register_buffer("running_mean", zeros.clone() if track_running_stats else None)
        self.register_buffer("running_var", None)
        counter = torch.tensor(0, device=device) if track_running_stats else None
        self.register_buffer("num_batches_tracked", counter)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() not in self.dimensions:
            allowed = " or ".join(f"{d}D" for d in self.dimensions)
            raise ValueError(f"expected {allowed} input (got {x.dim()}D input)")

    def extra_repr(self) -> str:
        """Describe the layer."""
        described = f"{self.num_features}, momentum={self.momentum}, affine={self.affine}"
        shown = "" if self.arithmetic.is_native else f", arithmetic={self.arithmetic.precision}"
        return f"{described}, track_running_stats={self.track_running_stats}{shown}"


class MeanOnlyBatchNorm1d(MeanOnlyBatchNorm):
    """Mean-only batch norm of (N, C) or (N, C, L)."""

    dimensions = (2, 3)


class MeanOnlyBatchNorm2d(MeanOnlyBatchNorm):
    """Mean-only batch norm of (N, C, H, W)."""

    dimensions = (4,)


class MeanOnlyBatchNorm3d(MeanOnlyBatchNorm):
    """Mean-only batch norm of (N, C, D, H, W)."""

    dimensions = (5,)
