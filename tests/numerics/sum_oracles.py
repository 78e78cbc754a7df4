"""Sums in exact rational arithmetic, rounded by definition: an oracle that shares no code with the package.

Finite values and floating-point formats only, deterministic modes only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

Rational = Fraction


def round_rational(x: Fraction, format, mode: str) -> Fraction | float:
    """The value of `format` that `x` rounds to; a float only for infinity, NaN."""
    size = abs(x)
    exponent = format.emin
    while size >= Fraction(2) ** (exponent + 1):
        exponent += 1
    quantum = Fraction(2) ** (exponent - format.precision + 1)
    whole, rest = divmod(size, quantum)
    up = {
        "nearest": 2 * rest > quantum or (2 * rest == quantum and whole % 2 == 1),
        "nearest-away": 2 * rest >= quantum,
        "toward-zero": False,
        "up": rest > 0 and x > 0,
        "down": rest > 0 and x < 0,
        "to-odd": rest > 0 and whole % 2 == 0,
    }[mode]
    rounded = (whole + up) * quantum
    sign = -1 if x < 0 else 1
    if rounded > Fraction(format.max):
        stays = format.overflow == "saturate" or mode in ("toward-zero", "to-odd", "down" if x > 0 else "up")
        return sign * (Fraction(format.max) if stays else math.inf if format.overflow == "inf" else math.nan)
    return sign * rounded


def summed(values: list[Fraction], order: str, width: int, add: Callable[[Fraction, Fraction], Fraction]) -> Fraction:
    """The sum of `values` in one of the four orders, with the given addition."""

    def chain(terms: list[Fraction]) -> Fraction:
        total = terms[0]
        for term in terms[1:]:
            total = add(total, term)
        return total

    def tree(terms: list[Fraction]) -> Fraction:
        while len(terms) > 1:
            pairs = [add(terms[i], terms[i + 1]) for i in range(0, len(terms) - 1, 2)]
            terms = pairs + ([terms[-1]] if len(terms) % 2 else [])
        return terms[0]

    match order:
        case "sequential":
            return chain(values)
        case "pairwise":
            return tree(values)
        case "blocked":
            return chain([chain(values[i : i + width]) for i in range(0, len(values), width)])
    return tree([chain(values[j::width]) for j in range(min(width, len(values)))])


def kahan(values: list[Fraction], rounded: Callable[[Fraction], Fraction]) -> Fraction:
    """Kahan's compensated sum, each of its four operations rounded."""
    total, lost = values[0], Fraction(0)
    for value in values[1:]:
        y = rounded(value - lost)
        t = rounded(total + y)
        lost = rounded(rounded(t - total) - y)
        total = t
    return total
