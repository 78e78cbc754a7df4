"""Grouped matrix products, as mixtures of experts have them, taken apart into one product for each group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["GROUPED"]


def grouped_mm(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the products of groups, as torch's `_grouped_mm` has them; `offs` (G,) are where the groups end.

    (M, K) (G, K, N): group i of the rows of `a` times b[i]. (G, M, K) (K, N): a[i] times group i of the columns of `b`.
    (M, K) (K, N): the product over group i of the K terms, (G, M, N). (G, M, K) (G, K, N): a batch, without `offs`.
    Each is a product of its own: operands, sums and roundings are those of `mm`. Rows and columns beyond the last
    group are zeros.
    """
    assert bias is None, "torch's grouped product takes no bias yet"
    if offs is None:
        return _in_dtype(torch.bmm(a, b), out_dtype)
    ends = [int(end) for end in offs.tolist()]
    groups = list(zip([0, *ends[:-1]], ends, strict=True))
    if a.dim() == 2 and b.dim() == 2:
        return _in_dtype(torch.stack([torch.mm(a[:, start:end], b[start:end]) for start, end in groups]), out_dtype)
    if a.dim() == 2:
        parts = [torch.mm(a[start:end], b[i]) for i, (start, end) in enumerate(groups)]
        left = a.new_zeros(a.shape[0] - ends[-1], b.shape[2])
        return _in_dtype(torch.cat([*parts, left], 0), out_dtype)
    parts = [torch.mm(a[i], b[:, start:end]) for i, (start, end) in enumerate(groups)]
    return _in_dtype(torch.cat([*parts, a.new_zeros(a.shape[1], b.shape[1] - ends[-1])], 1), out_dtype)


def _in_dtype(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return the result in the dtype asked for."""
    return x if dtype is None else x.to(dtype)


GROUPED: Mapping[str, Callable[..., Any]] = {"_grouped_mm": grouped_mm}
"""Name of torch's operation -> the smaller ones that it is made of here."""
