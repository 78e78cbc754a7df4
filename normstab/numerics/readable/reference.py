"""The readable meaning of rounding, in plain torch: slow, obvious, on every device.

Values are taken apart and put together by integer bit operations, so that flush-to-zero cannot act. The
kernels must equal this file bit for bit, counters included. It does not dispatch, and it keeps no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from normstab.numerics.formats import AnyFormat, FixedFormat, Format
from normstab.numerics.precision import Rounding

__all__ = ["Decoded", "Layout", "Rounded", "contains", "decode", "holds", "layout", "round_reference"]

FRACTION_BITS, BIAS, EXPONENT_CODES = 52, 1023, 2047  # of binary64
LARGEST_SHIFT = 62


class Layout(NamedTuple):
    """The bits of a torch dtype: its integer view, fraction bits, exponent bias and canonical NaN."""

    integer: torch.dtype
    fraction_bits: int
    bias: int
    nan: int

    @property
    def emin(self) -> int:
        """The least exponent of a normal value."""
        return 1 - self.bias


LAYOUTS = {
    torch.float16: Layout(torch.int16, 10, 15, 0x7E00),
    torch.bfloat16: Layout(torch.int16, 7, 127, 0x7FC0),
    torch.float32: Layout(torch.int32, 23, 127, 0x7FC00000),
    torch.float64: Layout(torch.int64, 52, 1023, 0x7FF8000000000000),
}


def layout(dtype: torch.dtype) -> Layout:
    """Return the bit layout of a floating-point dtype."""
    return LAYOUTS[dtype]


class Decoded(NamedTuple):
    """|x| = significand 2^(exponent - 52), the significand in [2^52, 2^53) or 0; and the classes of x."""

    is_negative: Tensor
    significand: Tensor
    exponent: Tensor
    is_inf: Tensor
    is_nan: Tensor


def decode(x: Tensor) -> Decoded:
    """Take `x` apart by the bits of its own dtype; `exponent` is floor(log2 |x|)."""
    bits_of = layout(x.dtype)
    codes = 2 * bits_of.bias + 1
    bits = x.contiguous().view(bits_of.integer).to(torch.int64)
    fraction = bits & ((1 << bits_of.fraction_bits) - 1)
    code = (bits >> bits_of.fraction_bits) & codes
    is_special = code == codes
    # A whole number below 2^52 converts to float64 exactly and as a normal: its exponent is its bit length.
    length = ((fraction.to(torch.float64).view(torch.int64) >> FRACTION_BITS) & EXPONENT_CODES) - BIAS
    is_subnormal = (code == 0) & (fraction != 0)
    significand = torch.where(is_subnormal, fraction, fraction + (1 << bits_of.fraction_bits))
    top_bit = torch.where(is_subnormal, length, bits_of.fraction_bits)
    exponent = torch.where(is_subnormal, bits_of.emin - bits_of.fraction_bits + length, code - bits_of.bias)
    is_absent = is_special | ((code == 0) & (fraction == 0))
    significand = torch.where(is_absent, 0, significand << (FRACTION_BITS - top_bit))
    return Decoded(bits < 0, significand, exponent, is_special & (fraction == 0), is_special & (fraction != 0))


@dataclass(frozen=True)
class Rounded:
    """A rounded tensor and, element by element, what happened."""

    value: Tensor
    exact: Decoded
    overflow: Tensor
    saturated: Tensor
    is_subnormal: Tensor
    is_zero: Tensor
    is_inf: Tensor
    is_nan: Tensor
    is_inexact: Tensor


def contains(format: AnyFormat, dtype: torch.dtype) -> bool:
    """Whether every value of `dtype`, infinities and -0 among them, is in `format`, so that a cast copies."""
    bits_of = layout(dtype)
    if isinstance(format, FixedFormat) or format.overflow != "inf" or not format.has_negative_zero:
        return False
    least = 2.0 ** (bits_of.emin - bits_of.fraction_bits)
    return (
        format.precision > bits_of.fraction_bits
        and format.min_subnormal <= least
        and format.max >= torch.finfo(dtype).max
    )


def holds(dtype: torch.dtype, format: AnyFormat) -> bool:
    """Whether `dtype` has every finite value of `format`."""
    bits_of = layout(dtype)
    least = 2.0 ** (bits_of.emin - bits_of.fraction_bits)
    return (
        (format.fits_float32 or dtype == torch.float64)
        and format.precision <= bits_of.fraction_bits + 1
        and format.min_subnormal >= least
        and format.max <= torch.finfo(dtype).max
    )


def round_reference(x: Tensor, format: AnyFormat, rounding: Rounding, *, fields: Tensor | None = None) -> Rounded:
    """Round `x` to `format`; `fields` holds U of each element for stochastic rounding.

    Source: IEEE 754-2019 clauses 4.3 (directions) and 7.4 (overflow), the exponent unbounded above.
    """
    exact = decode(x)
    quantum = _quantum_exponent(exact.exponent, format)
    shift = quantum - exact.exponent + FRACTION_BITS
    # A negative shift occurs in fixed point only, for magnitudes far beyond its range.
    step_shift = shift.clamp(0, LARGEST_SHIFT)
    whole = exact.significand >> step_shift
    rest = exact.significand - (whole << step_shift)
    away = _rounds_away(whole, rest, shift.clamp(min=0), exact.is_negative, rounding, fields)
    magnitude = torch.where(shift < 0, exact.significand, whole + away.to(torch.int64))
    value = magnitude.to(torch.float64) * power_of_two(torch.where(shift < 0, exact.exponent - FRACTION_BITS, quantum))
    value = torch.where(exact.significand == 0, 0.0, value)
    if isinstance(format, Format) and not format.has_subnormals:
        value = torch.where(value < format.min_normal, 0.0, value)
    return _finish(x, exact, value, rest > 0, format, rounding)


def _quantum_exponent(exponent: Tensor, format: AnyFormat) -> Tensor:
    """Return log2 of the quantum of a value with floor(log2 |x|) = `exponent`."""
    if isinstance(format, FixedFormat):
        return torch.full_like(exponent, -format.fraction_bits)
    return exponent.clamp(min=format.emin) - format.precision + 1


def _rounds_away(
    whole: Tensor, rest: Tensor, shift: Tensor, is_negative: Tensor, rounding: Rounding, fields: Tensor | None
) -> Tensor:
    """Whether |x| = (whole + rest / 2^shift) quanta is rounded away from zero."""
    is_odd = (whole & 1) == 1
    # 2 rest >= 2^shift, without forming a power beyond 62 bits: rest < 2^53.
    half = torch.ones_like(rest) << (shift.clamp(1, LARGEST_SHIFT) - 1)
    is_past_half, is_tie = (rest > half) & (shift > 0), (rest == half) & (shift > 0)
    match rounding.mode:
        case "nearest":
            return is_past_half | (is_tie & is_odd)
        case "nearest-away":
            return is_past_half | is_tie
        case "half-toward-zero":
            return is_past_half
        case "half-up":
            return is_past_half | (is_tie & ~is_negative)
        case "half-down":
            return is_past_half | (is_tie & is_negative)
        case "toward-zero":
            return torch.zeros_like(is_odd)
        case "up":
            return (rest > 0) & ~is_negative
        case "down":
            return (rest > 0) & is_negative
        case "to-odd":
            return (rest > 0) & ~is_odd
    assert fields is not None, "stochastic rounding needs random fields"
    bits = rounding.bits
    widened = rest << (bits - shift).clamp(0, bits)
    dropped = (shift - bits).clamp(0, LARGEST_SHIFT)
    threshold = torch.where(shift <= bits, widened, rest >> dropped)
    if rounding.is_unbiased:
        threshold = threshold + _rounds_up_to_even(threshold, rest - (threshold << dropped), dropped)
    return threshold + fields >= (1 << bits)


def _rounds_up_to_even(whole: Tensor, rest: Tensor, dropped: Tensor) -> Tensor:
    """Return 1 where whole + rest / 2^dropped is nearer to whole + 1, or as near and `whole` is odd; else 0."""
    half = torch.ones_like(rest) << (dropped - 1).clamp(min=0)
    return ((dropped > 0) & ((rest > half) | ((rest == half) & (whole & 1 == 1)))).to(torch.int64)


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent as float64, for exponents -1074 .. 1023, put together from bits."""
    normal = (exponent.clamp(1 - BIAS, BIAS) + BIAS) << FRACTION_BITS
    subnormal = torch.ones_like(exponent) << (exponent + BIAS + FRACTION_BITS - 1).clamp(0, FRACTION_BITS)
    return torch.where(exponent >= 1 - BIAS, normal, subnormal).view(torch.float64)


