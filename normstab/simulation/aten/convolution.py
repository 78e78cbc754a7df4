"""Convolutions, transposed ones and gradients: torch's kernel and one rounding, or an emulated accumulator.

The emulated forms are products of matrices whose rows are patches (im2col). Letters: N batch, G groups, C and
O channels in and out of one group, L output positions, K = C x kernel positions, the order of the sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from normstab.simulation.aten.operation import Handler, Operation, Result
from normstab.simulation.aten.products import is_emulated, scaled_product
from normstab.simulation.aten.round_and_attribute import settle
from normstab.simulation.aten.scaled_operands import Roles

__all__ = ["CONVOLUTIONS"]

Multiply = Callable[[Tensor, Tensor], Tensor]


def convolution(op: Operation) -> Result:
    """Arguments: input, weight, bias, stride, padding, dilation, transposed, output_padding, groups."""
    if op.roles is None and not is_emulated(op):
        return settle(op.native(), op.call(), op.args)
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = op.args[:9]
    geometry = Geometry.of(weight, stride, padding, dilation, groups)
    multiply = _multiply(op, op.name, op.roles)
    if transposed:
        size = _transposed_size(x, geometry, output_padding)
        result = spread(x, weight, geometry, size, multiply)
    else:
        result = gather(x, weight, geometry, multiply)
    if bias is None:
        return result
    return op.ar.add(result, bias.reshape(1, -1, *[1] * geometry.rank), operation=f"{op.name}.bias")


def convolution_backward(op: Operation) -> Result:
    """Return the gradients of input, weight and bias, each at its own site `convolution_backward.NAME`."""
    needs = op.args[10]
    if op.roles is None and not is_emulated(op):
        names = (".input", ".weight", ".bias")
        results = op.native()
        return tuple(
            settle(result, op.call(name), op.args[:3]) if needed else result
            for result, name, needed in zip(results, names, needs, strict=True)
        )
    grad, x, weight, _, stride, padding, dilation, transposed, _, groups = op.args[:10]
    geometry = Geometry.of(weight, stride, padding, dilation, groups)
    by = f"{op.name}.bias"
    into = _multiply(op, f"{op.name}.input", ("grad", "weight"))
    onto = _multiply(op, f"{op.name}.weight", ("grad", "input") if not transposed else ("input", "grad"))
    d_x = d_weight = d_bias = None
    if needs[0] and transposed:
        d_x = gather(grad, weight, geometry, into)
    elif needs[0]:
        d_x = spread(grad, weight, geometry, tuple(x.shape[2:]), into)
    if needs[1]:
        source, target = (grad, x) if transposed else (x, grad)
        d_weight = of_weight(source, target, weight, geometry, onto)
    if needs[2]:
        d_bias = op.ar.cast(op.ar.sum(grad, (0, *range(2, grad.dim())), operation=f"{by}.sum"), by)
    return d_x, d_weight, d_bias


def _multiply(op: Operation, name: str, roles: Roles | None) -> Multiply:
    """Return the product of two batches of matrices at the site `name`, as the machine computes it."""
    if op.roles is None or roles is None:
        return lambda a, b: op.ar.matmul(a, b, operation=name)
    return lambda a, b: scaled_product(op, a, b, roles, name)


class Geometry(NamedTuple):
    """Kernel sizes, strides, paddings and dilations per spatial axis, and the number of groups."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @staticmethod
    def of(
        weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
    ) -> Geometry:
        """Return the geometry of a convolution, one value for every axis where only one is given."""
        kernel = tuple(weight.shape[2:])
        return Geometry(kernel, _each(stride, kernel), _each(padding, kernel), _each(dilation, kernel), groups)

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel)

    def reach(self, axis: int) -> int:
        """Return how far a kernel reaches beyond its first position."""
        return self.dilation[axis] * (self.kernel[axis] - 1)


