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
from normstab.numerics.dispatch import later_for
from normstab.numerics.execute import fields_of
from normstab.numerics.formats import FORMATS, AnyFormat
from normstab.numerics.ledger import COUNTERS, Ledger, Site
from normstab.numerics.philox import Key, signed_step
from normstab.numerics.precision import Precision
from normstab.numerics.readable.event_counts import count
from normstab.numerics.readable.operations import Carried, carry, widened
from normstab.numerics.readable.reference import LAYOUTS, Rounded, encode, round_reference
from normstab.numerics.recipes import RECIPES
from normstab.numerics.rounding_modes import NEAREST, Rounding
from normstab.numerics.scaled.by_parts import quantize_by_parts
from normstab.numerics.scaled.codes import codes_of, numbers_of
from normstab.numerics.scaled.element_formats import element_format
from normstab.numerics.scaled.granule_losses import GranuleLosses, count_granules
from normstab.numerics.scaled.granules import extents_of, spread
from normstab.numerics.scaled.scaled_format import IntegerElement, Scaled
from normstab.numerics.scaled.scales import tensor_scales
from normstab.numerics.spelling.arguments import check_optional, whole
from normstab.numerics.spelling.names import check_name
from normstab.numerics.sums.kernels_of_sums import kernels_for

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


def largest_magnitude(x: Tensor) -> float | Tensor:
    """Return the largest magnitude of `x` in float32, as a history keeps it: a tensor where nobody waits for `x`."""
    if x.numel() == 0:
        return 0.0
    found = x.detach().abs().amax().to(torch.float32)
    return float(found) if later_for(x) is None else found


def quantize_operand(
    x: Tensor,
    scaled: Scaled,
    call: Call,
    *,
    axis: int = -1,
    amax: float | Tensor | None = None,
    with_codes: bool = True,
) -> Quantized:
    """Return `x` in `scaled`, rounded, counted and keyed as `call` says (its format does not matter).

    `amax` is the largest magnitude that the scale of `delayedH` follows from: that of earlier steps. Without
    `with_codes` codes that take time of their own are left out, an empty tensor.
    """
    extents_of(x.shape, scaled, axis)  # which refuses an axis that is not there
    if x.numel() == 0:
        no_scales = torch.ones([min(size, 1) for size in x.shape], dtype=torch.float32)
        return Quantized(x.clone(), no_scales, codes_of(widened(x), scaled))
    is_of_device = isinstance(amax, Tensor)
    kernels = kernels_for(x, None, "quantize") if amax is None or is_of_device else None
    of_earlier = (amax,) if is_of_device else ()
    if kernels is not None and (found := kernels.quantize_rows(x, scaled, axis, call, *of_earlier)) is not None:
        return Quantized(*found)
    amax = float(amax) if isinstance(amax, Tensor) else amax
    if (found := quantize_by_parts(x, scaled, call, axis=axis, amax=amax, with_codes=with_codes)) is not None:
        return Quantized(*found)
    return quantize_readably(x, scaled, call, axis=axis, amax=amax)


def quantize_readably(x: Tensor, scaled: Scaled, call: Call, *, axis: int = -1, amax: float | None = None) -> Quantized:
    """Return what quantize_operand does, in plain torch: the oracle of its kernels."""
    extents = extents_of(x.shape, scaled, axis)
    scales = tensor_scales(x, scaled, extents, amax)
    per_element = spread(scales.value, x.shape, extents)
    zero_point = None if scales.zero_point is None else spread(scales.zero_point, x.shape, extents)
    numbers, rounded, carried = _numbers(x, per_element, zero_point, scaled, call)
    stood_for = numbers if zero_point is None else numbers - zero_point
    values = round_reference(per_element * stood_for, FORMATS["fp32"], NEAREST).value
    values = encode(values, torch.float32).view(x.shape).to(x.dtype)
    if call.row is not None:
        _count(call, rounded, carried, scales.saturated)
        count_granules(call.row, GranuleLosses(x, values, stood_for, scales, extents))
    return Quantized(values, encode(scales.value, torch.float32).view(scales.value.shape), codes_of(numbers, scaled))


def dequantize(quantized: Quantized, scaled: Scaled, *, axis: int = -1) -> Tensor:
    """Return the values (float32) that codes and scales alone stand for; +zero formats need their zero points."""
    extents = extents_of(quantized.codes.shape, scaled, axis)
    per_element = spread(widened(quantized.scales), quantized.codes.shape, extents)
    value = per_element * numbers_of(quantized.codes, scaled)
    return encode(round_reference(value, FORMATS["fp32"], NEAREST).value, torch.float32).view(value.shape)


def _numbers(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, scaled: Scaled, call: Call
) -> tuple[Tensor, Rounded, Carried]:
    """Return x / scale in the element's numbers (float64; with the zero point added), and what happened."""
    carried = carry("div", (x, torch.where(scale == 0, FLUSHING, scale)))
    fields = fields_of(x.shape, call, x.device)
    rounded = round_reference(carried.value, element_format(scaled), call.rounding, fields=fields)
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


def _count(call: Call, rounded: Rounded, carried: Carried, saturated_scales: int) -> None:
    """Add what happened to the elements, and how many scales saturated, to the row of `call`."""
    assert call.row is not None
    found = count(rounded, operand_nan=carried.operand_nan, operand_inf=carried.operand_inf)
    found.counts[COUNTERS.index("saturated")] += saturated_scales
    if not call.inexact:
        found.counts[-1] = 0
    call.row.add(found.counts, found.largest, found.smallest, stamp=call.stamp, step=call.step)
    call.row.add_bins(found.histogram)
