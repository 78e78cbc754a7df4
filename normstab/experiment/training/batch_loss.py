"""What a network says of a batch and what that costs: one class for an image, one token at every position.

Targets that are IGNORED, where a sequence is padded, count nowhere.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from normstab.experiment.data.token_sources import IGNORED

__all__ = ["batch_loss", "judged", "outputs"]

Inputs = Tensor | tuple[Tensor, ...]


def outputs(model: nn.Module, x: Inputs) -> Tensor:
    """Return the logits of a batch: N V of images, N T V of sequences."""
    found: Tensor = model(*x) if isinstance(x, tuple) else model(x)
    return found


def batch_loss(logits: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
    """Return the mean cross entropy over the images, or over the tokens that are no padding."""
    if y.ndim > 1:
        logits, y = logits.flatten(0, 1), y.flatten()
    return F.cross_entropy(logits, y, label_smoothing=label_smoothing, ignore_index=IGNORED)


def judged(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and targets that count, in order: all of images, the tokens that are no padding."""
    if y.ndim == 1:
        return logits, y
    counts = y != IGNORED
    return logits[counts], y[counts]
