"""The largest error of an operand in a scaled format, relative to the largest magnitude of its granule."""

from __future__ import annotations

from normstab.numerics.bounds import NEAREST_MODES, unit_roundoff
from normstab.numerics.formats import FixedFormat
from normstab.numerics.precision import Precision
from normstab.numerics.scaled.scaled_format import IntegerElement, Scaled

__all__ = ["operand_unit"]


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
