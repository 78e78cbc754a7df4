"""Sums, means and variances in the stated accumulation, never as one opaque operation.

The sum is formed at `name.sum`, in the accumulator's format; what the network gets is cast at `name`.
"""

from __future__ import annotations

import math

from torch import Tensor

from normstab.numerics.arithmetic import Arithmetic
from normstab.simulation.aten.operation import Handler, Operation, Result
from normstab.torch_private import overload_name

__all__ = ["REDUCTIONS", "in_role"]

Dims = tuple[int, ...] | None


def in_role(ar: Arithmetic, role: str) -> Arithmetic:
    """Return `ar` with results in the format of `role` where the precision names one, else `ar` itself."""
    return ar if getattr(ar.precision, role) is None else ar.in_format(role)


def total(op: Operation) -> Result:
    """Return the sum over `dim`, in the format of the role `sum`."""
    dims, keepdim = _dims(op)
    return _sum(op.args[0], dims, keepdim, op.ar, op.name)


def mean(op: Operation) -> Result:
    """Return the mean over `dim`, in the Precision's form."""
    dims, keepdim = _dims(op)
    return op.ar.mean(op.args[0], dims, keepdim=keepdim, operation=op.name)


def variance(op: Operation) -> Result:
    """Return var: mean, centre, square, sum, div, each rounded."""
    return _spread(op)[0]


def deviation(op: Operation) -> Result:
    """Return std: the root of var."""
    return op.ar.sqrt(_spread(op)[0], operation=f"{op.name}.sqrt")


def variance_and_mean(op: Operation) -> Result:
    """Return (var, mean)."""
    return _spread(op)


def deviation_and_mean(op: Operation) -> Result:
    """Return (std, mean)."""
    spread, centre = _spread(op)
    return op.ar.sqrt(spread, operation=f"{op.name}.sqrt"), centre


def _sum(x: Tensor, dims: Dims, keepdim: bool, ar: Arithmetic, name: str) -> Tensor:
    """Return the sum, cast once; an exact or native one is rounded by the accumulation itself."""
    to = in_role(ar, "sum")
    if ar.precision.accumulation.kind != "rounded":
        return to.sum(x, dims, keepdim=keepdim, operation=name)
    return to.cast(ar.sum(x, dims, keepdim=keepdim, operation=f"{name}.sum"), name)


def _spread(op: Operation) -> tuple[Tensor, Tensor]:
    """Return variance and mean: sum((x - mean)^2) / (n - correction)."""
    x, ar = op.args[0], op.ar
    dims, keepdim = _dims(op, flags_before=1)
    axes = tuple(range(x.dim())) if dims is None else dims
    correction = _correction(op)
    centre = ar.mean(x, axes, keepdim=True, operation=f"{op.name}.mean")
    d = ar.sub(x, centre, operation=f"{op.name}.centre")
    square = in_role(ar, "square").mul(d, d, operation=f"{op.name}.square")
    n = math.prod(x.shape[axis] for axis in axes)
    sum_of_squares = ar.sum(square, axes, keepdim=keepdim, operation=f"{op.name}.sum")
    divided = in_role(ar, "variance").div(sum_of_squares, float(max(0.0, n - correction)), operation=f"{op.name}.div")
    return divided, centre if keepdim else centre.reshape(divided.shape)


def _correction(op: Operation) -> float:
    """Return what is subtracted from n: `correction`, or 1 for `unbiased`."""
    if "correction" in op.kwargs:
        given = op.kwargs["correction"]
        return 1.0 if given is None else float(given)
    flags = [value for value in op.args[1:] if isinstance(value, bool)]
    unbiased = flags[0] if flags and overload_name(op.function) in ("default", "dim") else True
    return 1.0 if op.kwargs.get("unbiased", unbiased) else 0.0


def _dims(op: Operation, *, flags_before: int = 0) -> tuple[Dims, bool]:
    """Return the reduced axes (None: all), made non-negative, and keepdim."""
    rest = list(op.args[1:])
    dims = op.kwargs.get("dim")
    if dims is None and rest and not isinstance(rest[0], bool):
        dims = rest.pop(0)
    flags = [value for value in rest if isinstance(value, bool)]
    takes_unbiased = flags_before and overload_name(op.function) in ("default", "dim")
    keepdim = bool(op.kwargs.get("keepdim", flags[-1] if len(flags) > (1 if takes_unbiased else 0) else False))
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return None, keepdim
    axes = dims if isinstance(dims, list | tuple) else [dims]
    rank = max(op.args[0].dim(), 1)
    return tuple(int(axis) % rank for axis in axes), keepdim


# Name of torch's operation -> its handler.
REDUCTIONS: dict[str, Handler] = {
    "sum": total,
    "mean": mean,
    "var": variance,
    "std": deviation,
    "var_mean": variance_and_mean,
    "std_mean": deviation_and_mean,
}
