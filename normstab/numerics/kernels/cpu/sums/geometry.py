"""Where the addends of a sum lie: memory offsets and row-major indices of kept and reduced positions.

    x (N, C, H, W) summed over N, H, W:   one sum for each c; n_inner = H W neighbours; one outer position for each n
    addend p of sum c lies at             kept[c] + outer[p // n_inner] + (p % n_inner) inner_memory

So a few positions, and not a table of all, say where every addend is. The same three parts, in their second columns,
say its index, by which random bits are drawn. No numba here. Offsets count elements from the tensor's first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Geometry", "geometry"]

LARGEST_CACHED = 1 << 24  # elements; positions of larger tensors are laid out again for each sum


class Geometry(NamedTuple):
    """`kept` and `outer` are int64 (positions, 2): memory offset and row-major index.

    A reduced position p is (p // n_inner, p % n_inner): an outer one and a step along the innermost reduced
    axes, which advances memory by `inner_memory` and the index by `inner_index`. `rows` is how many sums there
    are, `n` how many addends each has; `kept_at` and `outer_at` are addresses.
    """

    kept: NDArray[np.int64]
    outer: NDArray[np.int64]
    n_inner: int
    inner_memory: int
    inner_index: int
    rows: int
    n: int
    kept_at: int
    outer_at: int

    @property
    def leaves(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The row-major index of kept position c and reduced position p is the sum of these, at c and at p."""
        inner = np.arange(self.n_inner, dtype=np.int64) * self.inner_index
        return np.ascontiguousarray(self.kept[:, 1]), (self.outer[:, 1, None] + inner).reshape(-1)

    def in_chunks(self, size: int) -> Geometry | None:
        """Return each row cut into chunks of `size` consecutive positions, or None where they do not fit."""
        if self.n_inner % size:
            return None
        starts = np.arange(self.n_inner // size, dtype=np.int64)[:, None] * size
        per_position = np.array((self.inner_memory, self.inner_index), np.int64)
        rows = self.kept[:, None, None] + self.outer[:, None] + starts * per_position
        inner = (size, self.inner_memory, self.inner_index)
        return _laid_out(np.ascontiguousarray(rows.reshape(-1, 2)), np.zeros((1, 2), np.int64), *inner)


def geometry(x: Tensor, reduced: Sequence[int]) -> Geometry:
    """Return where the addends of the sums of `x` over the axes `reduced` lie."""
    build = _geometry if x.numel() <= LARGEST_CACHED else _geometry.__wrapped__
    return build(x.shape, x.stride(), tuple(reduced))


def _laid_out(
    kept: NDArray[np.int64], outer: NDArray[np.int64], n_inner: int, inner_memory: int, inner_index: int
) -> Geometry:
    """Return the Geometry of these positions."""
    rows, n = len(kept), len(outer) * n_inner
    return Geometry(kept, outer, n_inner, inner_memory, inner_index, rows, n, kept.ctypes.data, outer.ctypes.data)


@lru_cache(maxsize=256)
def _geometry(shape: tuple[int, ...], strides: tuple[int, ...], reduced: tuple[int, ...]) -> Geometry:
    """Return the geometry of a shape with these strides."""
    index_strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        index_strides[axis] = index_strides[axis + 1] * shape[axis + 1]
    axes = [(shape[axis], strides[axis], index_strides[axis]) for axis in range(len(shape))]
    kept = _offsets([axes[axis] for axis in range(len(shape)) if axis not in reduced])
    inner, rest = (1, 0, 0), [axes[axis] for axis in reduced if shape[axis] != 1]
    # From the innermost reduced axis outwards, as long as
    # one step of an axis is a whole turn of those within it.
    while rest:
        size, memory, index = rest[-1]
        if inner[0] > 1 and (memory, index) != (inner[0] * inner[1], inner[0] * inner[2]):
            break
        inner = (size * inner[0], *(inner[1:] if inner[0] > 1 else (memory, index)))
        rest.pop()
    return _laid_out(kept, _offsets(rest), *inner)


def _offsets(axes: Sequence[tuple[int, int, int]]) -> NDArray[np.int64]:
    """Return memory offset and index of every position of `axes` (size, memory stride, index stride), row-major."""
    offsets = np.zeros((1, 2), np.int64)
    for size, *steps in axes:
        step = np.arange(size, dtype=np.int64)[:, None] * np.array(steps, np.int64)
        offsets = (offsets[:, None] + step[None]).reshape(-1, 2)
    # They are cached, and handed out again.
    offsets.flags.writeable = False
    return offsets
