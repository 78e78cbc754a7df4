"""A sum in a stated order as passes of one kernel over memory, and the axes that a pass walks. No Triton here.

    blocked(4) of 10:   [x0 .. x3][x4 .. x7][x8 x9]  ->  [s0 s1 s2]  ->  (s0 + s1) + s2
    pairwise of 300:    [0 .. 127][128 .. 255][256 .. 299]  ->  [t0 t1 t2]  ->  (t0 + t1) + t2

Chunks of a power of two are whole subtrees of the pairwise tree, so that cutting changes no addition; a chunk of
partial sums stands for the addend that it begins with, whose random bits its addition draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from normstab.numerics.sums.matmul import Shapes

__all__ = ["WIDEST", "Pass", "Walk", "WalkedAxes", "block_pass", "passes_of", "walk_of", "walked_factors"]

# Lanes that a program holds and joins.
WIDEST = 128


class Pass(NamedTuple):
    """Each row is cut into `chunks`, `chunk_step` apart and `span` long; in a chunk `lanes` go on by `step`.

    A position stands for the addend at `leaf_step` times it.
    """

    n: int
    chunks: int
    chunk_step: int
    span: int
    step: int
    lanes: int
    leaf_step: int = 1


def passes_of(order: str, width: int, n: int) -> list[Pass]:
    """Return the passes of a sum of `n` addends, each but the first over the results of another."""
    if order == "lanes":
        lanes = min(width, n)
        if lanes <= WIDEST:
            return [Pass(n, 1, n, n, lanes, lanes)]
        return [Pass(n, lanes, 1, n, lanes, 1), *_tree(lanes, 1)]
    if order == "pairwise":
        return _tree(n, 1)
    if order == "blocked" and width < n:
        first = block_pass(width, n)
        return [first, _chain(first.chunks, width)]
    return [_chain(n, 1)]


def block_pass(width: int, n: int) -> Pass:
    """Return the pass that sums blocks of `width` addends, one after another."""
    width = min(width, n)
    return Pass(n, -(-n // width), width, width, 1, 1)


def _chain(n: int, leaf_step: int) -> Pass:
    """Return the pass that adds all of a row one after another."""
    return Pass(n, 1, n, n, 1, 1, leaf_step)


def _tree(n: int, leaf_step: int) -> list[Pass]:
    """Return the passes of a pairwise tree."""
    passes: list[Pass] = []
    while n > 1 or not passes:
        chunk = min(WIDEST, 1 << (n - 1).bit_length())
        passes.append(Pass(n, -(-n // chunk), chunk, chunk, chunk, chunk, leaf_step))
        n, leaf_step = passes[-1].chunks, leaf_step * chunk
    return passes


class WalkedAxes(NamedTuple):
    """Axes that one position walks, fastest first; the size of the slowest is left out."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]


class Walk(NamedTuple):
    """Where kept and reduced positions lie in memory, and their row-major index in the whole tensor."""

    rows: int
    n: int
    kept: WalkedAxes
    reduced: WalkedAxes
    kept_index: WalkedAxes
    reduced_index: WalkedAxes


@lru_cache(maxsize=1024)
def walk_of(shape: tuple[int, ...], strides: tuple[int, ...], reduced: Sequence[int]) -> Walk:
    """Return the walk over a tensor of this shape and these strides that sums the axes `reduced`."""
    index, at = [1] * len(shape), 1
    for axis in reversed(range(len(shape))):
        index[axis], at = at, at * shape[axis]
    outer = [axis for axis in range(len(shape)) if axis not in reduced]
    sizes = [1, 1]
    for i, axes in enumerate((outer, reduced)):
        for axis in axes:
            sizes[i] *= shape[axis]
    walks = [_merged(shape, steps, axes) for steps in (strides, index) for axes in (outer, reduced)]
    return Walk(sizes[0], sizes[1], *walks)


def walked_factors(a: Tensor, b: Tensor, shapes: Shapes) -> tuple[list[Tensor], list[Walk]] | None:
    """Return both factors as the virtual tensor of products, and the walks over its last axis; None if it is empty."""
    virtual = (*shapes.batch, shapes.m, shapes.n, shapes.k)
    if 0 in virtual or a.device != b.device:
        return None
    left, right = (x.detach().resolve_neg() for x in (a, b))
    if a.dtype != b.dtype:
        left, right = left.double(), right.double()
    # An axis that one of them lacks has stride 0.
    left = (left if a.dim() > 1 else left.unsqueeze(0)).unsqueeze(-2).expand(virtual)
    right = (right.mT if b.dim() > 1 else right.unsqueeze(0)).unsqueeze(-3).expand(virtual)
    return [left, right], [walk_of(virtual, x.stride(), (len(virtual) - 1,)) for x in (left, right)]


def _merged(shape: Sequence[int], strides: Sequence[int], axes: Sequence[int]) -> WalkedAxes:
    """Return these axes, neighbours that are one run of memory as one."""
    found: list[tuple[int, int]] = []
    for axis in reversed(axes):
        size, stride = shape[axis], strides[axis]
        if size == 1:
            continue
        if found and stride == found[-1][0] * found[-1][1]:
            found[-1] = (found[-1][0] * size, found[-1][1])
        else:
            found.append((size, stride))
    found = found or [(1, 0)]
    return WalkedAxes(tuple(size for size, _ in found[:-1]), tuple(stride for _, stride in found))
