"""The six operations by fractions: the exact result, and what rounding it once gives by definition.

Slow, obvious, and without code of the package but the format's data.
"""

from __future__ import annotations

import math
from fractions import Fraction

from normstab import FixedFormat

__all__ = ["OPERANDS", "exact", "rounded"]

# Name of an operation -> how many operands it takes.
OPERANDS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "fma": 3, "sqrt": 1}


def exact(operation: str, numbers: list[float]) -> Fraction:
    """Return the exact result; of a root a number on the same side of every multiple of 2^-2000."""
    a, *rest = map(Fraction, numbers)
    match operation:
        case "add":
            return a + rest[0]
        case "sub":
            return a - rest[0]
        case "mul":
            return a * rest[0]
        case "div":
            return a / rest[0]
        case "fma":
            return a * rest[0] + rest[1]
    root = math.isqrt((a.numerator << 4000) // a.denominator)
    return Fraction(root, 2**2000) + (0 if Fraction(root, 2**2000) ** 2 == a else Fraction(1, 2**2001))


def rounded(x: Fraction, format, mode: str) -> float:
    """Return x rounded once to the format, by definition."""
    if isinstance(format, FixedFormat):
        quantum = Fraction(2) ** -format.fraction_bits
    else:
        exponent = abs(x).numerator.bit_length() - abs(x).denominator.bit_length()
        exponent -= Fraction(2) ** exponent > abs(x)
        quantum = Fraction(2) ** (max(exponent, format.emin) - format.precision + 1)
    whole, rest = divmod(abs(x) / quantum, 1)
    is_negative, half = x < 0, Fraction(1, 2)
    away = {
        "nearest": rest > half or (rest == half and whole % 2 == 1),
        "nearest-away": rest >= half,
        "half-up": rest > half or (rest == half and not is_negative),
        "half-down": rest > half or (rest == half and is_negative),
        "half-toward-zero": rest > half,
        "toward-zero": False,
        "up": rest > 0 and not is_negative,
        "down": rest > 0 and is_negative,
        "to-odd": rest > 0 and whole % 2 == 0,
    }[mode]
    y = (whole + away) * quantum * (-1 if is_negative else 1)
    top = Fraction(format.max)
    least = Fraction(format.min) if isinstance(format, FixedFormat) else -top
    if not getattr(format, "has_subnormals", True) and abs(y) < Fraction(format.min_normal):
        return 0.0
    if least <= y <= top:
        return float(y)
    if format.overflow == "wrap":
        span = Fraction(2) ** (format.integer_bits + format.is_signed)
        return float((y - least) % span + least)
    if format.overflow == "saturate-zero":
        return 0.0
    if format.overflow in ("saturate", "saturate-symmetric"):
        return float(least if is_negative else top)
    stops = {"toward-zero": True, "to-odd": True, "up": is_negative, "down": not is_negative}.get(mode, False)
    beyond = math.nan if format.overflow == "nan" else -math.inf if is_negative else math.inf
    return float(least if is_negative else top) if stops else beyond
