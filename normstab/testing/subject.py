"""The model under `check`: the module, its inputs and its loss, and one pass through them in some arithmetic."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normstab.errors import NormstabError, lookup
from normstab.simulation.aten.parts.complex_parts import as_real
from normstab.testing.check_input import InputSpec
from normstab.torch_private import tree_leaves, tree_map_only

__all__ = ["LOSSES", "Subject", "copied", "copied_module", "floating_tensors", "subject_of"]

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Subject:
    """A module with a batch and a loss. `loss` takes the output, and the batch where it accepts two arguments."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    loss: Callable[[Any], Tensor]

    def copied(self, dtype: torch.dtype) -> Subject:
        """Return a copy in `dtype`, which shares nothing with this one."""
        args, kwargs = copied((self.args, dict(self.kwargs)), dtype)
        return Subject(copied_module(self.module, dtype), args, kwargs, self.loss)

    def forward(self) -> tuple[Any, Tensor]:
        """Return the output and the loss."""
        output = self.module(*self.args, **self.kwargs)
        return output, self.loss(output)


def copied_module(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy in `dtype`, whose complex parameters and buffers stay complex: `.to` would drop half of each."""
    made = copy.deepcopy(module)
    if not any(x.is_complex() for x in (*made.parameters(), *made.buffers())):
        return made.to(dtype)
    for x in (*made.parameters(), *made.buffers()):
        x.data = _copied(x.data, dtype)
    return made


def copied(tree: Any, dtype: torch.dtype) -> Any:
    """Return a nested structure with copies of its tensors, in `dtype`, or with parts of it, where they have such."""
    return tree_map_only(Tensor, lambda x: _copied(x, dtype), tree)


def _copied(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of `x`, in `dtype` if it is floating, with parts of `dtype` if it is complex."""
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    wanted = dtype if x.is_floating_point() else complex_dtype if x.is_complex() else x.dtype
    return x.detach().to(wanted, copy=True)


def subject_of(built: Any, inputs: Sequence[InputSpec], seed: int, loss_name: str = "default") -> Subject:
    """Return the subject that a factory built: a module, or (module, batch, loss).

    With a module alone the inputs are made from `inputs`. `loss_name`, a row of LOSSES, stands where the factory
    gave no loss; the default one is `output.loss`, else the mean square of all floating outputs.
    """
    module, batch, loss = built if isinstance(built, tuple) and len(built) == 3 else (built, None, None)
    if not isinstance(module, nn.Module):
        raise NormstabError(
            f"the factory returned {_shown(built)}; allowed: a module, or (module, batch, loss), the loss may be None"
        )
    if batch is None and not inputs:
        raise NormstabError("no input: give --input SHAPE, such as --input 8x3x32x32, or return (module, batch, loss)")
    if inputs:
        generator = torch.Generator().manual_seed(seed)
        made = [(spec.name, spec.make(generator)) for spec in inputs]
        args = tuple(x for name, x in made if name is None)
        kwargs = {name: x for name, x in made if name is not None}
    elif isinstance(batch, Mapping):
        args, kwargs = (), dict(batch)
    else:
        args, kwargs = (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), {}
    default = lookup(LOSSES, loss_name, what="loss")
    return Subject(module, args, kwargs, loss if loss is not None else default)


def _shown(built: Any) -> str:
    """Return what a factory returned, in words."""
    if isinstance(built, tuple):
        return f"({', '.join(type(part).__name__ for part in built)})"
    return type(built).__name__


def mean_square_or_own_loss(output: Any) -> Tensor:
    """Return `output.loss` where there is one, else the mean square of all floating outputs."""
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    tensors = [x for x in floating_tensors(output) if x.requires_grad] or floating_tensors(output)
    if not tensors:
        raise NormstabError("the module returned no floating-point tensor, so there is no default loss; return one")
    total = sum((x.square().mean() for x in tensors[1:]), tensors[0].square().mean())
    return total / len(tensors)


def sum_of_outputs(output: Any) -> Tensor:
    """Return the sum of all floating outputs."""
    return torch.stack([x.sum() for x in floating_tensors(output)]).sum()


def cross_entropy(output: Any) -> Tensor:
    """Return the cross entropy of the first floating output, (N, classes, ...), with the labels i modulo classes."""
    logits = next(iter(floating_tensors(output)), None)
    if logits is None or logits.dim() < 2:
        raise NormstabError("--loss cross-entropy: the model's output is no tensor of shape (N, classes, ...)")
    shape = (logits.shape[0], *logits.shape[2:])
    labels = torch.arange(math.prod(shape), device=logits.device)
    return nn.functional.cross_entropy(logits, (labels % logits.shape[1]).reshape(shape))


LOSSES: dict[str, Callable[[Any], Tensor]] = {
    "default": mean_square_or_own_loss,
    "sum": sum_of_outputs,
    "cross-entropy": cross_entropy,
}
"""The losses of `check` by name; another one comes from the factory."""


def floating_tensors(tree: Any) -> list[Tensor]:
    """Return the floating tensors of a nested structure, in order, complex ones as real ones of shape (..., 2)."""
    found = [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
    return [as_real(x) for x in found if x.is_floating_point() or x.is_complex()]
