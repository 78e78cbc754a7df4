"""What a norm returns through autograd: a tensor that the next layer may write to."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["own"]


def own(output: Tensor, saved: tuple[Tensor | None, ...]) -> Tensor:
    """Return `output` as a tensor that the next layer may write to: no view, and no memory of what is saved."""
    if any(isinstance(kept, Tensor) and kept.data_ptr() == output.data_ptr() for kept in saved):
        return output.clone()
    unviewed: Tensor = torch.ops.aten._unsafe_view(output, output.shape)
    return unviewed
