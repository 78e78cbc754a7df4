"""Bit patterns of the numbers of an element format, and back.

Floating-point patterns are sign, exponent, fraction, in the format's own width; whole numbers and fixed point are
two's complement. Nothing here rounds: what comes in is a number of the element.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normstab.numerics.formats import FixedFormat, Format
from normstab.numerics.readable.reference import decode, power_of_two
from normstab.numerics.scaled.scaled_format import Scaled

__all__ = ["codes_of", "nan_code", "numbers_of", "width_of"]

FRACTION_BITS = 52  # of binary64


def exponent_bits(format: Format) -> int:
    """Return how many bits the exponents take: one code is zero's, one infinity's where there is one."""
    codes = format.emax - format.emin + 2 + (format.overflow == "inf")
    return (codes - 1).bit_length()


def width_of(scaled: Scaled) -> int:
    """Return how many bits a code of the element has."""
    element = scaled.element
    if isinstance(element, Format):
        return 1 + exponent_bits(element) + element.precision - 1
    return 1 + element.precision


def codes_of(numbers: Tensor, scaled: Scaled) -> Tensor:
    """Return the patterns of `numbers` (float64): uint8, wider where the element is; int8 and wider for whole ones.

    NaN is the format's own, or 0 where it has none.
    """
    element, width = scaled.element, width_of(scaled)
    if not isinstance(element, Format):
        point = element.fraction_bits if isinstance(element, FixedFormat) else scaled.fraction_bits
        whole = torch.where(numbers.isnan(), 0.0, numbers) * 2.0**point
        return whole.to(torch.int8 if width <= 8 else torch.int32)
    parts, p = decode(numbers), element.precision
    is_normal = parts.exponent >= element.emin
    drop = FRACTION_BITS - p + 1 + (element.emin - parts.exponent).clamp(0, FRACTION_BITS + 1)
    fraction = (parts.significand >> drop.clamp(max=62)) & ((1 << (p - 1)) - 1)
    code = torch.where(is_normal, (parts.exponent - element.emin + 1) << (p - 1), 0) | fraction
    code = torch.where(parts.significand == 0, 0, code)
    top = ((1 << exponent_bits(element)) - 1) << (p - 1)
    if element.overflow == "inf":
        code = torch.where(parts.is_inf, top, code)
    sign = torch.where(numbers.signbit(), 1 << (width - 1), 0)
    code = torch.where(parts.is_nan, nan_code(element, width), code | sign)
    return code.to(torch.uint8 if width <= 8 else torch.int32)


def nan_code(format: Format, width: int) -> int:
    """Return the pattern of the canonical NaN: the quiet one, -0's, or all ones; 0 where every pattern is a number."""
    p, all_ones = format.precision, (1 << (width - 1)) - 1
    if format.overflow == "inf":
        return (((1 << exponent_bits(format)) - 1) << (p - 1)) | (1 << max(p - 2, 0))
    if not format.has_negative_zero:
        return 1 << (width - 1)
    largest = (
        ((format.emax - format.emin + 1) << (p - 1)) + int(format.max * 2.0 ** (p - 1 - format.emax)) - (1 << (p - 1))
    )
    return all_ones if largest < all_ones else 0


def numbers_of(codes: Tensor, scaled: Scaled) -> Tensor:
    """Return the numbers (float64) that finite `codes` are the patterns of: the inverse of `codes_of`."""
    element, width = scaled.element, width_of(scaled)
    if not isinstance(element, Format):
        point = element.fraction_bits if isinstance(element, FixedFormat) else scaled.fraction_bits
        return codes.to(torch.float64) * 2.0**-point
    code, p = codes.to(torch.int64), element.precision
    magnitude = code & ((1 << (width - 1)) - 1)
    exponent, fraction = magnitude >> (p - 1), magnitude & ((1 << (p - 1)) - 1)
    significand = torch.where(exponent > 0, fraction + (1 << (p - 1)), fraction)
    value = significand.to(torch.float64) * power_of_two(exponent.clamp(min=1) - 1 + element.emin - p + 1)
    return torch.where(code >> (width - 1) > 0, -value, value)
