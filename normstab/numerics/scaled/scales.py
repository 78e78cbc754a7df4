"""The scale of each granule from its largest magnitude, by the rule of a scaled format.

Scales are worked out in float64 from exactly widened numbers, each rounding done once by the readable reference.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from normstab.numerics.formats import FORMATS, Format
from normstab.numerics.readable.operations import widened
from normstab.numerics.readable.reference import decode, encode, power_of_two, round_reference
from normstab.numerics.rounding_modes import NEAREST
from normstab.numerics.scaled.granules import amax_of
from normstab.numerics.scaled.scaled_format import IntegerElement, Scaled

__all__ = ["Scales", "affine_scales", "scales_of", "tensor_scales"]

FP32 = FORMATS["fp32"]
# Powers of two that a scale may be. Source: OCP MX 1.0, 5.4.1 (e8m0); float32's for the others.
E8M0_RANGE, FP32_RANGE = (-127, 127), (-149, 127)
ANY_EXPONENT = 255


class Scales(NamedTuple):
    """One scale per granule, in float64 but a number of float32; the integer that stands for 0; how many saturated."""

    value: Tensor
    zero_point: Tensor | None
    saturated: int


def scales_of(amax: Tensor, scaled: Scaled) -> Scales:
    """Return the scales for the largest magnitudes `amax` (float32): 1 for zeros, NaN for a broken granule."""
    wide = widened(amax)
    is_whole, is_zero = wide.isfinite(), wide == 0
    safe = torch.where(is_whole & ~is_zero, wide, 1.0)
    saturated = torch.zeros_like(is_zero)
    if scaled.granule == "none":
        scale = torch.ones_like(safe)
    elif scaled.is_power_of_two:
        exponent = _exponent(safe, scaled)
        least, greatest = E8M0_RANGE if scaled.scale == "e8m0" else FP32_RANGE
        saturated = (exponent < least) | (exponent > greatest)
        scale = power_of_two(exponent.clamp(least, greatest))
    elif isinstance(scaled.scale, Format):
        scale, saturated = _two_scales(safe, is_whole & ~is_zero, scaled)
    else:
        scale = _to_fp32(safe / scaled.largest)
    scale = torch.where(is_zero, 1.0, scale)
    scale = torch.where(is_whole, scale, torch.nan)
    return Scales(scale, None, int((saturated & is_whole & ~is_zero).sum()))


def affine_scales(low: Tensor, high: Tensor, bits: int) -> Scales:
    """Return scales (high - low) / (2^N - 1) and the zero points of granules whose values reach from low to high."""
    low, high = widened(low), widened(high)
    # NaN and infinity, whichever end they are at, break the granule.
    is_whole = low.isfinite() & high.isfinite()
    low, high = torch.where(is_whole, low, 0.0), torch.where(is_whole, high, 0.0)
    width = _to_fp32(high - low)
    scale = _to_fp32(torch.where(width == 0, 1.0, width / (2**bits - 1)))
    least, greatest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    zero_point = (least - torch.round(low / torch.where(scale == 0, 1.0, scale))).clamp(least, greatest)
    return Scales(torch.where(is_whole, scale, torch.nan), zero_point, 0)


def _to_fp32(x: Tensor) -> Tensor:
    """Return float64 `x` rounded to float32, still as float64."""
    return round_reference(x, FP32, NEAREST).value


def _exponent(amax: Tensor, scaled: Scaled) -> Tensor:
    """Return log2 of the scale, for positive finite `amax`.

    Source: OCP MX 1.0, 6.3 (floor); torchao, ScaleCalculationMode (ceil, even, rceil).
    """
    if scaled.rule == "even":
        digits = Format("", scaled.element.precision, -ANY_EXPONENT, ANY_EXPONENT, 2.0**ANY_EXPONENT)
        amax = round_reference(amax, digits, NEAREST).value
    found = decode(amax)
    if scaled.rule in ("floor", "even"):
        return found.exponent - scaled.emax
    if scaled.rule == "ceil":
        largest = decode(torch.full((), scaled.largest, dtype=torch.float64, device=amax.device))
        return found.exponent - largest.exponent + (found.significand > largest.significand).to(torch.int64)
    quotient = decode(_to_fp32(amax / scaled.largest))
    return quotient.exponent + (quotient.significand > 1 << 52).to(torch.int64)


def _two_scales(amax: Tensor, counts: Tensor, scaled: Scaled) -> tuple[Tensor, Tensor]:
    """Return the product t s of tensor scale and granule scale, and where s saturated.

    Source: NVFP4 training, arXiv 2509.25149, and torchao's nvfp4_quantize, which multiplies the scales first.
    """
    assert isinstance(scaled.scale, Format)
    largest_scale = scaled.scale.max
    of_tensor = torch.where(counts, amax, 0.0).amax() if amax.numel() else amax.new_ones(())
    tensor_scale = _to_fp32(of_tensor / (scaled.largest * largest_scale)) if amax.numel() else of_tensor
    tensor_scale = torch.where(tensor_scale == 0, 1.0, tensor_scale)
    quotient = _to_fp32(amax / _to_fp32(scaled.largest * tensor_scale))
    rounded = round_reference(quotient, replace(scaled.scale, overflow="saturate"), NEAREST)
    return _to_fp32(tensor_scale * rounded.value), rounded.saturated


def tensor_scales(x: Tensor, scaled: Scaled, extents: tuple[int, ...], amax: float | None) -> Scales:
    """Return the scale of each granule of `x`."""
    wide = x.dtype == torch.float64
    narrow = encode(round_reference(x, FORMATS["fp32"], NEAREST).value, torch.float32) if wide else x.to(torch.float32)
    # Magnitudes are compared as whole numbers, with which flush-to-zero does not meddle; NaN is the greatest.
    bits = narrow.contiguous().view(torch.int32).view(x.shape)
    magnitude = bits & 0x7FFFFFFF
    if scaled.has_zero_point:
        assert isinstance(scaled.element, IntegerElement)
        # Zero is within every granule's range, so that it has a code of its own.
        low, high = (amax_of(torch.where(side, magnitude, 0), extents) for side in (bits < 0, bits >= 0))
        return affine_scales(-low.view(torch.float32), high.view(torch.float32), scaled.element.bits)
    if amax is None:
        return scales_of(amax_of(magnitude, extents).contiguous().view(torch.float32), scaled)
    return scales_of(torch.full([1] * x.dim(), amax, dtype=torch.float32, device=x.device), scaled)
