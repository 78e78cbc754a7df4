"""Which images, in which order, moved how: choices keyed by seed, epoch and image, the same in every numpy.

Every draw is a raw word of Philox 4x64-10 at a counter that the key fixes, so a resume needs no generator state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normstab.errors import NormstabError

__all__ = ["batches", "epoch_order", "moves", "stratified"]


def stratified(labels: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Return the numbers of `n` images, the first of each class in turn, in ascending order."""
    if n > len(labels):
        raise NormstabError(f"{n} images were asked for, the set has {len(labels)}")
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    turns = np.lexsort((labels, rank))
    return np.sort(turns[:n]).astype(np.int64)


def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return the order in which the `n` training images are shown in this epoch."""
    return np.argsort(_words(seed, "order", epoch, n), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Moves:
    """The augmentation of each image of an epoch: rows and columns of the crop's corner, and whether it is flipped."""

    down: NDArray[np.int64]
    right: NDArray[np.int64]
    is_flipped: NDArray[np.bool_]


def moves(seed: int, epoch: int, n: int, *, pad: int) -> Moves:
    """Return uniform corners in 0 .. 2 pad and fair flips for `n` images."""
    words = _words(seed, "augment", epoch, n)
    low, middle, top = words & np.uint64(0xFFFFFF), words >> np.uint64(24) & np.uint64(0xFFFFFF), words >> np.uint64(63)
    corners = np.uint64(2 * pad + 1)
    # The high part of a product with 24 uniform bits: uniform over the corners up to 2^-24.
    down, right = ((part * corners >> np.uint64(24)).astype(np.int64) for part in (low, middle))
    return Moves(down, right, top.astype(bool))


def _words(seed: int, purpose: str, epoch: int, n: int) -> NDArray[np.uint64]:
    """Return `n` words of the stream that (seed, purpose, epoch) names."""
    name = hashlib.blake2b(f"{purpose}:{epoch}".encode(), key=seed.to_bytes(8, "little"), digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(name, "little"))
    return np.asarray(bits.random_raw(n), np.uint64)


def batches(images: int, size: int) -> list[tuple[int, int]]:
    """Return the bounds of an epoch's batches; a last batch of one image, on which no norm is defined, is left out."""
    bounds = [(start, min(start + size, images)) for start in range(0, images, size)]
    return bounds[:-1] if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] == 1 else bounds