def _each(values: Sequence[int], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Return one value per spatial axis, where one may be given for all."""
    return tuple(values) * len(kernel) if len(values) == 1 else tuple(values)


def gather(x: Tensor, weight: Tensor, geometry: Geometry, multiply: Multiply) -> Tensor:
    """Return the convolution of `x`: sums over K = C x kernel positions, row-major."""
    padded = _padded(x, [(p, p) for p in geometry.padding])
    patches_NGLK, size = _patches(padded, geometry, geometry.stride, geometry.dilation)
    weight_GKO = weight.reshape(geometry.groups, -1, math.prod(weight.shape[1:])).mT
    result_NGLO = multiply(patches_NGLK, weight_GKO)
    return result_NGLO.mT.reshape(len(x), len(weight), *size)


def spread(grad: Tensor, weight: Tensor, geometry: Geometry, size: tuple[int, ...], multiply: Multiply) -> Tensor:
    """Return the transposed convolution of `grad`, of spatial shape `size`: sums over O x kernel positions.

    It is the convolution, with flipped kernels, of `grad` with zeros between its elements and around them.
    """
    between = grad.new_zeros(
        *grad.shape[:2], *[(n - 1) * s + 1 for n, s in zip(grad.shape[2:], geometry.stride, strict=True)]
    )
    between[(slice(None), slice(None), *[slice(None, None, s) for s in geometry.stride])] = grad
    around = []
    for axis in range(geometry.rank):
        before = geometry.reach(axis) - geometry.padding[axis]
        around.append((before, size[axis] + geometry.reach(axis) - before - between.shape[2 + axis]))
    padded = _padded(between, around)
    ones = (1,) * geometry.rank
    patches_NGLK, _ = _patches(padded, geometry, ones, geometry.dilation)
    groups, out_channels = geometry.groups, len(weight)
    flipped = weight.flip(tuple(range(2, weight.dim()))).reshape(
        groups, out_channels // groups, weight.shape[1], *geometry.kernel
    )
    weight_GKC = flipped.transpose(1, 2).reshape(groups, weight.shape[1], -1).mT
    result_NGLC = multiply(patches_NGLK, weight_GKC)
    return result_NGLC.mT.reshape(len(grad), groups * weight.shape[1], *size)


def of_weight(x: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry, multiply: Multiply) -> Tensor:
    """Return the gradient of the weight: sums over N x L, row-major."""
    padded = _padded(x, [(p, p) for p in geometry.padding])
    patches_NGLK, _ = _patches(padded, geometry, geometry.stride, geometry.dilation, tuple(grad.shape[2:]))
    n, groups = len(x), geometry.groups
    outputs, places, kernel = grad.shape[1] // groups, patches_NGLK.shape[2], patches_NGLK.shape[3]
    grad_NGOL = grad.reshape(n, groups, outputs, places)
    grad_GOS = grad_NGOL.permute(1, 2, 0, 3).reshape(groups, outputs, n * places)
    patches_GSK = patches_NGLK.transpose(0, 1).reshape(groups, n * places, kernel)
    return multiply(grad_GOS, patches_GSK).reshape(weight.shape)


def _padded(x: Tensor, around: Sequence[tuple[int, int]]) -> Tensor:
    """Return `x` with zeros around it; a negative number crops."""
    flat = [value for pair in reversed(around) for value in pair]
    return functional.pad(x, flat) if any(flat) else x


def _patches(
    padded: Tensor,
    geometry: Geometry,
    stride: Sequence[int],
    dilation: Sequence[int],
    size: tuple[int, ...] | None = None,
) -> tuple[Tensor, tuple[int, ...]]:
    """Return the patches as rows, shape (N, G, L, K), and the spatial shape of their positions."""
    n, channels, *space = padded.shape
    padded = padded.contiguous()
    if size is None:
        size = tuple((space[i] - geometry.reach(i) - 1) // stride[i] + 1 for i in range(geometry.rank))
    steps = padded.stride()
    windows = padded.as_strided(
        (n, channels, *size, *geometry.kernel),
        (
            *steps[:2],
            *(s * step for s, step in zip(stride, steps[2:], strict=True)),
            *(d * step for d, step in zip(dilation, steps[2:], strict=True)),
        ),
    )
    group, places, kernel = channels // geometry.groups, math.prod(size), math.prod(geometry.kernel)
    grouped = windows.reshape(n, geometry.groups, group, places, kernel)
    return grouped.transpose(2, 3).reshape(n, geometry.groups, places, group * kernel), size


def _transposed_size(x: Tensor, geometry: Geometry, output_padding: Sequence[int]) -> tuple[int, ...]:
    """Return the spatial shape of a transposed convolution's result."""
    extra = tuple(output_padding) * geometry.rank if len(output_padding) == 1 else tuple(output_padding)
    return tuple(
        (x.shape[2 + i] - 1) * geometry.stride[i] - 2 * geometry.padding[i] + geometry.reach(i) + extra[i] + 1
        for i in range(geometry.rank)
    )


# Name of torch's operation -> its handler.
CONVOLUTIONS: dict[str, Handler] = {
    "convolution": convolution,
    "_convolution": convolution,
    "convolution_backward": convolution_backward,
}
