"""What callers pass, made what the code expects, or refused in a sentence: numbers, axes, names, places to write.

Nothing here computes. Each function costs a type test where the argument is what it should be.
"""

from __future__ import annotations

import operator
from typing import Any, NoReturn

import torch
from torch import Tensor

from normstab.errors import DtypeError, NormstabError
from normstab.numerics.formats import AnyFormat
from normstab.numerics.readable.reference import LAYOUTS, holds

__all__ = [
    "axes",
    "check_instance",
    "check_optional",
    "check_out",
    "check_tensors",
    "number",
    "operand",
    "raise_missing_key",
    "shape_of",
    "tensor",
    "whole",
]


def number(x: Any, what: str) -> float:
    """Return a real number as the float64 that it is; raise for what is none, or what no float64 is."""
    if type(x) is float:
        return x
    try:
        found = float(x) if not isinstance(x, str | bytes) else _refuse(x, what)
        is_exact = found == x or found != found
    except OverflowError:
        is_exact = False
    except (TypeError, ValueError):
        _refuse(x, what)
    if not is_exact:
        raise NormstabError(f"{what}: {x!r:.60} is no float64 number; pass one that is, or a tensor")
    return found


def operand(x: Any, operation: str) -> Tensor | float:
    """Return an operand: a tensor as it is, else a real number."""
    return x if isinstance(x, Tensor) else number(x, operation)


def check_tensors(operation: str, operands: tuple[Any, ...]) -> None:
    """Raise unless one operand is a tensor."""
    if not any(isinstance(x, Tensor) for x in operands):
        found = ", ".join(f"{x!r:.60}" for x in operands)
        raise DtypeError(f"{operation}: one operand at least is a tensor, found {found}; wrap it: torch.tensor(...)")


def tensor(x: Any, operation: str) -> Tensor:
    """Return a tensor; raise for anything else."""
    if not isinstance(x, Tensor):
        raise DtypeError(f"{operation}: expected a tensor, found {type(x).__name__}: {x!r:.60}")
    return x


def shape_of(operands: tuple[Any, ...]) -> torch.Size:
    """Return the shape of a result of operands that broadcast."""
    shapes = [x.shape for x in operands if isinstance(x, Tensor)]
    is_one = len(shapes) > 0 and all(shape == shapes[0] for shape in shapes)
    return shapes[0] if is_one else torch.Size(torch.broadcast_shapes(*shapes))


def check_out(out: Any, shape: torch.Size, format: AnyFormat, operation: str) -> None:
    """Raise unless results of `shape` in `format` can be written to `out` without another rounding."""
    if not isinstance(out, Tensor):
        raise DtypeError(f"{operation}: out= takes a tensor, found {type(out).__name__}: {out!r:.60}")
    if out.shape != shape:
        raise NormstabError(
            f"{operation}: out= has shape {tuple(out.shape)}; allowed: that of the result, {tuple(shape)}"
        )
    if out.dtype not in LAYOUTS or not (holds(out.dtype, format) or out.dtype == torch.float64):
        able = ", ".join(str(dtype).removeprefix("torch.") for dtype in LAYOUTS if holds(dtype, format)) or "float64"
        raise DtypeError(
            f"{operation}: out= is {str(out.dtype).removeprefix('torch.')}, which cannot hold {format}; {able} can"
        )


def axes(dim: Any, operation: str) -> int | tuple[int, ...] | None:
    """Return what a reduction goes over; None, as torch has it also for no axis at all, means all."""
    if dim is None or type(dim) is int:
        return dim
    if isinstance(dim, list | tuple | torch.Size):
        return tuple(whole(x, f"{operation}: dim") for x in dim) or None
    return whole(dim, f"{operation}: dim")


def whole(x: Any, what: str) -> int:
    """Return a whole number, one of numpy's or a tensor's too."""
    try:
        return operator.index(x)
    except TypeError:
        raise DtypeError(f"{what} is a whole number, found {type(x).__name__}: {x!r:.60}") from None


def check_instance(x: Any, kind: type, what: str, advice: str) -> None:
    """Raise unless `x` is an instance of `kind`; `advice` says what is allowed."""
    if not isinstance(x, kind):
        raise DtypeError(f"{what} is {advice}, found {type(x).__name__}: {x!r:.60}")


def check_optional(x: Any, kind: type, what: str, advice: str) -> None:
    """Raise unless `x` is None or an instance of `kind`."""
    if x is not None:
        check_instance(x, kind, what, advice)


def _refuse(x: Any, what: str) -> NoReturn:
    """Raise for something that is no number."""
    raise DtypeError(f"{what}: expected a tensor or a real number, found {type(x).__name__}: {x!r:.60}")


def raise_missing_key(precision: object) -> NoReturn:
    """Raise the error of stochastic rounding without a key."""
    raise NormstabError(
        f"precision {precision} rounds stochastically and needs a key: Arithmetic(..., key=normstab.Key(seed=0))"
    )
