"""Powers and roots of an Arithmetic, made of its products, its square root and functions rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.numerics.readable.operations import Operand, exact_root
from normstab.numerics.spelling.arguments import check_tensors, number
from normstab.numerics.sums.kernels_of_sums import kernels_for

__all__ = ["Powers"]

MOST_PRODUCTS = 4096
"""Of a power: a thousand times what networks have, and still an answer in seconds."""


class _Arithmetic(Protocol):
    """What powers and roots are made of."""

    @property
    def is_native(self) -> bool:
        """Whether plain torch computes."""

    def mul(self, a: Operand, b: Operand, *, operation: str) -> Tensor:
        """Return a b."""

    def sqrt(self, a: Tensor, *, operation: str) -> Tensor:
        """Return the square root."""

    def apply(self, function: Callable[..., Tensor], *operands: Operand, operation: str) -> Tensor:
        """Return a function of the operands, rounded once."""


class Powers:
    """The two operations whose exponent decides how many roundings there are."""

    def power(self: _Arithmetic, a: Tensor, n: float, *, operation: str = "power") -> Tensor:
        """Return a^n: for whole n in 1 .. MOST_PRODUCTS as (a a) a ..., each rounded; else pow, rounded once."""
        if self.is_native:
            return torch.pow(a, n)
        check_tensors("power", (a,))
        n = number(n, "power: the exponent")
        if not (1 <= n <= MOST_PRODUCTS and n.is_integer()):
            return self.apply(lambda x: torch.pow(x, n), a, operation=operation)
        result = a
        for _ in range(int(n) - 1):
            result = self.mul(result, a, operation=operation)
        return result

    def root(self: _Arithmetic, a: Tensor, p: float, *, operation: str = "root") -> Tensor:
        """Return the p-th root, the real root rounded once for p in 1 .. MOST_PRODUCTS, else pow, rounded once."""
        if self.is_native:
            return torch.sqrt(a) if p == 2 else torch.pow(a.double(), 1.0 / p).to(a.dtype)  # float32's varies by CPU
        check_tensors("root", (a,))
        p = number(p, "root: the degree")
        if p == 0:
            raise NormstabError("root: the degree is 0; allowed: any other number")
        if p == 1:
            return a
        if p == 2:
            return self.sqrt(a, operation=operation)
        if p.is_integer() and 0 < p <= MOST_PRODUCTS:
            return self.apply(lambda x: root_to_odd(x, int(p)), a, operation=operation)
        return self.apply(lambda x: torch.pow(x, 1.0 / p), a, operation=operation)


def root_to_odd(x: Tensor, p: int) -> Tensor:
    """Return exact_root of float64 `x`, by the kernels of its device where there are any."""
    kernels = kernels_for(x, None, "functions")
    found: Tensor = exact_root(x, p) if kernels is None else kernels.root(x, p)
    return found
