"""How far a result in a format may lie from the exact one, by a stated bound; no number here is a guess.

Source: Higham and Mary, "A new approach to probabilistic rounding error analysis", SISC 41 (2019), theorem
2.4: m roundings of unit roundoff u leave a relative error within expm1(lambda sqrt(m) u) with probability at
least 1 - 2 exp(-lambda^2 / 2) each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from normstab.numerics.bounds import NEAREST_MODES, confidence, unit_roundoff
from normstab.numerics.formats import FORMATS, AnyFormat, FixedFormat
from normstab.numerics.precision import Precision
from normstab.numerics.scaled.scaled_format import IntegerElement, Scaled

__all__ = ["Tolerance", "derive_tolerance", "result_format"]

FAILURE = 1e-6  # the probability that rounding alone, behaving like chance, fails a test


@dataclass(frozen=True)
class Tolerance:
    """What is allowed: |found - expected| <= atol + rtol |expected|, and how that was derived."""

    rtol: float
    atol: float
    derivation: str


def derive_tolerance(
    precision: Precision, *, roundings: int, elements: int, scale: float, operands: int = 0
) -> Tolerance:
    """Return the tolerance for results that went through at most `roundings` roundings each.

    `elements` results are compared at once and `scale` is the largest magnitude expected among them: the
    bound is relative to it, since cancellation leaves a small element the errors of large ones. Subnormals
    and fixed point add half a quantum a rounding. `operands` of products, among the roundings, were taken in a scaled
    format, whose unit is relative to the largest of a granule. It assumes that the module does not amplify errors.
    """
    format = result_format(precision)
    u = unit_roundoff(format) * (1 if precision.rounding.mode in NEAREST_MODES else 2)
    likely = confidence(FAILURE, elements)
    coarse = operand_unit(precision) if operands else 0.0
    growth = likely * math.sqrt(max(roundings, 1) * u**2 + operands * coarse**2)
    quantum = roundings * format.min_subnormal / 2
    if isinstance(format, FixedFormat):
        atol = growth * max(1.0, scale)
        of_operands = f", and {operands} operands of {coarse:.3g}" if coarse else ""
        return Tolerance(0.0, atol, f"{likely:.1f} sqrt({roundings}) half quanta of {format}{of_operands}")
    rtol = math.expm1(growth)
    units = f"sqrt({roundings}) u" if not coarse else f"sqrt({roundings} u^2 + {operands} {coarse:.3g}^2)"
    derivation = (
        f"expm1({likely:.1f} {units}), u = {u:.3g} of {format}, for {roundings} roundings "
        f"and {elements} elements (Higham and Mary 2019, theorem 2.4), relative to the largest magnitude"
    )
    return Tolerance(rtol, rtol * scale + quantum, derivation)


def result_format(precision: Precision) -> AnyFormat:
    """Return the coarsest format of results: under autocast that of products, else the compute format."""
    return FORMATS[precision.autocast.removeprefix("cuda-")] if precision.autocast != "none" else precision.format()


def operand_unit(precision: Precision) -> float:
    """Return the largest error of an operand's element relative to the largest of its granule; 0 where none is scaled.

    Of any rounding but to nearest twice that of the nearest one.
    """
    units = [0.0]
    for scaled in (precision.operand_input, precision.operand_weight, precision.operand_grad):
        if scaled is not None:
            rounding = scaled.rounding or precision.rounding
            units.append(_element_unit(scaled) * (1 if rounding.mode in NEAREST_MODES else 2))
    return max(units)


def _element_unit(scaled: Scaled) -> float:
    """Return the largest error of one nearest rounding to `scaled`, relative to the granule's largest magnitude.

    Of a floating-point element its unit roundoff; of whole numbers and fixed point half a quantum, relative to the
    least that the largest magnitude can be once divided by its scale. Where a scale leaves it above the element's
    largest value (floor of a power of two, OCP MX 1.0, 6.3), what is cut off.
    """
    element, top = scaled.element, 2.0**scaled.emax
    below_tie = 1 - 2.0 ** -(element.precision + 1)  # from where on even's rounding takes the next power of two
    least, greatest = {
        "max": (scaled.largest, scaled.largest),
        "floor": (top, 2 * top),
        "even": (top * below_tie, 2 * top * below_tie),
        "ceil": (scaled.largest / 2, scaled.largest),
        "rceil": (scaled.largest / 2, scaled.largest),
    }[scaled.rule]
    if isinstance(element, IntegerElement):
        rounded = 2.0**-scaled.fraction_bits / 2 / least
    elif isinstance(element, FixedFormat):
        rounded = element.min_subnormal / 2 / least
    else:
        rounded = unit_roundoff(element)
    return max(rounded, 1 - scaled.largest / greatest)
