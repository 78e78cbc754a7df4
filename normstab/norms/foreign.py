"""Norm layers of other libraries: recognised by what they compute, and given a norm without losing the rest.

timm's BatchNormAct2d has an activation inside, most RMSNorms of Hugging Face derive from nn.Module directly.
A recognised layer gets a class that derives from its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normstab.norms import layers
from normstab.norms.catalogue import NORMS
from normstab.norms.layers import How, Running
from normstab.norms.modules import Normalizing
from normstab.numerics.arithmetic import Arithmetic

__all__ = ["recognise", "with_mixin"]

TORCH_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def recognise(layer: nn.Module) -> type[Normalizing] | str:
    """Return the mixin that swaps the norm of `layer`, or why none can."""
    if isinstance(layer, TORCH_NORMS):
        if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
            return "it is lazy and not initialised yet"
        return Intercepting if _calls_a_functional_norm(layer) else "its forward does not call torch's functional norm"
    for mixin in (RMSNormLike, LayerNormLike):
        if _computes(layer, mixin):
            return mixin
    return "its forward is not a layer norm or an RMS norm with a weight"


class Intercepting(Normalizing):
    """A subclass of one of torch's norms that keeps its own forward; the functional norm in it is swapped."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's own forward with its norm."""
        with _Swap(self._how):
            return super().forward(*args, **kwargs)


class RMSNormLike(Normalizing):
    """A layer that computes weight * (x / rms(x)) over the trailing axes of its weight."""

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Scale each row."""
        return layers.rms_norm(x, self.weight.shape, self.weight, _eps(self), self._how)


class LayerNormLike(Normalizing):
    """A layer that computes weight * (x - mean) / sigma + bias over the trailing axes of its weight."""

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each row."""
        return layers.layer_norm(x, self.weight.shape, self.weight, getattr(self, "bias", None), _eps(self), self._how)


def with_mixin(mixin: type[Normalizing], original: type[nn.Module]) -> type[Normalizing]:
    """Return the class `mixin` + `original` under the original's name; its layers copy and pickle."""
    classes: tuple[Any, Any] = (mixin, original)
    return _made_once(*classes)


@cache
def _made_once(mixin: Any, original: Any) -> type[Normalizing]:
    """Make the class, so that layers of one kind stay of one kind."""

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        return _rebuilt, (mixin, original), self.__dict__.copy()

    body = {"__reduce_ex__": reduce, "__module__": original.__module__, "__doc__": original.__doc__}
    return type(original.__name__, (mixin, original), body)


def _rebuilt(mixin: type[Normalizing], original: type[nn.Module]) -> nn.Module:
    """Return an empty layer of the injected class, for unpickling."""
    made = with_mixin(mixin, original)
    return made.__new__(made)


class _Swap(TorchFunctionMode):
    """Send torch's functional norms to ours, and count how often."""

    def __init__(self, how: How) -> None:
        super().__init__()
        self.how, self.calls = how, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        ours = SWAPPED.get(func)
        if ours is None:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return ours(self.how, *args, **(kwargs or {}))


def _batch_norm(
    how: How, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    return layers.batch_norm(input, weight, bias, Running(running_mean, running_var, training, momentum), eps, how)


def _instance_norm(
    how: How, input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    running = Running(running_mean, running_var, use_input_stats, momentum)
    return layers.instance_norm(input, weight, bias, running, eps, how)


def _layer_norm(
    how: How, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    return layers.layer_norm(input, normalized_shape, weight, bias, eps, how)


def _group_norm(
    how: How,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return layers.group_norm(input, num_groups, weight, bias, eps, how)


def _rms_norm(
    how: How, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    return layers.rms_norm(input, normalized_shape, weight, eps, how)


SWAPPED: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.rms_norm: _rms_norm,
}


def _eps(layer: nn.Module) -> float:
    """Return the eps of a foreign layer, under whichever name it goes."""
    for name in ("variance_epsilon", "eps", "epsilon"):
        value = getattr(layer, name, None)
        if isinstance(value, float):
            return value
    raise AttributeError("no eps")


def _calls_a_functional_norm(layer: nn.Module) -> bool:
    """Whether the forward of a copy of `layer`, given an input that it takes, calls exactly one functional norm."""
    probe = copy.deepcopy(layer).eval()
    for shape in _shapes(layer):
        swap = _Swap(How(NORMS["l2"], Arithmetic("native")))
        try:
            with torch.no_grad(), swap:
                type(layer).forward(probe, _probe_input(shape, layer))
        except Exception:
            continue
        return swap.calls == 1
    return False


def _shapes(layer: nn.Module) -> list[tuple[int, ...]]:
    """Return shapes of inputs that a subclass of one of torch's norms may take."""
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        rows = tuple(layer.normalized_shape)
        return [(2, 3, *rows), (2, rows[0], 4, 4), (2, *rows)]
    channels = int(getattr(layer, "num_features", 0) or getattr(layer, "num_channels", 1))
    return [(2, channels, *[4] * d) for d in (2, 1, 3, 0)]


def _probe_input(shape: Sequence[int], layer: nn.Module) -> Tensor:
    """Return a reproducible input on the device and in the dtype of the layer."""
    like = next(iter(layer.parameters()), torch.zeros(()))
    x = torch.linspace(-2.0, 3.0, torch.Size(shape).numel()).sin().reshape(tuple(shape))
    return x.to(device=like.device, dtype=like.dtype)


def _computes(layer: nn.Module, mixin: type[Normalizing]) -> bool:
    """Whether a layer with a weight and an eps computes what `mixin` says, on a probe with a shifted mean."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() == 0 or any(True for _ in layer.children()):
        return False
    x = _probe_input((2, 3, *weight.shape), layer) * 3 + 1
    try:
        with torch.no_grad():
            found = type(layer).forward(layer, x)
            if mixin is RMSNormLike:
                expected = F.rms_norm(x, weight.shape, weight, _eps(layer))
            else:
                expected = F.layer_norm(x, weight.shape, weight, getattr(layer, "bias", None), _eps(layer))
        has_bias = getattr(layer, "bias", None) is not None
    except Exception:
        return False
    if mixin is RMSNormLike and has_bias:
        return False
    tolerance = 64 * torch.finfo(x.dtype).eps
    return (
        isinstance(found, Tensor) and found.shape == x.shape and torch.allclose(found, expected, tolerance, tolerance)
    )
