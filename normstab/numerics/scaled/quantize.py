"""`quantize`: bring a tensor to a scaled format: values, scales, codes. The readable meaning, in plain torch.

`quantize_operand` is the same for a product's operand at a site of an arithmetic. What a scale is, is in `scales`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from normstab.errors import DtypeError, NormstabError
from normstab.numerics.call import Call
from normstab.numerics.dispatch import kernels_for
from normstab.numerics.execute import fields_of
from normstab.numerics.formats import FORMATS, AnyFormat, FixedFormat, Format
from normstab.numerics.ledger import COUNTERS, Ledger, Row, Site
from normstab.numerics.philox import Key, signed_step
from normstab.numerics.precision import Precision
from normstab.numerics.readable.event_counts import count
from normstab.numerics.readable.operations import Carried, carry, widened
from normstab.numerics.readable.reference import LAYOUTS, Rounded, encode, round_reference
from normstab.numerics.recipes import RECIPES
from normstab.numerics.rounding_modes import NEAREST, Rounding
from normstab.numerics.scaled.codes import codes_of, numbers_of
from normstab.numerics.scaled.granule_counts import GranuleCounts, Squares
from normstab.numerics.scaled.granules import amax_of, extents_of, spread
from normstab.numerics.scaled.scaled_format import IntegerElement, Scaled
from normstab.numerics.scaled.scales import Scales, affine_scales, scales_of
from normstab.numerics.spelling.arguments import check_optional, whole
from normstab.numerics.spelling.names import check_name
from normstab.numerics.tallies.counter_row import COUNTING

__all__ = [
    "Quantized",
    "dequantize",
    "largest_magnitude",
    "quantize",
    "quantize_operand",
    "quantize_readably",
    "scaled_format",
]

# By what a quotient is divided where its scale vanished, so that it is flushed and keeps its sign.
FLUSHING = 2.0**1000


class Quantized(NamedTuple):
    """A tensor in a scaled format.

    `values` has the dtype and shape of the tensor. `scales`, float32, has one number per granule: the granule's
    axes are reduced to their number of granules; with two scales it is their product. `codes` are the
    elements' bit patterns: uint8, int8 for whole numbers and fixed point, int32 for elements beyond 8 bits.
    """

    values: Tensor
    scales: Tensor
    codes: Tensor


def quantize(
    x: Tensor,
    format: str | Scaled | AnyFormat,
    axis: int = -1,
    *,
    rounding: str | Rounding = "nearest",
    key: Key | None = None,
    ledger: Ledger | None = None,
    site: str = "",
) -> Quantized:
    """Return `x` in the scaled `format`, or in that of a recipe's operands: values, scales and codes.

    `axis` is the contracted one, along which a row or block shares its scale. `rounding` holds where the
    format names none; `key` names the random bits of stochastic rounding. What was destroyed is added to
    `ledger` at `site.quantize[forward]`: saturated, underflow (flushed), zero and dead granules, the spread of scales.

    A granule with a NaN or an infinity becomes NaN, its scale too (OCP MX 1.0, 5.2); one of zeros has scale 1. Zero
    keeps its sign in a floating-point element. Raises DtypeError unless `x` is floating point, and NormstabError
    for an unknown format or recipe, a missing key, and a scale from a history (`delayedH`).
    """
    scaled = scaled_format(format)
    if not isinstance(x, Tensor) or x.dtype not in LAYOUTS:
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise DtypeError(f"quantize takes a float16, bfloat16, float32 or float64 tensor, found {found}")
    if scaled.granule == "delayed":
        raise NormstabError(f"{scaled}: a scale from earlier steps needs their history; quantize has one tensor")
    check_optional(key, Key, "quantize: key", "a normstab.Key, as Key(seed=0)")
    check_optional(ledger, Ledger, "quantize: ledger", "a normstab.Ledger")
    site, axis = check_name(site, "quantize: site"), whole(axis, "quantize: axis")
    mode = Rounding.parse(rounding) if scaled.rounding is None else scaled.rounding
    if mode.is_stochastic and key is None:
        raise NormstabError(f"rounding {mode} needs a key: quantize(..., key=normstab.Key(seed=0, site='fc1', step=0))")
    draw = key.draw if key is not None and mode.is_stochastic else None
    call = Call(FORMATS["fp32"], mode, draw=draw)
    if ledger is not None:
        row, step = ledger.row(Site(site, "quantize")), signed_step(key.step) if key is not None else 0
        call = Call(FORMATS["fp32"], mode, row, ledger.stamp(), step, draw, ledger.counts_inexact)
    return quantize_operand(x.detach(), scaled, call, axis=axis)


def scaled_format(text: str | Scaled | AnyFormat) -> Scaled:
    """Return the scaled format that `text` names, where `int8` is the element and `mxfp8` a recipe's input operand."""
    if isinstance(text, str) and (name := text.strip().lower()) in RECIPES and name != "int8":
        operand = Precision.parse(name).operand_input
        if operand is None:
            raise NormstabError(f"recipe {name!r} has no scaled operands: {RECIPES[name].precision}")
        return operand
    return Scaled.parse(text)


