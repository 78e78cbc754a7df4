"""Scaled formats by the kernels of division and product: what no kernel of granules serves, in any rounding mode.

    x --> largest magnitudes, scales      by the kernel of granules, or else by the readable code
    x / scale, rounded and counted        a kernel of the device
    scale q, float32's own product        and the patterns of q, from its bits

With the bits and the counters of `quantize.quantize_readably`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.execute import compute
from normstab.numerics.formats import FORMATS, FixedFormat, Format
from normstab.numerics.rounding_modes import NEAREST
from normstab.numerics.scaled.codes import nan_code, width_of
from normstab.numerics.scaled.element_formats import symmetric_format
from normstab.numerics.scaled.granule_losses import GranuleLosses, count_granules
from normstab.numerics.scaled.granules import extents_of, spread
from normstab.numerics.scaled.scaled_format import Scaled
from normstab.numerics.scaled.scales import Scales, tensor_scales
from normstab.numerics.sums.kernels_of_sums import kernels_for
from normstab.numerics.tallies.counter_row import Row
from normstab.numerics.tallies.tally import COUNTERS

__all__ = ["quantize_by_parts"]

MAGNITUDE, INFINITE = 0x7FFFFFFF, 0x7F800000
NARROW = (torch.float16, torch.bfloat16, torch.float32)
# The modes in which what is far below a format's least number becomes zero, and the quotients by a scale of zero that
# were zero before: those are by 2^1000.
INWARD, LOST_ABOVE = ("nearest", "stochastic", "toward-zero"), 2.0**-75
# The least subnormal, which a processor that flushes makes zero.
LEAST = np.float32(1e-45)


def quantize_by_parts(
    x: Tensor, scaled: Scaled, call: Call, *, axis: int, amax: float | None, with_codes: bool = True
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return values, scales and codes of `x`, counted as `call` says; None where only the readable code serves."""
    element = symmetric_format(scaled)
    if element is None or x.device.type != "cpu" or x.dtype not in NARROW or width_of(scaled) > 8:
        return None
    if not LEAST * np.float32(1) > 0:
        return None
    extents = extents_of(x.shape, scaled, axis)
    scales = _scales(x, scaled, extents, axis, amax)
    narrow, divided, lost = scales.value.float(), x, None
    per_element = spread(narrow, x.shape, extents)
    if bool((narrow == 0).any()):
        if call.rounding.mode not in INWARD or (call.row is not None and call.row.has_histogram):
            return None
        # By a scale that vanished every number does, which is counted apart; what stays is its sign.
        is_lost = per_element == 0
        lost = is_lost & (x.abs() > LOST_ABOVE)
        divided = torch.where(is_lost, x * 0.0, x)
    divisor = per_element if lost is None else torch.where(per_element == 0, 1.0, per_element)
    numbers = compute("div", (divided, divisor), call._replace(format=element))
    values = torch.where(numbers.isnan(), torch.nan, per_element * numbers).to(x.dtype)
    if call.row is not None:
        _count(call, scales.saturated, 0 if lost is None else int(lost.sum()))
        count_granules(call.row, GranuleLosses(x, values, numbers, scales, extents))
    codes = patterns_of(numbers, scaled) if with_codes else numbers.new_empty(0, dtype=torch.uint8)
    return values, torch.where(narrow.isnan(), torch.nan, narrow), codes


def _scales(x: Tensor, scaled: Scaled, extents: tuple[int, ...], axis: int, amax: float | None) -> Scales:
    """Return the scale of each granule: by the kernel of granules, where it knows them."""
    row = Row(with_histogram=False)
    nearest = Call(FORMATS["fp32"], NEAREST, row)
    kernels = kernels_for(x, None, "quantize") if amax is None else None
    found = None if kernels is None else kernels.quantize_rows(x, scaled, axis, nearest)
    if found is None:
        return tensor_scales(x, scaled, extents, amax)
    counts = dict(zip(COUNTERS, row.counts.tolist(), strict=True))
    # Of elements as many saturate as overflow: the rest are scales.
    return Scales(found[1].double(), None, counts["saturated"] - counts["overflow"])


def _count(call: Call, saturated: int, lost: int) -> None:
    """Count scales that saturated, and elements that vanished with their scale: their quotients are below float32's."""
    assert call.row is not None
    counts = np.zeros(len(COUNTERS), np.int64)
    for name, count in (("saturated", saturated), ("underflow", lost), ("inexact", lost if call.inexact else 0)):
        counts[COUNTERS.index(name)] = count
    call.row.add(counts, 0.0, 0.0 if lost else float("inf"), stamp=call.stamp, step=call.step)


def patterns_of(numbers: Tensor, scaled: Scaled) -> Tensor:
    """Return `codes.codes_of` of float32 numbers of an element of at most 8 bits, from their bits."""
    element = scaled.element
    if not isinstance(element, Format):
        point = element.fraction_bits if isinstance(element, FixedFormat) else scaled.fraction_bits
        return (numbers.nan_to_num(0.0) * 2.0**point).to(torch.int8)
    p, width, biased = element.precision, width_of(scaled), element.emin + 127
    bits = numbers.view(torch.int32)
    magnitude = bits & MAGNITUDE
    # Adding the least normal number makes the bits below it those of a subnormal pattern.
    is_small = magnitude < biased << 23
    lifted = (magnitude.view(torch.float32) + 2.0**element.emin).view(torch.int32)
    code = (torch.where(is_small, lifted, magnitude) >> (24 - p)) - (biased << (p - 1))
    code += torch.where(is_small, 0, 1 << (p - 1))
    code |= torch.where(bits < 0, 1 << (width - 1), 0)
    return torch.where(magnitude > INFINITE, nan_code(element, width), code).to(torch.uint8)
