"""Operations that round nothing: maximum, minimum, relu, sign, with the signs of zero that numerics fixes.

Plain torch; uncounted, because nothing can be lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["maximum", "minimum", "relu", "sign"]


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """Return the greater; NaN where either is NaN; max(+0, -0) = +0."""
    # The sum of two zeros is -0 only if both are.
    return torch.where((a == 0) & (b == 0), a + b, torch.maximum(a, b))


def minimum(a: Tensor, b: Tensor) -> Tensor:
    """Return the lesser; NaN where either is NaN; min(+0, -0) = -0."""
    return torch.where((a == 0) & (b == 0), -(-a + -b), torch.minimum(a, b))


def relu(a: Tensor) -> Tensor:
    """Return a where a > 0, NaN of NaN, else +0."""
    return torch.where((a > 0) | a.isnan(), a, 0.0)


def sign(a: Tensor) -> Tensor:
    """Return -1, +0 or 1; NaN of NaN."""
    return torch.where(a.isnan(), a, (a > 0).to(a.dtype) - (a < 0).to(a.dtype))
