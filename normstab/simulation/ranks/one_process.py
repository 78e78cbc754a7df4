"""Tensors of several processes joined in one: the readable oracle of what the processes do together.

It knows neither chunks that travel nor who owns them: it holds every rank's tensor and adds whole vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normstab.numerics.arithmetic import Arithmetic

__all__ = ["all_reduce_in_one_process"]


def all_reduce_in_one_process(
    tensors: Sequence[Tensor],
    kept: Arithmetic,
    *,
    wire: Arithmetic | None = None,
    order: str = "ring",
    operation: str = "all_reduce",
    divisor: float | None = None,
) -> Tensor:
    """Return the mean of the ranks' `tensors` (one shape), as every rank of a simulation gets it.

    `kept` rounds the result, at the site `operation`. With `wire`, an Arithmetic in the collective's format, every
    rank's tensor is cast (`all_reduce.load`) and divided by the number of ranks (`all_reduce.div`), and the sums are
    formed (`all_reduce.sum`) in the `order` "ring" or "tree"; without, in float64 in the order of ranks and rounded
    once. Gradients are divided by the number of ranks, the partial sums of a norm by the `divisor` 1, that is not.
    """
    divisor = len(tensors) if divisor is None else divisor
    if wire is None:
        return kept.apply(lambda *x: sum(x) / divisor, *tensors, operation=operation)  # type: ignore[arg-type]
    x_RN = torch.stack([tensor.reshape(-1) for tensor in tensors])
    x_RN = wire.cast(x_RN, f"{operation}.load")
    if divisor != 1:
        x_RN = wire.div(x_RN, divisor, operation=f"{operation}.div")
    total_N = (_ring if order == "ring" else _tree)(x_RN, wire, f"{operation}.sum")
    return kept.cast(total_N, operation).view(tensors[0].shape)


def _ring(x_RN: Tensor, wire: Arithmetic, operation: str) -> Tensor:
    """Return the sum over ranks, of every element from the rank after its owner round to its owner."""
    ranks, n = x_RN.shape
    index_N = torch.arange(n)
    owner_N = index_N // max(1, -(-n // ranks))
    total_N = x_RN[(owner_N + 1) % ranks, index_N]
    for j in range(2, ranks + 1):
        total_N = wire.add(total_N, x_RN[(owner_N + j) % ranks, index_N], operation=operation)
    return total_N


def _tree(x_RN: Tensor, wire: Arithmetic, operation: str) -> Tensor:
    """Return the sum over ranks, neighbours in pairs, then pairs of pairs; one without a partner waits."""
    rows: list[Tensor] = list(x_RN)
    while len(rows) > 1:
        sums = [wire.add(rows[i], rows[i + 1], operation=operation) for i in range(0, len(rows) - 1, 2)]
        rows = sums + rows[len(rows) // 2 * 2 :]
    return rows[0]
