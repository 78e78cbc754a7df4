"""Matrix products: torch's kernel and one rounding, or an emulated accumulator where `matmul=` names one."""

from __future__ import annotations

import torch
from torch import Tensor

from normstab.simulation.aten.operation import Handler, Operation, Result
from normstab.simulation.aten.round_and_attribute import settle
from normstab.simulation.aten.scaled_operands import Roles, multiply, operands

__all__ = ["PRODUCTS", "is_emulated", "scaled_product"]


def is_emulated(op: Operation) -> bool:
    """Whether the precision names an accumulator for products."""
    return op.ar.precision.matmul.kind != "native"


def product(op: Operation) -> Result:
    """mm, bmm, mv, dot: a product of two tensors."""
    if op.roles is not None:
        return scaled_product(op, op.args[0], op.args[1], op.roles, op.name)
    if is_emulated(op):
        return op.ar.matmul(op.args[0], op.args[1], operation=op.name)
    return settle(op.native(), op.call(), op.args)


def product_with_addend(op: Operation) -> Result:
    """addmm, baddbmm, addmv, addbmm: beta addend + alpha a b; with an emulated accumulator in separate roundings."""
    if op.roles is None and not is_emulated(op):
        return settle(op.native(), op.call(), op.args)
    addend, a, b = op.args[:3]
    if op.roles is not None and not is_emulated(op):
        value = multiply(a, b, op.roles, op.ar, op.name)
        value = value.sum(0) if op.name == "addbmm" else value
        whole = torch.add(op.argument(3, "beta", 1) * addend, value, alpha=op.argument(4, "alpha", 1))
        return op.narrowed(settle(whole, op.call(), op.args))
    result = _of_two(op, a, b, f"{op.name}.matmul")
    if op.name == "addbmm":
        result = op.ar.sum(result, 0, operation=f"{op.name}.sum")
    alpha, beta = op.argument(4, "alpha", 1), op.argument(3, "beta", 1)
    if alpha != 1:
        result = op.ar.mul(result, float(alpha), operation=f"{op.name}.alpha")
    if beta == 0:
        return result
    if beta != 1:
        addend = op.ar.mul(addend, float(beta), operation=f"{op.name}.beta")
    added: Tensor = op.ar.add(result, addend, operation=op.name)
    return added


def _of_two(op: Operation, a: Tensor, b: Tensor, name: str) -> Tensor:
    """Return the product in the emulated accumulator, of operands as the machine takes them."""
    if op.roles is not None:
        return scaled_product(op, a, b, op.roles, name)
    return op.ar.matmul(a, b, operation=name)


def scaled_product(op: Operation, a: Tensor, b: Tensor, roles: Roles, name: str) -> Tensor:
    """Return the product of operands in their scaled formats, rounded once or accumulated as stated."""
    if is_emulated(op):
        return op.ar.matmul(*operands(a, b, roles, op.ar), operation=name)
    return op.narrowed(settle(multiply(a, b, roles, op.ar, name), op.ar.call(name), (a, b)))


# Name of torch's operation -> its handler.
PRODUCTS: dict[str, Handler] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), product),
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "addbmm"), product_with_addend),
}
