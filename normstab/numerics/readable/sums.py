"""What adds numbers up, as one value: an Arithmetic holds it, so that what records an Arithmetic can stand in for it.

What a sum is, is said in `accumulate`; what a mean makes of it, in `means`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normstab.numerics.accumulate import (
    Terms,
    accumulate,
    add_terms,
    block_sums,
    negated,
    round_loads,
    round_terms,
    terms_of,
)
from normstab.numerics.call import Call
from normstab.numerics.readable.operations import carry
from normstab.numerics.sums.kernels_of_sums import kernels_for

__all__ = ["SUMS", "Sums", "welford_sums"]


class Sums(NamedTuple):
    """A sum over axes, the sums of consecutive blocks, and Welford's mean with its sum of squared deviations."""

    accumulate: Callable[..., Tensor]
    block_sums: Callable[..., Tensor]
    welford: Callable[..., tuple[Tensor, Tensor]]


def welford_sums(x: Tensor, reduced: Sequence[int], calls: dict[str, Call]) -> tuple[Tensor, Tensor]:
    """Return Welford's mean and M2, each (K,), rounded at the sites that `means.welford` names."""
    kernels = kernels_for(x, calls["sum"], "welford") if x.numel() else None
    found = None if kernels is None else kernels.welford(x, reduced, calls)
    return _welford_reference(x, reduced, calls) if found is None else found


def _welford_reference(x: Tensor, reduced: Sequence[int], calls: dict[str, Call]) -> tuple[Tensor, Tensor]:
    """Return the mean and M2 in float64, element by element."""
    terms = round_loads(terms_of(x, reduced), calls["load"])
    mean = terms.at(slice(0, 1))._replace(value=torch.zeros_like(terms.value[:, :1]))
    m2 = mean
    for i in range(terms.m):
        x_i = terms.at(slice(i, i + 1))
        old = Terms(mean.value, x_i.leaf)
        delta = add_terms(x_i, negated(old), calls["delta"])
        step = Terms(round_terms(carry("div", (delta.value, float(i + 1))), x_i.leaf, calls["div"]), x_i.leaf)
        mean = add_terms(old, step, calls["sum"])
        if "m2" not in calls:
            continue
        after = add_terms(x_i, negated(mean), calls["delta_after"])
        product = round_terms(carry("mul", (delta.value, after.value)), x_i.leaf, calls["mul"])
        m2 = add_terms(m2, Terms(product, x_i.leaf), calls["m2"])
    return mean.value[:, 0], m2.value[:, 0]


# How every Arithmetic adds, but one that records.
SUMS = Sums(accumulate, block_sums, welford_sums)
