"""Matrix products: torch's kernel and one rounding, or an emulated accumulator where `matmul=` names one."""

from __future__ import annotations

from torch import Tensor

from normstab.simulation.aten.operation import Handler, Operation, Result
from normstab.simulation.aten.round_and_attribute import settle

__all__ = ["PRODUCTS", "is_emulated"]


def is_emulated(op: Operation) -> bool:
    """Whether the precision names an accumulator for products."""
    return op.ar.precision.matmul.kind != "native"


def product(op: Operation) -> Result:
    """mm, bmm, mv, dot: a product of two tensors."""
    if is_emulated(op):
        return op.ar.matmul(op.args[0], op.args[1], operation=op.name)
    return settle(op.native(), op.call(), op.args)


def product_with_addend(op: Operation) -> Result:
    """addmm, baddbmm, addmv, addbmm: beta addend + alpha a b; with an emulated accumulator in separate roundings."""
    if not is_emulated(op):
        return settle(op.native(), op.call(), op.args)
    addend, a, b = op.args[:3]
    result = op.ar.matmul(a, b, operation=f"{op.name}.matmul")
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


# Name of torch's operation -> its handler.
PRODUCTS: dict[str, Handler] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), product),
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "addbmm"), product_with_addend),
}
