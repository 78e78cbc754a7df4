"""Operands of products in a scaled format, as the keys `operand.input`, `operand.weight` and `operand.grad` say.

Each operand of a product is quantized along the contracted axis, from the wide tensor, at the site of its role; the
product of what came out is accumulated as always. Which role a tensor has is told by its memory: what a forward
product took in is marked, and what is not marked in a backward pass is a gradient. Embeddings are no products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.dispatch import later_for
from normstab.numerics.ledger import COUNTERS, site_of
from normstab.numerics.philox import signed_step
from normstab.numerics.precision import Precision
from normstab.numerics.scaled.quantize import Quantized, largest_magnitude, quantize_operand
from normstab.numerics.scaled.scaled_format import IntegerElement, Scaled
from normstab.numerics.tallies.repeats import ONCE, Repeats
from normstab.simulation.aten.wide import ATTENTION

__all__ = [
    "Roles",
    "is_marked_weight",
    "mark_activation",
    "mark_roles",
    "mark_weight",
    "multiply",
    "operands",
    "pass_on_roles",
    "quantizes",
]

OVERFLOW = COUNTERS.index("overflow")
Roles = tuple[str, str]  # of the left and the right operand of a product: "input", "weight" or "grad"

# Where an operation takes the two operands of its product.
PRODUCT_OPERANDS = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot", "convolution", "_convolution"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "addbmm"), (1, 2)),
    "convolution_backward": (0, 1),
}
CONVOLUTIONS = ("convolution", "_convolution")


def mark_roles(name: str, args: tuple[Any, ...], direction: str, is_weight: Callable[[Tensor], bool]) -> Roles | None:
    """Return the roles of the operands of a product, and mark those of a forward one; None for any other operation."""
    if name in ATTENTION:
        for operand in args[:3]:
            mark_activation(operand)
    where = PRODUCT_OPERANDS.get(name)
    if where is None:
        return None
    left, right = (args[i] for i in where)
    if direction == "backward":
        return _role_in_backward(left), _role_in_backward(right)
    roles = (
        "weight" if is_weight(left) else "input",
        "weight" if name in CONVOLUTIONS or is_weight(right) else "input",
    )
    for operand, role in zip((left, right), roles, strict=True):
        operand.untyped_storage()._normstab_role = role
    return roles


def mark_activation(tensor: Tensor) -> Tensor:
    """Mark an operand of later products, in a backward pass too, as an activation, and return it."""
    tensor.untyped_storage()._normstab_role = "input"  # type: ignore[attr-defined]
    return tensor


def pass_on_roles(old: Any, new: Any) -> None:
    """Mark each of the tensors `new` as the one of `old` in its place is."""
    for x, y in zip(old, new, strict=True):
        if isinstance(x, Tensor) and (role := getattr(x.untyped_storage(), "_normstab_role", None)) is not None:
            y.untyped_storage()._normstab_role = role


def mark_weight(tensor: Tensor) -> None:
    """Mark a tensor made of a parameter, such as its cast under autocast."""
    tensor.untyped_storage()._normstab_weight = True  # type: ignore[attr-defined]


def is_marked_weight(tensor: Tensor) -> bool:
    """Whether a tensor was marked as made of a parameter."""
    return hasattr(tensor.untyped_storage(), "_normstab_weight")


def _role_in_backward(operand: Tensor) -> str:
    """Return what an operand of a backward product was in the forward pass, or that it is a gradient."""
    return getattr(operand.untyped_storage(), "_normstab_role", "grad")


def quantizes(precision: Precision, direction: str) -> bool:
    """Whether products take scaled operands; those of whole numbers only forward unless the gradient has a format."""
    if direction == "backward" and precision.operand_grad is None:
        formats = (precision.operand_input, precision.operand_weight)
        return any(one is not None and not isinstance(one.element, IntegerElement) for one in formats)
    return any(one is not None for one in (precision.operand_input, precision.operand_weight, precision.operand_grad))


def multiply(a: Tensor, b: Tensor, roles: Roles, ar: Arithmetic, name: str) -> Tensor:
    """Return the product a b of scaled operands, unrounded (whole numbers: exact) or of the stated accumulator."""
    left, right = _left(a, roles[0], ar), _right(b, roles[1], ar)
    if left is not None and right is not None and takes_whole_numbers(roles, ar.precision):
        codes = left.codes.to(torch.float64) @ right.codes.mT.to(torch.float64)
        _count_beyond_int32(codes, ar, name)
        # Without a term there are no scales either, and every sum is zero.
        product = codes * left.scales.to(torch.float64) * right.scales.mT.to(torch.float64) if a.shape[-1] else codes
        return product.reshape(a.shape[:-1] + (b.shape[-1:] if b.dim() > 1 else torch.Size()))
    return _values(left, a) @ _values(right, b, is_right=True)


def operands(a: Tensor, b: Tensor, roles: Roles, ar: Arithmetic) -> tuple[Tensor, Tensor]:
    """Return the operands of the product a b as the machine takes them in; one without a format as it is."""
    return _values(_left(a, roles[0], ar), a), _values(_right(b, roles[1], ar), b, is_right=True)


def takes_whole_numbers(roles: Roles, precision: Precision) -> bool:
    """Whether both operands are whole numbers with scales that leave the sum: no blocks, no zero points."""
    formats = [_format(role, precision) for role in roles]
    return all(
        one is not None and isinstance(one.element, IntegerElement) and one.granule in ("row", "tensor", "delayed")
        and not one.has_zero_point and not one.fraction_bits
        for one in formats
    )  # fmt: skip


def _count_beyond_int32(codes: Tensor, ar: Arithmetic, name: str) -> None:
    """Count the sums of whole numbers that a 32-bit accumulator does not hold, at `NAME.sum`; a device tells later."""
    if ar.ledger is None:
        return
    number, later = (codes.abs() >= 2.0**31).sum(), later_for(codes)
    if later is None and not int(number):
        return
    ledger = ar.ledger.recomputed if ar.clock.replay.follow() else ar.ledger
    site, stamp, step = site_of(ar.site, f"{name}.sum", ar.direction), ar.ledger.stamp(), signed_step(ar.step)

    def take(found: NDArray[np.int64], repeats: Repeats) -> None:
        beyond = found[:, 0, 0]
        # A row is made only where there is something to count.
        if beyond.any():
            counts = np.zeros(len(COUNTERS), np.int64)
            counts[OVERFLOW] = beyond.sum()
            first, then = repeats.first(beyond > 0, stamp, step)
            ledger.row(site).add(counts, 0.0, math.inf, stamp=int(first), step=int(then))

    if later is None:
        take(np.array([[[int(number)]]]), ONCE)
    else:
        later.keep(number, take, [ledger])


def _left(a: Tensor, role: str, ar: Arithmetic) -> Quantized | None:
    """Return the left operand, whose last axis is contracted."""
    return _quantized(a if a.dim() > 1 else a[None], role, ar)


def _right(b: Tensor, role: str, ar: Arithmetic) -> Quantized | None:
    """Return the right operand, its contracted axis moved to the end."""
    return _quantized(b.mT if b.dim() > 1 else b[None], role, ar)


def _quantized(x: Tensor, role: str, ar: Arithmetic) -> Quantized | None:
    """Return an operand along its last axis in the format of its role, or None where that has none."""
    scaled = _format(role, ar.precision)
    if scaled is None:
        return None
    call = ar.call(f"operand.{role}", rounding=scaled.rounding)
    amax = None
    if scaled.granule == "delayed":
        operand = str(site_of(ar.site, f"operand.{role}", ar.direction))
        amax = ar.scales.amax(operand, ar.step, largest_magnitude(x), scaled.width)
    with_codes = isinstance(scaled.element, IntegerElement)  # whose products are those of whole numbers
    return quantize_operand(x, scaled, call, axis=-1, amax=amax, with_codes=with_codes)


def _format(role: str, precision: Precision) -> Scaled | None:
    """Return the scaled format of a role."""
    return {
        "input": precision.operand_input, "weight": precision.operand_weight, "grad": precision.operand_grad
    }[role]  # fmt: skip


def _values(quantized: Quantized | None, x: Tensor, *, is_right: bool = False) -> Tensor:
    """Return the values of an operand in the shape of `x`."""
    if quantized is None:
        return x
    if x.dim() == 1:
        return quantized.values[0]
    return quantized.values.mT if is_right else quantized.values
