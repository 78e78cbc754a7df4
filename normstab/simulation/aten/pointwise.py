"""Operations of one element each: those that round nothing, and the six that round an exact result once.

Functions such as exp and gelu are in `wide`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normstab.numerics.formats import Format
from normstab.numerics.readable import exact
from normstab.simulation.aten.operation import Handler, Operation, Result
from normstab.simulation.aten.reductions import in_role
from normstab.simulation.aten.wide import WIDE, wide, wide_elements

__all__ = ["POINTWISE", "REPLACED"]


def add(op: Operation) -> Result:
    """Return a + alpha b, rounded once."""
    a, b, alpha = _operands(op)
    return op.narrowed(op.ar.add(a, b, operation=op.name, out=op.out) if alpha == 1 else _fma(op, alpha, b, a))


def sub(op: Operation) -> Result:
    """Return a - alpha b, rounded once."""
    a, b, alpha = _operands(op)
    return op.narrowed(op.ar.sub(a, b, operation=op.name, out=op.out) if alpha == 1 else _fma(op, -alpha, b, a))


def reversed_sub(op: Operation) -> Result:
    """Return b - alpha a, rounded once."""
    a, b, alpha = _operands(op)
    return op.narrowed(op.ar.sub(b, a, operation=op.name) if alpha == 1 else _fma(op, -alpha, a, b))


def mul(op: Operation) -> Result:
    """Return a b; x x is a square, in the format of that role."""
    a, b, _ = _operands(op)
    ar = in_role(op.ar, "square") if a is b else op.ar
    return op.narrowed(ar.mul(a, b, operation=op.name, out=op.out))


def div(op: Operation) -> Result:
    """Return a / b; with a rounding mode the integral quotient."""
    if op.kwargs.get("rounding_mode") is not None:
        return wide_elements(op)
    a, b, _ = _operands(op)
    return op.narrowed(op.ar.div(a, b, operation=op.name, out=op.out))


def sqrt(op: Operation) -> Result:
    """Return the root."""
    return op.ar.sqrt(op.args[0], operation=op.name)


def reciprocal(op: Operation) -> Result:
    """Return 1 / x in the format of the role `reciprocal`."""
    return in_role(op.ar, "reciprocal").div(1.0, op.args[0], operation=op.name)


def rsqrt(op: Operation) -> Result:
    """Return 1 / sqrt(x), rounded once, in the format of the role `reciprocal`."""
    return wide_elements(op._replace(ar=in_role(op.ar, "reciprocal")))


def power(op: Operation) -> Result:
    """Return x^n: whole n from 2 to 8 as products, each rounded (n = 2 in the role `square`); else one rounding."""
    base, exponent = op.args[0], op.args[1]
    if isinstance(base, Tensor) and isinstance(exponent, int | float):
        if exponent == 1:
            return base.clone()
        if exponent in (2, 3, 4, 5, 6, 7, 8):
            return in_role(op.ar, "square").power(base, int(exponent), operation=op.name)
        if exponent == 0.5:
            return op.ar.sqrt(base, operation=op.name)
    return wide_elements(op)


def nan_to_num(op: Operation) -> Result:
    """Replace NaN and infinities, these by the greatest value of the format unless another is given."""
    bound = op.ar.format.max
    least = -bound if isinstance(op.ar.format, Format) else op.ar.format.min
    nan, high, low = (op.argument(i, name) for i, name in ((1, "nan"), (2, "posinf"), (3, "neginf")))
    return torch.nan_to_num(
        op.args[0],
        nan=0.0 if nan is None else nan,
        posinf=bound if high is None else high,
        neginf=least if low is None else low,
    )


def index_put(op: Operation) -> Result:
    """Copy values to their places, exactly; add them up wide with `accumulate`."""
    return wide(op) if op.argument(3, "accumulate", False) else op.native()


def dropout(op: Operation) -> Result:
    """Return x mask / (1 - p), rounded once, and the mask of torch's generator."""
    x, p, train = op.args[0], float(op.args[1]), op.args[2]
    if train is False or p == 0.0 or p == 1.0:
        return op.native()
    _, mask = op.native()
    return op.ar.mul(x * mask, 1.0 / (1.0 - p), operation=op.name), mask


def relu(x: Tensor) -> Tensor:
    """Return x where x > 0, NaN of NaN, else +0; torch's own relu keeps -0."""
    return torch.threshold(x, 0.0, 0.0)


def relu_in_place(x: Tensor) -> Tensor:
    """Write relu(x) to x."""
    return torch.threshold_(x, 0.0, 0.0)


def maximum(op: Operation) -> Result:
    """Return the greater; of +0 and -0, +0."""
    return exact.maximum(*torch.broadcast_tensors(*op.args[:2]))


def minimum(op: Operation) -> Result:
    """Return the lesser; of +0 and -0, -0."""
    return exact.minimum(*torch.broadcast_tensors(*op.args[:2]))


def clamp(op: Operation) -> Result:
    """Return x bounded; a zero at a bound of zero gets the sign that maximum and minimum give it."""
    x = op.native()
    bounds = [bound for bound in (*op.args[1:3], *op.kwargs.values()) if bound is not None]
    # max(-0, +0) = +0 and min(+0, +0) = +0: with bounds of +0 every zero result is +0.
    for bound in bounds:
        if isinstance(bound, Tensor):
            x = torch.where((bound == 0).any(), x + 0.0, x)  # asked on the device, where nobody waits
        elif bound == 0:
            x = x + 0.0
    return x


def _operands(op: Operation) -> tuple[Any, Any, float]:
    """Return both operands as floating tensors and Python floats, integers widened exactly, and alpha."""
    return _operand(op.args[0]), _operand(op.argument(1, "other")), op.argument(2, "alpha", 1)


def _fma(op: Operation, factor: float, x: Any, addend: Any) -> Tensor:
    """Return factor x + addend, rounded once."""
    result: Tensor = op.ar.fma(float(factor), x, addend, operation=op.name, out=op.out)
    return result


def _operand(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x if x.is_floating_point() else x.to(torch.float64)
    return float(x)


def _once_per_element(names: str, handler: Callable[[Operation], Result]) -> dict[str, Handler]:
    return dict.fromkeys(names.split(), handler)


# Exact, but for the sign of a zero, which torch leaves open.
EXACT_SIGNED: dict[str, Handler] = {
    "maximum": maximum,
    "minimum": minimum,
    **_once_per_element("clamp clamp_min clamp_max hardtanh relu6", clamp),
}
# Name of torch's operation -> its handler.
# Exact, and used in place of torch's own.
REPLACED: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "relu_": relu_in_place}
POINTWISE: dict[str, Handler] = {
    **WIDE,
    **EXACT_SIGNED,
    **_once_per_element("add _add_relu", add),
    **_once_per_element("sub", sub),
    "rsub": reversed_sub,
    **_once_per_element("mul", mul),
    **_once_per_element("div true_divide", div),
    "sqrt": sqrt,
    "reciprocal": reciprocal,
    "rsqrt": rsqrt,
    "pow": power,
    "nan_to_num": nan_to_num,
    "index_put": index_put,
    "_unsafe_index_put": index_put,
    "native_dropout": dropout,
}
