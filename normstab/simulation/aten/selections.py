"""Operations that select a value, and whose gradient torch finds by asking which operand equals the saved result.

A result that was rounded after its selection equals none of its operands: torch divides by a count of zero, or gives
the gradient to nobody. So a selection rounds nothing, or what is compared is rounded before it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from normstab.simulation.aten.operation import Handler, Operation, Result
from normstab.simulation.aten.round_and_attribute import narrow, settle
from normstab.simulation.aten.wide import wide
from normstab.torch_private import autograd_node, saved_order

__all__ = ["COMPARED", "SELECTIONS", "equal"]

# Exact selections whose gradient compares: what it compares with must be what they read.
COMPARED = frozenset(["amax", "amin", "max", "min", "median", "nanmedian", "aminmax"])


def vector_norm(op: Operation) -> Result:
    """Return a norm: of infinite order the greatest (least) magnitude itself, else wide inside and rounded once."""
    order = op.argument(1, "p" if op.name == "norm" else "ord")
    return op.native() if _is_infinite(order) else wide(op)


def scatter(op: Operation) -> Result:
    """Return scatter_reduce or index_reduce: an extremum itself, else wide inside and rounded once."""
    return op.native() if op.argument(4, "reduce") in ("amax", "amin") else wide(op)


def distance(op: Operation) -> Result:
    """Return |a - b|_p: of infinite order the greatest (least) of the rounded differences."""
    order = op.argument(2, "p", 2)
    if not _is_infinite(order):
        return wide(op)
    differences = op.ar.sub(op.args[0], op.args[1], operation=op.name).abs()
    if differences.numel() == 0:
        return op.native()
    return op.narrowed(differences.amax() if order > 0 else differences.amin())


def cdist_backward(op: Operation) -> Result:
    """Return the gradient of cdist: of infinite order from the distances as torch's own kernel finds them again."""
    grad, x1, x2, order = op.args[:4]
    if not _is_infinite(order):
        return wide(op)
    found = torch.ops.aten._cdist_forward(x1.contiguous(), x2.contiguous(), order, None)
    return _settled(op, op.function(grad.contiguous(), x1.contiguous(), x2.contiguous(), order, found))


def pdist_backward(op: Operation) -> Result:
    """Return the gradient of pdist, likewise."""
    grad, x, order = op.args[:3]
    if not _is_infinite(order):
        return wide(op)
    found = torch.ops.aten._pdist_forward(x.contiguous(), order)
    return _settled(op, op.function(grad.contiguous(), x.contiguous(), order, found))


def equal(a: Tensor, b: Any) -> Tensor:
    """Return where a equals b; in the gradient of `dist`, where a, drawn anew, is its own extremum."""
    node: Any = autograd_node()
    if node is not None and node.name() == "DistBackward0" and _is_infinite(saved_order(node)):
        b = a.amax() if saved_order(node) > 0 else a.amin()
    return torch.eq(a, b)


def _settled(op: Operation, gradient: Tensor) -> Result:
    """Return a gradient that torch's kernel summed, rounded once."""
    call = op.call()
    return narrow(settle(gradient, call, op.args), op.dtype, call.format)


def _is_infinite(order: Any) -> bool:
    return isinstance(order, int | float) and math.isinf(order)


# Name of torch's operation -> its handler.
SELECTIONS: dict[str, Handler] = {
    "norm": vector_norm,
    "linalg_vector_norm": vector_norm,
    "scatter_reduce": scatter,
    "index_reduce": scatter,
    "dist": distance,
    "_cdist_backward": cdist_backward,
    "_pdist_backward": pdist_backward,
}