def _finish(
    x: Tensor, exact: Decoded, magnitude: Tensor, is_off_grid: Tensor, format: AnyFormat, rounding: Rounding
) -> Rounded:
    """Apply sign, range and special values to the rounded `magnitude` (float64); say what happened."""
    is_finite = ~(exact.is_inf | exact.is_nan)
    signed = torch.where(exact.is_negative, -magnitude, magnitude)
    least = format.min if isinstance(format, FixedFormat) else -format.max
    is_beyond = is_finite & ((signed > format.max) | (signed < least))
    lowest = torch.full((), least, dtype=torch.float64, device=x.device)
    end = torch.where(exact.is_negative, lowest, format.max)
    beyond = _beyond_range(signed, end, exact.is_negative, format, rounding)
    value = torch.where(is_beyond, beyond, signed)
    infinity = torch.where(exact.is_negative, -torch.inf, torch.inf).to(torch.float64)
    of_infinity = {"inf": infinity, "saturate": end, "saturate-symmetric": end, "saturate-zero": torch.zeros_like(end)}
    instead = of_infinity.get(format.overflow, torch.full_like(infinity, torch.nan))
    value = torch.where(exact.is_inf, instead, value)
    value = torch.where(exact.is_nan, torch.nan, value)
    if isinstance(format, FixedFormat) or not format.has_negative_zero:
        value = torch.where(value == 0, 0.0, value)
    is_copied = contains(format, x.dtype)
    min_normal = 0.0 if isinstance(format, FixedFormat) else format.min_normal
    saturates = format.overflow in ("saturate", "saturate-symmetric")
    return Rounded(
        value=x.clone() if is_copied else encode(value, x.dtype).view(x.shape),
        exact=exact,
        overflow=is_beyond,
        saturated=(is_beyond | exact.is_inf) & saturates,
        is_subnormal=(value != 0) & (value.abs() < min_normal),
        is_zero=value == 0,
        is_inf=value.isinf(),
        is_nan=value.isnan(),
        is_inexact=is_finite & (is_off_grid | is_beyond | ((value == 0) & (exact.significand != 0))),
    )


