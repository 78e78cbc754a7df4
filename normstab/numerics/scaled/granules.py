"""Granules: which elements of a tensor share one scale, as numbers of elements along each axis.

A granule is a box; a last one may be shorter. Nothing here rounds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from normstab.errors import NormstabError
from normstab.numerics.scaled.scaled_format import Scaled

__all__ = ["amax_of", "extents_of", "spread", "with_granules"]


def extents_of(shape: torch.Size, scaled: Scaled, axis: int) -> tuple[int, ...]:
    """Return how many elements a granule has along each axis of a tensor whose contracted axis is `axis`."""
    if scaled.granule in ("none", "tensor", "delayed"):
        return tuple(max(size, 1) for size in shape)
    if not -len(shape) <= axis < len(shape):
        raise NormstabError(f"{scaled}: axis {axis} of a tensor with {len(shape)} axes")
    axis %= len(shape)
    extents = [1] * len(shape)
    extents[axis] = max(shape[axis], 1) if scaled.granule == "row" else scaled.width
    if scaled.granule == "tile":
        if len(shape) < 2:
            raise NormstabError(f"{scaled}: a tile needs two axes, found shape {tuple(shape)}")
        # The axis before the contracted one; the first axis has none, and takes the one after it.
        extents[axis - 1 if axis else 1] = scaled.width
    return tuple(extents)


def with_granules(x: Tensor, extents: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """Return `x`, filled up with zeros, with each axis of longer granules in two, and the axes within granules."""
    missing = [-size % extent for size, extent in zip(x.shape, extents, strict=True)]
    if any(missing):
        x = F.pad(x, [amount for size in reversed(missing) for amount in (0, size)])
    shape, within = [], []
    for size, extent in zip(x.shape, extents, strict=True):
        shape += [size // extent, extent] if extent > 1 else [size]
        within += [len(shape) - 1] if extent > 1 else []
    return x.reshape(shape), tuple(within)


def amax_of(x: Tensor, extents: tuple[int, ...]) -> Tensor:
    """Return the largest of each granule of `x`, NaN where it has one; 0 for what is not there."""
    blocked, within = with_granules(x, extents)
    return blocked.amax(within) if within else blocked


def spread(scales: Tensor, shape: torch.Size, extents: tuple[int, ...]) -> Tensor:
    """Return one number per granule as one per element, or as what broadcasts to it."""
    for axis, (size, extent) in enumerate(zip(shape, extents, strict=True)):
        if extent > 1 and scales.shape[axis] > 1:
            scales = scales.repeat_interleave(extent, axis).narrow(axis, 0, size)
    return scales
