"""What an Arithmetic does without rounding: values are moved, compared or selected, and nothing is counted."""

from __future__ import annotations

import torch
from torch import Tensor

from normstab.numerics.readable import exact
from normstab.numerics.readable.operations import Operand

__all__ = ["ExactOperations"]


class ExactOperations:
    """The operations whose results are operands, or a sign bit away from one."""

    def neg(self, a: Tensor) -> Tensor:
        """Return -a, exactly."""
        return torch.neg(a)

    def abs(self, a: Tensor) -> Tensor:
        """Return |a|, exactly."""
        return torch.abs(a)

    def max(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the greater, exactly; NaN where either is NaN; of +0 and -0, +0."""
        return exact.maximum(a, b)

    def min(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the lesser, exactly; NaN where either is NaN; of +0 and -0, -0."""
        return exact.minimum(a, b)

    def relu(self, a: Tensor) -> Tensor:
        """Return a where a > 0, NaN of NaN, else +0, exactly."""
        return exact.relu(a)

    def clamp(self, a: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
        """Return a bounded by low and high, exactly; NaN stays NaN."""
        return torch.clamp(a, low, high)

    def sign(self, a: Tensor) -> Tensor:
        """Return -1, +0 or 1, exactly; NaN of NaN."""
        return exact.sign(a)

    def where(self, condition: Tensor, a: Operand, b: Operand) -> Tensor:
        """Return a where `condition` holds, else b, exactly."""
        return torch.where(condition, a, b)