def _beyond_range(signed: Tensor, end: Tensor, is_negative: Tensor, format: AnyFormat, rounding: Rounding) -> Tensor:
    """Return what a finite result beyond the range becomes, by the overflow policy and the direction."""
    if format.overflow in ("saturate", "saturate-symmetric"):
        return end
    if format.overflow == "saturate-zero":
        return torch.zeros_like(end)
    if isinstance(format, FixedFormat):
        return _wrapped(signed, format)
    towards_zero = {
        "toward-zero": torch.ones_like(is_negative),
        "to-odd": torch.ones_like(is_negative),
        "up": is_negative,
        "down": ~is_negative,
    }.get(rounding.mode, torch.zeros_like(is_negative))
    infinity = torch.where(is_negative, -torch.inf, torch.inf).to(torch.float64)
    over = infinity if format.overflow == "inf" else torch.full_like(infinity, torch.nan)
    return torch.where(towards_zero, end, over)


def _wrapped(value: Tensor, format: FixedFormat) -> Tensor:
    """Return `value`, a whole number of quanta, modulo the range (two's complement, or unsigned)."""
    span = 2.0 ** (format.integer_bits + int(format.is_signed))
    rest = torch.fmod(value, span)
    rest = torch.where(rest > format.max, rest - span, rest)
    return torch.where(rest < format.min, rest + span, rest)


def encode(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float64 `value`, all of whose elements `dtype` can represent, as `dtype`, by bits.

    Every NaN is the canonical one.
    """
    bits_of = layout(dtype)
    bits = value.view(torch.int64)
    if dtype != torch.float64:
        code = (bits >> FRACTION_BITS) & EXPONENT_CODES
        fraction = bits & ((1 << FRACTION_BITS) - 1)
        drop = FRACTION_BITS - bits_of.fraction_bits
        normal = ((code - BIAS + bits_of.bias) << bits_of.fraction_bits) | (fraction >> drop)
        below = (bits_of.emin - (code - BIAS)).clamp(0, bits_of.fraction_bits + 1)
        subnormal = (fraction + (1 << FRACTION_BITS)) >> (drop + below)
        magnitude = torch.where(code - BIAS >= bits_of.emin, normal, subnormal)
        magnitude = torch.where(code == 0, 0, magnitude)
        infinity = (2 * bits_of.bias + 1) << bits_of.fraction_bits
        magnitude = torch.where(code == EXPONENT_CODES, infinity, magnitude)
        width = torch.iinfo(bits_of.integer).bits
        bits = torch.where(bits < 0, magnitude - (1 << (width - 1)), magnitude)
    bits = torch.where(value.isnan(), bits_of.nan, bits)
    return bits.to(bits_of.integer).view(dtype)
