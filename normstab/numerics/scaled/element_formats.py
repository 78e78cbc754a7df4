"""The element of a scaled format as a format that numbers are rounded to, which saturates."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from normstab.errors import NormstabError
from normstab.numerics.formats import AnyFormat, FixedFormat, Format
from normstab.numerics.scaled.scaled_format import IntegerElement, Scaled

__all__ = ["element_format", "symmetric_format"]


def element_format(scaled: Scaled) -> AnyFormat:
    """Return the element as a format that saturates; intN is fixed point, wider where a zero point follows."""
    element = scaled.element
    if isinstance(element, IntegerElement):
        whole_bits = element.precision - scaled.fraction_bits + (2 if scaled.has_zero_point else 0)
        return FixedFormat(str(element), whole_bits, scaled.fraction_bits)
    if isinstance(element, Format) and not element.fits_float32:
        raise NormstabError(f"{scaled}: an element is a format whose numbers float32 holds")
    return replace(element, overflow="saturate")


@lru_cache(maxsize=256)
def symmetric_format(scaled: Scaled) -> AnyFormat | None:
    """Return the element as a format that has its very numbers, intN's without the least code; None: with a zero point.

    Those are whole numbers moved by a zero point, and clipped then.
    """
    element = scaled.element
    if not isinstance(element, IntegerElement):
        return element_format(scaled)
    if scaled.has_zero_point:
        return None
    whole_bits = element.precision - scaled.fraction_bits
    return FixedFormat(str(element), whole_bits, scaled.fraction_bits, overflow="saturate-symmetric")