def largest_magnitude(x: Tensor) -> float:
    """Return the largest magnitude of `x` in float32, as a history of scales keeps it."""
    return float(x.detach().abs().amax().to(torch.float32)) if x.numel() else 0.0


def quantize_operand(x: Tensor, scaled: Scaled, call: Call, *, axis: int = -1, amax: float | None = None) -> Quantized:
    """Return `x` in `scaled`, rounded, counted and keyed as `call` says (its format does not matter).

    `amax` is the largest magnitude that the scale of `delayedH` follows from: that of earlier steps.
    """
    extents_of(x.shape, scaled, axis)  # which refuses an axis that is not there
    if x.numel() == 0:
        no_scales = torch.ones([min(size, 1) for size in x.shape], dtype=torch.float32)
        return Quantized(x.clone(), no_scales, codes_of(widened(x), scaled))
    if amax is None and x.device.type == "cpu" and kernels_for(x) is not None:
        from normstab.numerics.kernels.cpu.granules.cpu_quantize import quantize_rows  # needs numba

        if (found := quantize_rows(x, scaled, axis, call)) is not None:
            return Quantized(*found)
    return quantize_readably(x, scaled, call, axis=axis, amax=amax)


def quantize_readably(x: Tensor, scaled: Scaled, call: Call, *, axis: int = -1, amax: float | None = None) -> Quantized:
    """Return what quantize_operand does, in plain torch: the oracle of its kernels."""
    extents = extents_of(x.shape, scaled, axis)
    scales = _scales(x, scaled, extents, amax)
    per_element = spread(scales.value, x.shape, extents)
    zero_point = None if scales.zero_point is None else spread(scales.zero_point, x.shape, extents)
    numbers, rounded, carried = _numbers(x, per_element, zero_point, scaled, call)
    stood_for = numbers if zero_point is None else numbers - zero_point
    values = round_reference(per_element * stood_for, FORMATS["fp32"], NEAREST).value
    values = encode(values, torch.float32).view(x.shape).to(x.dtype)
    if call.row is not None:
        _count(call, rounded, carried, scales.saturated)
        _count_granules(call.row, _Losses(x, values, stood_for, scales, extents))
    return Quantized(values, encode(scales.value, torch.float32).view(scales.value.shape), codes_of(numbers, scaled))


def dequantize(quantized: Quantized, scaled: Scaled, *, axis: int = -1) -> Tensor:
    """Return the values (float32) that codes and scales alone stand for; +zero formats need their zero points."""
    extents = extents_of(quantized.codes.shape, scaled, axis)
    per_element = spread(widened(quantized.scales), quantized.codes.shape, extents)
    value = per_element * numbers_of(quantized.codes, scaled)
    return encode(round_reference(value, FORMATS["fp32"], NEAREST).value, torch.float32).view(value.shape)


