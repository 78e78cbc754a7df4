"""What an Arithmetic does without rounding: values are moved, compared or selected, and nothing is counted."""

from __future__ import annotations

import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.numerics.readable import exact
from normstab.numerics.readable.operations import Operand
from normstab.numerics.spelling.arguments import number, operand, tensor

__all__ = ["ExactOperations"]


class ExactOperations:
    """The operations whose results are operands, or a sign bit away from one."""

    def neg(self, a: Tensor) -> Tensor:
        """Return -a, exactly."""
        return torch.neg(tensor(a, "neg"))

    def abs(self, a: Tensor) -> Tensor:
        """Return |a|, exactly."""
        return torch.abs(tensor(a, "abs"))

    def max(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the greater, exactly; NaN where either is NaN; of +0 and -0, +0."""
        return exact.maximum(tensor(a, "max"), tensor(b, "max"))

    def min(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the lesser, exactly; NaN where either is NaN; of +0 and -0, -0."""
        return exact.minimum(tensor(a, "min"), tensor(b, "min"))

    def relu(self, a: Tensor) -> Tensor:
        """Return a where a > 0, NaN of NaN, else +0, exactly."""
        return exact.relu(tensor(a, "relu"))

    def clamp(self, a: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
        """Return a bounded by low and high, exactly; NaN stays NaN."""
        if low is None and high is None:
            raise NormstabError("clamp: a bound at least is a number, found None and None")
        bounds = [None if bound is None else number(bound, "clamp") for bound in (low, high)]
        return torch.clamp(tensor(a, "clamp"), *bounds)

    def sign(self, a: Tensor) -> Tensor:
        """Return -1, +0 or 1, exactly; NaN of NaN."""
        return exact.sign(tensor(a, "sign"))

    def where(self, condition: Tensor, a: Operand, b: Operand) -> Tensor:
        """Return a where `condition` holds, else b, exactly."""
        return torch.where(tensor(condition, "where"), operand(a, "where"), operand(b, "where"))
