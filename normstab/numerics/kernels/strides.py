"""Tensors that broadcast together, as at most three axes and a stride of each operand along each.

    x (N, C, H, W)        sizes      N       C     HW
    gamma (C, 1, 1)       strides    0       1      0          of x: C HW, HW, 1

Adjacent axes are merged where every operand allows it, so that most broadcasts (per channel, per row) need no
copy; the rest are copied. Nothing here computes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from normstab.numerics.kernels.huge_pages import in_huge_pages

__all__ = ["Axes", "align", "flat", "is_dense", "is_flat", "overlaps", "result_like", "turned"]

MOST_AXES = 3


class Axes(NamedTuple):
    """The sizes of three axes, slowest first, and per operand its stride along each; the result is dense."""

    sizes: tuple[int, int, int]
    strides: list[tuple[int, int, int]]


def is_dense(x: Tensor) -> bool:
    """Whether the elements of `x` fill one stretch of memory, each once, in whatever order."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


class Turned(NamedTuple):
    """Matrices whose columns lie in memory one after the other: how many, elements of a column, and columns."""

    matrices: int
    across: int
    down: int


def turned(x: Tensor) -> Turned | None:
    """Return `x` as matrices with their columns in memory, as a transposed or a channels_last tensor is, or None.

    Its axes in the order of memory must be some outer ones as they are, and then the last ones before the others.
    """
    axes = [axis for axis in range(x.dim()) if x.shape[axis] > 1]
    order = sorted(axes, key=x.stride, reverse=True)
    if order == axes or not is_dense(x):
        return None
    first = next(i for i, axis in enumerate(order) if axis != axes[i])
    moved = axes.index(order[first])
    if order[first:] != axes[moved:] + axes[first:moved]:
        return None
    sizes = [x.shape[axis] for axis in axes]
    return Turned(math.prod(sizes[:first]), math.prod(sizes[first:moved]), math.prod(sizes[moved:]))


def is_flat(tensors: list[Tensor], out: Tensor, dtype: torch.dtype) -> bool:
    """Whether every operand and `out`, of `dtype`, are row-major, of one shape, and none overlaps `out` in part."""
    if out.dtype != dtype or not out.is_contiguous():
        return False
    shape, place, size = out.shape, out.data_ptr(), out.nbytes
    for x in tensors:
        if x.shape != shape or not x.is_contiguous() or x.is_neg():
            return False
        distance = x.data_ptr() - place
        if (distance or x.dtype != dtype) and -x.nbytes < distance < size:
            return False
    return True


def flat(tensors: list[Tensor], out: Tensor) -> Axes:
    """Return the axes of row-major operands and a result of one shape: a single axis."""
    return Axes((1, 1, out.numel()), [(0, 0, 1)] * len(tensors))


def align(tensors: list[Tensor], out: Tensor) -> Axes | None:
    """Return the axes of a dense result `out` in its storage order; None where more than three are needed."""
    views = [x.expand(out.shape) for x in tensors]
    # The slowest axis of the result first: its storage order, whatever the order of its axes.
    order = sorted(range(out.dim()), key=lambda axis: out.stride(axis), reverse=True)
    merged: list[list[int]] = []  # per axis: its size, then each operand's stride
    for axis in order:
        size = out.shape[axis]
        if size == 1:
            continue
        steps = [x.stride(axis) for x in views]
        # One step along the slower axis is a whole turn of the faster one, in every operand.
        if merged and all(slow == fast * size for slow, fast in zip(merged[-1][1:], steps, strict=True)):
            merged[-1] = [merged[-1][0] * size, *steps]
        else:
            merged.append([size, *steps])
    if len(merged) > MOST_AXES:
        return None
    padding = [[1] + [0] * len(tensors)] * (MOST_AXES - len(merged))
    slow, middle, fast = padding + merged
    strides = list(zip(slow[1:], middle[1:], fast[1:], strict=True))
    return Axes((slow[0], middle[0], fast[0]), strides)


def overlaps(x: Tensor, out: Tensor) -> bool:
    """Whether writing `out` could change elements of `x` before they are read: they share memory, unaligned."""
    if x.untyped_storage().data_ptr() != out.untyped_storage().data_ptr():
        return False
    same_place = x.data_ptr() == out.data_ptr() and x.dtype == out.dtype
    return not (same_place and x.shape == out.shape and x.stride() == out.stride())


def result_like(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Return an empty result of the broadcast shape, laid out as the first operand of that shape."""
    shape, device = tensors[0].shape, tensors[0].device
    if any(x.shape != shape for x in tensors):
        shape = torch.broadcast_shapes(*[x.shape for x in tensors])
    elif tensors[0].is_contiguous():
        return in_huge_pages(torch.empty(shape, dtype=dtype, device=device))
    for x in tensors:
        if x.shape == shape and is_dense(x):
            return in_huge_pages(torch.empty_strided(shape, x.stride(), dtype=dtype, device=device))
    return in_huge_pages(torch.empty(shape, dtype=dtype, device=device))
