"""The names and constants that kernels are compiled with: the fields and sites of a layer, the length of a block.

Nothing is imported here, so that an edit of a norm outdates no compiled kernel.
"""

from __future__ import annotations

__all__ = ["BACKWARD", "BLOCK", "FIELDS", "FORWARD", "KINDS", "ORDERS"]

# How many values a kernel works on at a time: the buffers of a block stay in the first-level cache.
BLOCK = 1024
# Kind of a norm -> its code in the kernels, those of native norms among them.
KINDS = {"l1": 2, "linf": 3, "topk": 4, "range": 5}
ORDERS = {"sequential": 0, "pairwise": 1, "blocked": 2, "lanes": 3}

#     batch norm of (N, C, S)    [ group 0 | group 1 | .. ][ group 0 | group 1 | .. ] ..    N runs of S, C S apart
#     layer norm of (M, K)       [ group 0                ][ group 1                ] ..    one run of K
#
# A group is what shares a mean: `runs` stretches of `length` values, `run_stride` apart, the first at
# group * group_stride. Parameter number (group % period) * step + j // repeat belongs to its value j.
FIELDS = (
    "n", "runs", "run_stride", "length", "group_stride", "period", "step", "repeat", "kind", "k", "centres",
    "reciprocal", "has_gamma", "has_beta", "width", "has_eps", "sums_parameters", "needs_input",
    "needs_gamma", "needs_beta", "order", "is_fast", "lanes_fit", "counts_inexact", "flushes",
)  # fmt: skip


def _with_sums(*names: str) -> tuple[str, ...]:
    """Return the names, each sum followed by the sites of its loads and of its cast."""
    suffixes = {True: ("", ".load", ".cast"), False: ("",)}
    return tuple(name + suffix for name in names for suffix in suffixes[name.endswith(".sum")])


# The sites of the forward and of the backward pass: their contexts' places in the kernels.
FORWARD = _with_sums(
    "input", "mean.sum", "mean.div", "centre", "max", "dispersion.sum", "dispersion.div", "constant", "eps",
    "reciprocal", "divide", "scale", "shift",
)  # fmt: skip
BACKWARD = _with_sums(
    "grad", "dbeta.sum", "dbeta", "dgamma.product", "dgamma.sum", "dgamma", "scale", "mean.sum", "mean.div", "centre",
    "product", "product.sum", "project", "project.elsewhere", "subtract", "divide", "silent.input",
    "silent.centre", "silent.divide",
)  # fmt: skip
