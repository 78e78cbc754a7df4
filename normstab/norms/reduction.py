"""Which values share a mean and a scale: the only difference between batch, layer, group and instance norm.

Letters: N batch, C channels, G groups of channels, S everything after the channels, M independent rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from torch import Tensor

from normstab.errors import NormstabError
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.formats import FORMATS
from normstab.numerics.sums.means import Shared, mean_over

__all__ = ["Ratio", "Reduction"]


@dataclass(frozen=True)
class Ratio:
    """The function v -> (v n) / m, formed in float64 and rounded once: kernels know it by its two numbers."""

    n: int
    m: int

    def __call__(self, v: Tensor) -> Tensor:
        """Return the ratio of every number."""
        return (v * self.n) / self.m


@dataclass(frozen=True)
class Reduction:
    """How a tensor is viewed, which axes of the view are reduced, and the shape of gamma and beta there.

    The view keeps the logical row-major order, so that an element's index is that in the whole tensor. With `shared`
    the values of other processes share the means too (SyncBatchNorm): `n` is then the number of all.
    """

    view: tuple[int, ...]
    axes: tuple[int, ...]
    parameters: tuple[int, ...]
    shared: Shared | None = None

    @staticmethod
    def of_batch(shape: Sequence[int]) -> Reduction:
        """Return the reduction of batch norm: one mean per channel, over (N, C, *)."""
        n, c = _batch_and_channels(shape, "batch norm")
        return Reduction((n, c, math.prod(shape[2:])), (0, 2), (1, c, 1))

    @staticmethod
    def of_instance(shape: Sequence[int]) -> Reduction:
        """Return the reduction of instance norm: one mean per sample and channel, over (N, C, *)."""
        n, c = _batch_and_channels(shape, "instance norm")
        return Reduction((n, c, math.prod(shape[2:])), (2,), (1, c, 1))

    @staticmethod
    def of_group(shape: Sequence[int], groups: int) -> Reduction:
        """Return the reduction of group norm: one mean per sample and group of channels, over (N, C, *)."""
        n, c = _batch_and_channels(shape, "group norm")
        if groups < 1 or c % groups:
            raise NormstabError(f"group norm: {c} channels cannot be divided into {groups} groups")
        return Reduction((n, groups, c // groups, math.prod(shape[2:])), (2, 3), (1, groups, c // groups, 1))

    @staticmethod
    def of_layer(shape: Sequence[int], normalized: Sequence[int]) -> Reduction:
        """Return the reduction of layer norm and RMS norm: one mean per row of the trailing axes `normalized`."""
        if not normalized or tuple(shape[len(shape) - len(normalized) :]) != tuple(normalized):
            raise NormstabError(f"layer norm over {tuple(normalized)}: found an input of shape {tuple(shape)}")
        values = math.prod(normalized)
        return Reduction((math.prod(shape[: len(shape) - len(normalized)]), values), (1,), (1, values))

    def over(self, shared: Shared) -> Reduction:
        """Return the same reduction of values that other processes have too."""
        return replace(self, shared=shared)

    @property
    def n(self) -> int:
        """How many values share one mean."""
        return math.prod(self.view[axis] for axis in self.axes) if self.shared is None else self.shared.n

    def mean(self, x: Tensor, ar: Arithmetic, operation: str) -> Tensor:
        """Return the means of viewed `x`, the reduced axes of size 1."""
        if self.shared is None:
            return ar.mean(x, self.axes, keepdim=True, operation=operation)
        ar = ar.for_operation(operation)
        if ar.is_native:
            return self.shared.join(x.sum(self.axes, keepdim=True), FORMATS["fp32"], operation) / self.shared.n
        return mean_over(ar, x, self.axes, keepdim=True, operation=operation, shared=self.shared)

    def alike(self, ar: Arithmetic) -> AbstractContextManager[None]:
        """Return the context in which what there is one of per mean is computed, with the same bits in each process."""
        return nullcontext() if self.shared is None else ar.clock.alike()

    @property
    def kept(self) -> tuple[int, ...]:
        """The axes that are not reduced."""
        return tuple(axis for axis in range(len(self.view)) if axis not in self.axes)

    @property
    def parameter_axes(self) -> tuple[int, ...]:
        """The axes over which the gradients of gamma and beta are summed."""
        return tuple(axis for axis, size in enumerate(self.parameters) if size == 1)

    def rows(self, x: Tensor) -> Tensor:
        """Return viewed `x` with each group of values that share a mean as a row, in logical order."""
        assert self.shared is None, "the rows lie in several processes"
        return x.permute(*self.kept, *self.axes).reshape(-1, self.n)

    def unrows(self, rows_RN: Tensor) -> Tensor:
        """Return the inverse of `rows`."""
        order = (*self.kept, *self.axes)
        shaped = rows_RN.reshape([self.view[axis] for axis in order])
        return shaped.permute([order.index(axis) for axis in range(len(order))])

    def keepdim(self, values_RK: Tensor) -> Tensor:
        """Return one value per row, shape (R, 1), in the view's shape with the reduced axes of size 1."""
        return values_RK.reshape([1 if axis in self.axes else size for axis, size in enumerate(self.view)])


def _batch_and_channels(shape: Sequence[int], what: str) -> tuple[int, int]:
    """Return N and C of a shape (N, C, *), or raise."""
    if len(shape) < 2:
        raise NormstabError(f"{what}: expected an input of shape (N, C, ...), found {tuple(shape)}")
    return shape[0], shape[1]
