"""Means in the Precision's form: of one sum, of blocks of blocks, or Welford's running mean.

Written against an Arithmetic, so that every division is rounded, counted and keyed like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from normstab.numerics.accumulate import sum_calls
from normstab.numerics.dispatch import carried
from normstab.numerics.execute import carrier_dtype
from normstab.numerics.formats import FORMATS, AnyFormat
from normstab.numerics.precision import Accumulation
from normstab.numerics.readable.reference import encode
from normstab.numerics.sums.reduced_axes import canonical_dims, kept_shape

if TYPE_CHECKING:
    from normstab.numerics.arithmetic import Arithmetic

__all__ = ["Shared", "mean_over", "welford"]

# Shapes: K kept positions (row-major), n reduced ones (row-major), m values of a level.


class Shared(NamedTuple):
    """The processes whose values share a mean with those here: `n`, how many values they all have, and their sum.

    `join(partial, format, operation)` returns the sum over processes of what each of them has, in a format. What is
    computed of such a sum is computed alike in each: under stochastic rounding with the same bits.
    """

    n: int
    join: Callable[[Tensor, AnyFormat, str], Tensor]


def mean_over(
    ar: Arithmetic,
    x: Tensor,
    dims: int | Sequence[int] | None,
    *,
    keepdim: bool = False,
    operation: str = "mean",
    shared: Shared | None = None,
) -> Tensor:
    """Return the mean of `x` over `dims` (None: all) as `ar.precision.mean` says; of nothing, NaN (0 / 0).

    Of values that are `shared`, the mean of all: the joined sums divided by their number. Where a mean is not one of a
    sum (blockwise, Welford), each process has v n_here / n of its own mean v, and these are joined.
    """
    reduced = canonical_dims(dims, x.dim())
    n = math.prod(x.shape[axis] for axis in reduced)
    if ar.precision.mean == "sum" or (n == 0 and shared is None):
        value = _of_sum(ar, x, reduced, n, operation, shared)
    elif n == 0:  # what nothing adds to the mean of all
        k = math.prod(x.shape[axis] for axis in range(x.dim()) if axis not in reduced)
        value = x.new_zeros(k, dtype=carrier_dtype((x,), ar.format))
    elif ar.precision.mean == "welford":
        value = welford(ar, x, reduced, operation=operation, with_m2=False)[0]
    else:
        value = _blockwise(ar, x, reduced, n, operation)
    if shared is not None and ar.precision.mean != "sum":
        part = ar.apply(lambda v: v * n / shared.n, value, operation=f"{operation}.part")
        value = shared.join(_narrowed(part, x, ar.format), ar.format, operation)
    return value.view(kept_shape(x, reduced, keepdim=keepdim))


def _of_sum(
    ar: Arithmetic, x: Tensor, reduced: tuple[int, ...], n: int, operation: str, shared: Shared | None
) -> Tensor:
    """Return div(sum, n): the sum as accumulated, cast first only if the role `sum` has a format.

    An exact sum without that role is rounded to float64, so that the quotient alone is rounded to results. A shared
    sum is joined in the format of the sums that it is made of.
    """
    role = ar.precision.sum
    unrounded = role if role is not None else FORMATS["fp64"]
    site = f"{operation}.sum"
    of_sum = ar.for_operation(site)
    total = ar.sums.accumulate(
        x,
        reduced,
        accumulation=of_sum.precision.accumulation,
        calls=of_sum.calls(site),
        format=unrounded,
    )
    together: AbstractContextManager[None] = nullcontext()
    if shared is not None:
        kept = of_sum.precision.accumulation.format
        total, n = shared.join(total, unrounded if kept is None else kept, operation), shared.n
        together = ar.clock.alike()
    with together:
        if role is not None and ar.precision.accumulation.kind != "exact":
            total = ar.in_format("sum").cast(total, f"{site}.cast")
        return _narrowed(ar.div(total, float(n), operation=f"{operation}.div"), x, ar.format)


def _narrowed(value: Tensor, x: Tensor, format: AnyFormat) -> Tensor:
    """Return `value`, rounded to `format` in a wider carrier, in the carrier of `x`."""
    dtype = carrier_dtype((x,), format)
    return value if value.dtype == dtype else encode(value, dtype).view(value.shape)


def _blockwise(ar: Arithmetic, x: Tensor, reduced: tuple[int, ...], n: int, operation: str) -> Tensor:
    """Return the mean of block means of block means ..., corrected for shorter last blocks by (v D) / n.

    A block's sum is divided by b, a shorter last block's too; D is the product of all b. Level 2
    and on have sites of their own (`mean.level2.sum`), because their random bits are counted from 0.
    """
    values, dims, m, blocks_product, level = x, reduced, n, 1, 1
    while m > 1:
        width = min(ar.precision.mean_block, m)
        where = operation if level == 1 else f"{operation}.level{level}"
        sums = _sums_of_blocks(ar, values, dims, width, f"{where}.sum")
        values = _narrowed(ar.div(sums, float(width), operation=f"{where}.div"), x, ar.format)
        dims, m, blocks_product, level = (1,), sums.shape[1], blocks_product * width, level + 1
    value = values.reshape(-1)
    if blocks_product == n:
        return value
    corrected = ar.apply(lambda v: v * blocks_product / n, value, operation=f"{operation}.rescale")
    return _narrowed(corrected, x, ar.format)


def _sums_of_blocks(ar: Arithmetic, x: Tensor, dims: tuple[int, ...], width: int, site: str) -> Tensor:
    """Return the sums (K, blocks) of consecutive blocks, sequential in the accumulator format."""
    kind = ar.precision.accumulation
    if kind.kind == "rounded":
        return ar.sums.block_sums(x, dims, width, sum_calls(kind, ar.calls(site)))
    rows = x.permute([axis for axis in range(x.dim()) if axis not in dims] + list(dims)).reshape(-1, _size(x, dims))
    full = rows.shape[1] // width * width
    parts = [rows[:, :full].unflatten(1, (-1, width)), rows[:, full:].unsqueeze(1)]
    calls, fp64 = ar.calls(site), FORMATS["fp64"]
    sums = [ar.sums.accumulate(part, 2, accumulation=kind, calls=calls, format=fp64) for part in parts if part.numel()]
    return torch.cat(sums, 1)


def _size(x: Tensor, dims: Sequence[int]) -> int:
    """Return how many elements the axes `dims` hold."""
    return math.prod(x.shape[axis] for axis in dims)


def welford(
    ar: Arithmetic, x: Tensor, dims: Sequence[int], *, operation: str = "mean", with_m2: bool = True
) -> tuple[Tensor, Tensor]:
    """Return Welford's mean and M2, the sum of squared deviations, each (K,), K the kept positions.

    d = x_i - m_old; m = m_old + d / i; M2 = M2 + d (x_i - m), every result rounded in the accumulator
    format (sites `.delta .div .sum`, `.delta_after .mul .m2`). The mean is cast once at the end (`.cast`); M2
    stays in the accumulator format, for M2 / n to be the one result that is cast. Without `with_m2` it is zeros,
    and nothing of it is computed. Native accumulation has the format fp32 here, and exact fp64. Source: Welford 1962.
    """
    x = carried(x)
    reduced = canonical_dims(tuple(dims), x.dim())
    format = _accumulator(ar.precision.accumulation)
    sites = MEAN_SITES + M2_SITES if with_m2 else MEAN_SITES
    calls = {name: ar.call(f"{operation}.{name}", format) for name in sites}
    mean, m2 = ar.sums.welford(x, reduced, calls)
    mean, m2 = (
        encode(value, carrier_dtype((x,), format)) if value.dtype == torch.float64 else value for value in (mean, m2)
    )
    return _narrowed(ar.cast(mean, f"{operation}.cast"), x, ar.format), m2


# What Welford's mean rounds, and what M2 rounds besides.
MEAN_SITES = ("load", "delta", "div", "sum")
M2_SITES = ("delta_after", "mul", "m2")


def _accumulator(kind: Accumulation) -> AnyFormat:
    """Return the format of an accumulation, also where its sums have none."""
    if kind.format is not None:
        return kind.format
    return FORMATS["fp64" if kind.kind == "exact" else "fp32"]