def _scales(x: Tensor, scaled: Scaled, extents: tuple[int, ...], amax: float | None) -> Scales:
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


def _numbers(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, scaled: Scaled, call: Call
) -> tuple[Tensor, Rounded, Carried]:
    """Return x / scale in the element's numbers (float64; with the zero point added), and what happened."""
    carried = carry("div", (x, torch.where(scale == 0, FLUSHING, scale)))
    fields = fields_of(x.shape, call, x.device)
    rounded = round_reference(carried.value, _format_of(scaled), call.rounding, fields=fields)
    if not isinstance(scaled.element, IntegerElement):
        return rounded.value, rounded, carried
    # intN gives up the least two's complement code, or, with a zero point, moves its range.
    shift = 0.0 if zero_point is None else zero_point
    greatest = float(scaled.largest)
    least = -greatest if zero_point is None else -greatest - 1
    moved = rounded.value + shift
    numbers = moved.clamp(least, greatest)
    is_beyond = moved != numbers
    is_beyond &= ~moved.isnan()
    return (
        numbers,
        replace(
            rounded,
            value=numbers,
            overflow=rounded.overflow | is_beyond,
            saturated=rounded.saturated | is_beyond,
            is_inexact=rounded.is_inexact | is_beyond,
        ),
        carried,
    )


def _format_of(scaled: Scaled) -> AnyFormat:
    """Return the element as a format that saturates; intN is fixed point, wider where a zero point follows."""
    element = scaled.element
    if isinstance(element, IntegerElement):
        whole_bits = element.precision - scaled.fraction_bits + (2 if scaled.has_zero_point else 0)
        return FixedFormat(str(element), whole_bits, scaled.fraction_bits)
    if isinstance(element, Format) and not element.fits_float32:
        raise NormstabError(f"{scaled}: an element is a format whose numbers float32 holds")
    return replace(element, overflow="saturate")


def _count(call: Call, rounded: Rounded, carried: Carried, saturated_scales: int) -> None:
    """Add what happened to the elements, and how many scales saturated, to the row of `call`."""
    assert call.row is not None
    found = count(rounded, operand_nan=carried.operand_nan, operand_inf=carried.operand_inf)
    found.counts[COUNTERS.index("saturated")] += saturated_scales
    if not call.inexact:
        found.counts[-1] = 0
    call.row.add(found.counts, found.largest, found.smallest, stamp=call.stamp, step=call.step)
    call.row.add_bins(found.histogram)


class _Losses(NamedTuple):
    """What the granules of one call lost: the tensor, its values, the elements' numbers, the scales."""

    x: Tensor
    values: Tensor
    numbers: Tensor
    scales: Scales
    extents: tuple[int, ...]


def _count_granules(row: Row, losses: _Losses) -> None:
    """Add zero and dead granules, the range of the scales, and, on request, squares to the row."""
    amax = amax_of(widened(losses.x).abs(), losses.extents)
    kept = amax_of(losses.numbers.abs(), losses.extents)
    is_used = amax.isfinite() & (amax != 0)
    used = losses.scales.value.expand(amax.shape)[is_used]
    used = used[used > 0]
    squares = None
    if row.counts_squares:
        error = (widened(losses.x) - widened(losses.values))[losses.x.isfinite() & losses.values.isfinite()]
        signal = widened(losses.x)[losses.x.isfinite() & losses.values.isfinite()]
        squares = Squares(float(error.square().sum()), float(signal.square().sum()), error.numel())
    found = GranuleCounts(
        zero_granules=int((amax == 0).sum()),
        dead_granules=int((is_used & (kept == 0)).sum()),
        largest_scale=float(used.max()) if used.numel() else 0.0,
        smallest_scale=float(used.min()) if used.numel() else float("inf"),
        squares=squares,
    )
    with COUNTING:
        row.granules = found if row.granules is None else row.granules + found
