"""Resizing of images by exact integer arithmetic: the same pixels on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from normstab.experiment.data.image_sources import Pixels

__all__ = ["resize"]

CHUNK = 4096


def resize(images: Pixels, side: int) -> Pixels:
    """Return images N C H W at `side` x `side`: means over the area of each new pixel, halves up.

    Every product and sum is an integer below 2^53, so the result does not depend on the matmul's order.
    """
    down, across = (_overlaps(length, side) for length in images.shape[-2:])
    area = images.shape[-2] * images.shape[-1]
    if images.shape[-2:] == (side, side):
        return images
    resized = np.empty((*images.shape[:2], side, side), np.uint8)
    for start in range(0, len(images), CHUNK):
        sums = down @ images[start : start + CHUNK].astype(np.float64) @ across.T
        resized[start : start + CHUNK] = (sums + area / 2) // area
    return resized


def _overlaps(length: int, side: int) -> NDArray[np.float64]:
    """Return the matrix side x length of the overlap of new pixel i with old pixel j, in 1/side of an old pixel.

    New pixel i covers [i length, (i + 1) length), old pixel j covers [j side, (j + 1) side); rows sum to length.
    """
    new, old = np.arange(side)[:, None], np.arange(length)[None, :]
    ends = np.minimum((new + 1) * length, (old + 1) * side) - np.maximum(new * length, old * side)
    return np.asarray(np.maximum(ends, 0), np.float64)
