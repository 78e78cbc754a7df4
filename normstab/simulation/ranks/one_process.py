"""Gradients of several processes joined in one: the readable oracle of what the processes do together.

It knows neither chunks that travel nor who owns them: it holds every rank's gradient and adds whole vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normstab.numerics.arithmetic import Arithmetic

__all__ = ["all_reduce_in_one_process"]


def all_reduce_in_one_process(
    gradients: Sequence[Tensor], kept: Arithmetic, *, wire: Arithmetic | None = None, order: str = "ring"
) -> Tensor:
    """Return the mean of the ranks' `gradients` (one shape, float32), as every rank of a simulation gets it.

    `kept` rounds the result, at the site `all_reduce`. With `wire`, an Arithmetic in the collective's format, every
    rank's gradient is cast (`all_reduce.load`) and divided by the number of ranks (`all_reduce.div`), and the sums are
    formed (`all_reduce.sum`) in the `order` "ring" or "tree"; without, in float64 in the order of ranks and rounded
    once.
    """
    ranks = len(gradients)
    if wire is None:
        return kept.apply(lambda *x: sum(x) / ranks, *gradients, operation="all_reduce")  # type: ignore[arg-type]
    x_RN = torch.stack([gradient.reshape(-1) for gradient in gradients])
    x_RN = wire.cast(x_RN, "all_reduce.load")
    x_RN = wire.div(x_RN, ranks, operation="all_reduce.div")
    total_N = _ring(x_RN, wire) if order == "ring" else _tree(x_RN, wire)
    return kept.cast(total_N, "all_reduce").view(gradients[0].shape)


def _ring(x_RN: Tensor, wire: Arithmetic) -> Tensor:
    """Return the sum over ranks, of every element from the rank after its owner round to its owner."""
    ranks, n = x_RN.shape
    index_N = torch.arange(n)
    owner_N = index_N // max(1, -(-n // ranks))
    total_N = x_RN[(owner_N + 1) % ranks, index_N]
    for j in range(2, ranks + 1):
        total_N = wire.add(total_N, x_RN[(owner_N + j) % ranks, index_N], operation="all_reduce.sum")
    return total_N


def _tree(x_RN: Tensor, wire: Arithmetic) -> Tensor:
    """Return the sum over ranks, neighbours in pairs, then pairs of pairs; one without a partner waits."""
    rows: list[Tensor] = list(x_RN)
    while len(rows) > 1:
        sums = [wire.add(rows[i], rows[i + 1], operation="all_reduce.sum") for i in range(0, len(rows) - 1, 2)]
        rows = sums + rows[len(rows) // 2 * 2 :]
    return rows[0]
