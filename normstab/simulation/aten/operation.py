"""One operation of torch, in functional form, at the place where it runs: what every handler takes.

A handler computes the operation in the place's arithmetic and returns what torch would return. It does not
know of in-place or out= forms, of modules, or of autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.simulation.aten.round_and_attribute import floating_tensors, narrow

__all__ = ["Handler", "Operation", "Result"]

Result = Any  # a Tensor, or a tuple of tensors and None, as the schema says


class Operation(NamedTuple):
    """`function`, torch's own, of `args` and `kwargs`, called `name`, in the arithmetic `ar`.

    `out` is where the result may be written at once, an operand; who does not, returns a tensor of its own. `roles`
    says what the operands of a product are where the machine takes them in a scaled format. `stored` is the dtype of 16
    bits in which the network has the first operand, which autograd keeps so; None where an operand is rounded on the
    way, and where the network has it in float32.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    ar: Arithmetic
    out: Tensor | None = None
    roles: tuple[str, str] | None = None
    stored: torch.dtype | None = None

    def native(self) -> Result:
        """Return what torch computes."""
        return self.function(*self.args, **self.kwargs)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument that may be given by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def call(self, suffix: str = "") -> Call:
        """Return how the next result is rounded, counted and keyed, at the operation's name and `suffix`."""
        return self.ar.call(self.name + suffix)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the result: float64 where a floating operand is (0-d ones if all are), else float32."""
        found = list(floating_tensors((*self.args, *self.kwargs.values())))
        deciding = [x for x in found if x.dim()] or found
        return torch.float64 if any(x.dtype == torch.float64 for x in deciding) else torch.float32

    def narrowed(self, value: Tensor) -> Tensor:
        """Return a rounded result in the dtype of the operation."""
        return narrow(value, self.dtype, self.ar.format)


# What computes one operation in the place's arithmetic.
Handler = Callable[[Operation], Result]
