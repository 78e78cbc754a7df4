"""The model under `check`: the module, its inputs and its loss, and one pass through them in some arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normstab.errors import NormstabError
from normstab.testing.check_input import InputSpec

__all__ = ["Subject", "floating_tensors", "subject_of"]

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
        module = copy.deepcopy(self.module).to(dtype)
        args, kwargs = pytree.tree_map_only(Tensor, lambda v: _copied(v, dtype), (self.args, dict(self.kwargs)))
        return Subject(module, args, kwargs, self.loss)

    def forward(self) -> tuple[Any, Tensor]:
        """Return the output and the loss."""
        output = self.module(*self.args, **self.kwargs)
        return output, self.loss(output)

    @property
    def floating_inputs(self) -> list[Tensor]:
        """The floating tensors among the inputs."""
        return floating_tensors((self.args, dict(self.kwargs)))


def _copied(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of `x`, in `dtype` if it is floating."""
    return x.detach().to(dtype if x.is_floating_point() else x.dtype, copy=True)


def subject_of(built: Any, inputs: Sequence[InputSpec], seed: int) -> Subject:
    """Return the subject that a factory built: a module, or (module, batch, loss).

    With a module alone the inputs are made from `inputs`. The default loss is `output.loss`, else the mean
    square of all floating outputs.
    """
    module, batch, loss = built if isinstance(built, tuple) and len(built) == 3 else (built, None, None)
    if not isinstance(module, nn.Module):
        raise NormstabError(
            f"the factory returned {type(module).__name__}; allowed: a module, or (module, batch, loss)"
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
    return Subject(module, args, kwargs, loss if loss is not None else mean_square_or_own_loss)


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


def floating_tensors(tree: Any) -> list[Tensor]:
    """Return the floating tensors of a nested structure, in order."""
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor) and x.is_floating_point()]
