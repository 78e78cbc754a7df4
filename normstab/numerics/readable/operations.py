"""The six operations in the float64 carrier, exact enough that one more rounding is the only rounding.

Plain torch, the oracle of the fused kernels. For operands of p <= 24: products are exact, and the error of
a sum is folded in by round-to-odd, so every deterministic rounding of the result is the exact one's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from normstab.numerics.readable.reference import power_of_two

__all__ = [
    "OPERATIONS", "Carried", "Operand", "carried_value", "carry", "exact_root", "exact_sqrt",
    "wide_operands", "widened",
]  # fmt: skip

# What an operation takes: a tensor, or a Python scalar, which is never cast.
Operand = Tensor | float


class Carried(NamedTuple):
    """A result in float64 before its one rounding, and what its operands were."""

    value: Tensor
    operand_nan: Tensor
    operand_inf: Tensor
    divide_by_zero: Tensor | None


def carry(
    operation: str, operands: tuple[Operand, ...], *, rounds_down: bool = False, is_rounded: bool = True
) -> Carried:
    """Compute `operation` of `operands` (tensors that broadcast, or Python scalars) in float64.

    `rounds_down` says that the result will be rounded toward minus infinity, where x + (-x) is -0;
    `is_rounded` False (fp64) that it will not be rounded again, so that IEEE's own result is wanted.
    """
    wide = wide_operands(operands, widened)
    value = OPERATIONS[operation](*wide) if is_rounded else UNFOLDED.get(operation, OPERATIONS[operation])(*wide)
    if rounds_down and operation in SIGNED_ZERO:
        value = _signed_down(operation, wide, value)
    divide_by_zero = None
    if operation == "div":
        divide_by_zero = (wide[1] == 0) & wide[0].isfinite() & (wide[0] != 0)
    return carried_value(value, wide)._replace(divide_by_zero=divide_by_zero)


def carried_value(value: Tensor, wide: tuple[Tensor, ...]) -> Carried:
    """Return a result beside what its operands, of one shape, were."""
    operand_nan = torch.stack([x.isnan() for x in wide]).any(0)
    operand_inf = torch.stack([x.isinf() for x in wide]).any(0)
    return Carried(value, operand_nan, operand_inf, None)


def wide_operands(operands: tuple[Operand, ...], widen: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Return the operands as float64 tensors of one shape; `widen` gives a tensor as float64."""
    device = next(x.device for x in operands if isinstance(x, Tensor))
    # Numbers are filled in on the device: copies from the host could not be captured.
    wide = [
        widen(x) if isinstance(x, Tensor) else torch.full((), x, dtype=torch.float64, device=device) for x in operands
    ]
    return tuple(torch.broadcast_tensors(*wide))  # type: ignore[no-untyped-call]


def widened(x: Tensor) -> Tensor:
    """Return `x` as float64; float32 subnormals survive flush-to-zero, for they are widened by bits."""
    if x.dtype != torch.float32:
        return x.to(torch.float64)
    bits = x.contiguous().view(torch.int32).to(torch.int64)
    is_small = ((bits >> 23) & 0xFF) == 0
    magnitude = (bits & 0x7FFFFF).to(torch.float64) * power_of_two(torch.full((), -149, device=x.device))
    return torch.where(is_small, torch.where(bits < 0, -magnitude, magnitude), x.to(torch.float64))


def add(a: Tensor, b: Tensor) -> Tensor:
    """Return a + b with the rounding error folded in by round-to-odd. Source: Knuth's TwoSum."""
    s = a + b
    b_seen = s - a
    error = (a - (s - b_seen)) + (b - b_seen)
    return fold_error(s, error)


def _signed_down(operation: str, operands: tuple[Tensor, ...], value: Tensor) -> Tensor:
    """Give an exact zero sum of terms with unlike signs the sign of roundTowardNegative (IEEE 754-2019, 6.3)."""
    first = operands[0] * operands[1] if operation == "fma" else operands[0]
    second = -operands[-1] if operation == "sub" else operands[-1]
    return torch.where((value == 0) & (torch.signbit(first) != torch.signbit(second)), -0.0, value)


def fold_error(s: Tensor, error: Tensor) -> Tensor:
    """Return s rounded to odd, given the exact `error` of s: the neighbour on the exact value's side if s is even."""
    is_exact = (error == 0) | ~s.isfinite() | error.isnan()
    is_odd = (s.view(torch.int64) & 1) == 1
    towards = torch.where(error > 0, torch.inf, -torch.inf).to(torch.float64)
    return torch.where(is_exact | is_odd, s, torch.nextafter(s, towards))


def sub(a: Tensor, b: Tensor) -> Tensor:
    """Return a - b, as `add` of a and -b."""
    return add(a, -b)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return a b + c; the product is exact in float64 for p <= 24."""
    return add(a * b, c)


def exact_sqrt(x: Tensor) -> Tensor:
    """Return the IEEE float64 square root. torch.sqrt on a CPU is off by an ulp in 1 % of results."""
    if x.device.type == "cpu":
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.sqrt(x.detach().contiguous().numpy()))
    return torch.sqrt(x)


def exact_root(x: Tensor, p: int) -> Tensor:
    """Return the real p-th root rounded to odd in float64, so that one more rounding is the only one.

    Whole-number arithmetic, element by element: for the few values of a statistic. Negative x: the negative
    root for odd p, NaN for even p.
    """
    if x.is_meta:
        return torch.empty_like(x)
    roots = [_root_to_odd(value, p) for value in x.flatten().tolist()]
    return torch.tensor(roots, dtype=torch.float64, device=x.device).view(x.shape)


def _root_to_odd(value: float, p: int) -> float:
    """Return the p-th root of one number, rounded to odd at 53 bits."""
    if value < 0:
        return math.nan if p % 2 == 0 else -_root_to_odd(-value, p)
    if value == 0 or not math.isfinite(value):
        return value
    fraction, exponent = math.frexp(value)
    whole, exponent = int(fraction * 2**53), exponent - 53
    # Shift until the whole number has 56 p bits or more and its exponent is a multiple of p.
    shift = 56 * p
    shift += (exponent - shift) % p
    whole, exponent = whole << shift, exponent - shift
    root = _whole_root(whole, p)
    is_exact = root**p == whole
    excess = root.bit_length() - 53
    kept = root >> excess
    if not is_exact or root != kept << excess:
        kept |= 1
    return math.ldexp(kept, exponent // p + excess)


def _whole_root(n: int, p: int) -> int:
    """Return floor(n^(1/p)) by Newton's iteration from above."""
    root = 1 << -(-n.bit_length() // p)
    while True:
        following = ((p - 1) * root + n // root ** (p - 1)) // p
        if following >= root:
            return root
        root = following


SIGNED_ZERO = ("add", "sub", "fma")
# Name of an operation -> its definition in float64.
OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "add": add,
    "sub": sub,
    "mul": torch.mul,
    "div": torch.div,
    "sqrt": exact_sqrt,
    "fma": fma,
}
# Of fp64, which is never rounded again: the plain IEEE sum.
UNFOLDED: dict[str, Callable[..., Tensor]] = {"add": torch.add, "sub": torch.sub, "fma": lambda a, b, c: a * b + c}
