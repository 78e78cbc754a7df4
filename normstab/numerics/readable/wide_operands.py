"""The six operations on operands of up to 53 bits, exact enough that one more rounding is the only rounding.

A result is computed as a float64 and the exact error of it, from which it is rounded to odd: then it is to 51 bits or
fewer what the exact one is. Where the error itself would overflow or vanish, whole numbers compute the element.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from normstab.numerics.readable.operations import add, exact_sqrt, fold_error

__all__ = ["carry_wide", "is_wide_scalar", "nearest_of", "to_odd"]

# Within these, products of halves of operands neither overflow nor lose their last bit below 2^-1074.
LEAST, LARGEST_FACTOR, LARGEST_RESULT = 2.0**-960, 1.1e300, 2.0**1020
SPLIT = 2.0**27 + 1


@lru_cache(maxsize=4096)
def is_wide_scalar(x: float) -> bool:
    """Whether a number has more bits than float32, or is beyond its range."""
    fraction, exponent = math.frexp(x)
    return math.isfinite(x) and not (fraction * 2**24 == int(fraction * 2**24) and -125 <= exponent <= 128)


def carry_wide(operation: str, operands: tuple[Tensor, ...]) -> Tensor:
    """Return the result of `operation` of float64 tensors of one shape, rounded to odd."""
    value = OPERATIONS[operation](*operands)
    is_finite = torch.stack([x.isfinite() for x in operands]).all(0) & ~value.isnan()
    where = (is_finite & ~_has_exact_error(operation, operands, value)).flatten().nonzero().flatten().tolist()
    if not where:
        return value
    result, rows = value.flatten().clone(), [x.flatten() for x in operands]
    for i in where:
        found = exactly(operation, [float(row[i]) for row in rows])
        if found is not None:
            result[i] = found
    return result.view(value.shape)


def _has_exact_error(operation: str, operands: tuple[Tensor, ...], value: Tensor) -> Tensor:
    """Return where the error of finite operands' result was found exactly."""
    x, size = operands[0].abs(), value.abs()
    is_low = size <= LARGEST_RESULT
    if operation in ("add", "sub"):
        return is_low
    if operation == "sqrt":
        return (x == 0) | ((x >= LEAST) & (x <= LARGEST_FACTOR))
    y = operands[1].abs()
    is_low &= (x <= LARGEST_FACTOR) & (y <= LARGEST_FACTOR)
    if operation == "div":
        return (y == 0) | (x == 0) | (is_low & (x >= LEAST) & (size >= LEAST) & (size <= LARGEST_FACTOR))
    product = x * y
    is_low &= product <= LARGEST_RESULT
    if operation == "fma":
        is_low &= operands[2].abs() <= LARGEST_RESULT
    return is_low & ((x == 0) | (y == 0) | (product >= LEAST))


def exactly(operation: str, operands: list[float], finish: Callable[[Fraction], float] | None = None) -> float | None:
    """Return one result from whole numbers, `finish`ed (None: rounded to odd); None where IEEE's specials rule."""
    finish = to_odd if finish is None else finish
    if operation == "sqrt":
        return None if operands[0] <= 0 else finish(_root(Fraction(operands[0])))
    if operation == "div" and operands[1] == 0:
        return None
    exact = EXACT[operation](*map(Fraction, operands))
    return None if exact == 0 else finish(exact)  # the float64 operation gives a zero its sign


def to_odd(x: Fraction) -> float:
    """Return a number rounded to odd at 53 bits: never beyond float64's greatest, which is odd, nor to zero."""
    n, d = abs(x.numerator), x.denominator
    quantum = max(n.bit_length() - d.bit_length() - 53, -1074)
    whole, rest = divmod(n << max(-quantum, 0), d << max(quantum, 0))
    while whole >= 2**53:
        whole, rest, quantum = whole >> 1, rest + (whole & 1), quantum + 1
    magnitude = math.ldexp(whole | (rest != 0), quantum) if quantum <= 971 else torch.finfo(torch.float64).max
    return -magnitude if x < 0 else magnitude


def nearest_of(mode: str) -> Callable[[Fraction], float]:
    """Return what rounds a number to float64 in `mode`, for formats that hold all of it."""

    def rounded(x: Fraction) -> float:
        odd = to_odd(x)
        if mode == "to-odd" or Fraction(odd) == x:
            return odd
        low, high = sorted((odd, math.nextafter(odd, math.inf if Fraction(odd) < x else -math.inf)))
        if mode in ("up", "down", "toward-zero"):
            return high if mode == "up" or (mode == "toward-zero" and x < 0) else low
        below, above = x - _end(low), _end(high) - x
        if below != above:
            return low if below < above else high
        greater, less = (low, high) if x < 0 else (high, low)
        ties = {"nearest-away": greater, "half-toward-zero": less, "half-up": high, "half-down": low}
        return ties.get(mode, less if odd == greater else greater)  # to nearest: the one that is not odd

    return rounded


def _end(x: float) -> Fraction:
    """Return a float64 as a fraction, infinity as the number that would follow the greatest."""
    return Fraction(x) if math.isfinite(x) else Fraction(2) ** 1024 * (1 if x > 0 else -1)


def _root(x: Fraction) -> Fraction:
    """Return a number on the same side as the root of x of every 60-bit number, and of every multiple of 2^-60."""
    shift = 2 * max(80, 80 - (x.numerator.bit_length() - x.denominator.bit_length()) // 2)
    whole = (x.numerator << shift) // x.denominator
    root = math.isqrt(whole)
    is_exact = root * root * x.denominator == x.numerator << shift
    return Fraction(2 * root + (not is_exact), 2 << (shift // 2))


def two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return a b as float64, and its exact error. Source: Dekker 1971; Veltkamp's splitting."""
    p = a * b
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    lifted = SPLIT * x
    high = lifted - (lifted - x)
    return high, x - high


def mul(a: Tensor, b: Tensor) -> Tensor:
    """Return a b."""
    return fold_error(*two_product(a, b))


def div(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b: the remainder a - q b, exact, has the sign of the quotient's error times that of b."""
    q = a / b
    p, error = two_product(q, b)
    rest = (a - p) - error
    return fold_error(q, torch.where(b < 0, -rest, rest))


def sqrt(x: Tensor) -> Tensor:
    """Return the root: the remainder x - s s, exact, has the sign of its error."""
    s = exact_sqrt(x)
    p, error = two_product(s, s)
    return fold_error(s, (x - p) - error)


def sub(a: Tensor, b: Tensor) -> Tensor:
    """Return a - b."""
    return add(a, -b)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return a b + c. Source: Boldo and Melquiond 2008: the smaller parts are added to odd, then the greater."""
    p, error = two_product(a, b)
    is_plain = (error == 0) | ~error.isfinite() | ~c.isfinite()
    t, t_error = _two_sum(c, error)
    v, v_error = _two_sum(p, t)
    return torch.where(is_plain, add(p, c), add(v, add(t_error, v_error)))


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return a + b as float64, and its exact error. Source: Knuth."""
    s = a + b
    b_seen = s - a
    return s, (a - (s - b_seen)) + (b - b_seen)


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "add": add,
    "sub": sub,
    "mul": mul,
    "div": div,
    "sqrt": sqrt,
    "fma": fma,
}
EXACT: dict[str, Callable[..., Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": lambda a, b, c: a * b + c,
}
