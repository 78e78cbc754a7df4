"""How far a result in a format may lie from the exact one, by a stated bound; no number here is a guess.

Source: Higham and Mary, "A new approach to probabilistic rounding error analysis", SISC 41 (2019), theorem
2.4: m roundings of unit roundoff u leave a relative error within expm1(lambda sqrt(m) u) with probability at
least 1 - 2 exp(-lambda^2 / 2) each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from normstab.numerics.bounds import NEAREST_MODES, confidence, unit_roundoff
from normstab.numerics.formats import FixedFormat
from normstab.numerics.precision import Precision

__all__ = ["Tolerance", "derive_tolerance"]

FAILURE = 1e-6  # the probability that rounding alone, behaving like chance, fails a test


@dataclass(frozen=True)
class Tolerance:
    """What is allowed: |found - expected| <= atol + rtol |expected|, and how that was derived."""

    rtol: float
    atol: float
    derivation: str


def derive_tolerance(precision: Precision, *, roundings: int, elements: int, scale: float) -> Tolerance:
    """Return the tolerance for results that went through at most `roundings` roundings each.

    `elements` results are compared at once and `scale` is the largest magnitude expected among them: the
    bound is relative to it, since cancellation leaves a small element the errors of large ones. Subnormals
    and fixed point add half a quantum a rounding. It assumes that the module does not amplify errors.
    """
    format = precision.format()
    u = unit_roundoff(format) * (1 if precision.rounding.mode in NEAREST_MODES else 2)
    likely = confidence(FAILURE, elements)
    growth = likely * math.sqrt(max(roundings, 1)) * u
    quantum = roundings * format.min_subnormal / 2
    if isinstance(format, FixedFormat):
        atol = growth * max(1.0, scale)
        return Tolerance(0.0, atol, f"{likely:.1f} sqrt({roundings}) half quanta of {format}")
    rtol = math.expm1(growth)
    derivation = (
        f"expm1({likely:.1f} sqrt({roundings}) u), u = {u:.3g} of {format}, for {roundings} roundings "
        f"and {elements} elements (Higham and Mary 2019, theorem 2.4), relative to the largest magnitude"
    )
    return Tolerance(rtol, rtol * scale + quantum, derivation)
