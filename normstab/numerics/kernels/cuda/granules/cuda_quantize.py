"""Scaled formats on a CUDA device: which are served, the launches, the counting after them. Importing needs Triton.

What it refuses (None) the readable reference computes. Nobody waits for the device. Under Triton's interpreter it
serves CPU tensors too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.formats import AnyFormat, FixedFormat, Format
from normstab.numerics.kernels.cuda.device_log import Cells, log_of
from normstab.numerics.kernels.cuda.float32_tensors import MOST_ELEMENTS, programs32, serves32, table32
from normstab.numerics.kernels.cuda.granules.granule_scales import NUMBERS, RULES
from normstab.numerics.kernels.cuda.granules.quantize32_kernel import (
    GIVEN,
    OWN,
    largest_kernel,
    quantize_kernel,
    scales_kernel,
)
from normstab.numerics.kernels.cuda.launches import INF32, add_found, value32
from normstab.numerics.rounding_modes import NEAREST
from normstab.numerics.scaled.codes import nan_code, width_of
from normstab.numerics.scaled.element_formats import symmetric_format
from normstab.numerics.scaled.granule_counts import GranuleCounts
from normstab.numerics.scaled.scaled_format import Scaled
from normstab.numerics.scaled.scales import E8M0_RANGE, FP32_RANGE
from normstab.numerics.tallies.counter_row import COUNTING
from normstab.numerics.tallies.repeats import Repeats
from normstab.numerics.tallies.tally import COUNTERS

__all__ = ["quantize_rows"]

TILE = 512  # places of a tile, few for each thread, for a division takes many registers
WARPS = {OWN: 8, GIVEN: 4}  # and the scales of a tile's own granules twice as many
LONGEST_OWN = 512  # a longer granule is worked on by several programs
WHOLE = ("tensor", "delayed")  # granules that are the tensor
NARROW = (torch.float16, torch.bfloat16, torch.float32)
SATURATED = COUNTERS.index("saturated")


class Tiling(NamedTuple):
    """How rows are cut: `granules` of `width` numbers, `per_row` in each row of `length`; of a long one, stretches."""

    granules: int
    length: int
    width: int
    per_row: int

    @staticmethod
    def of(count: int, length: int, width: int) -> Tiling:
        """Return how `count` numbers in rows of `length` are cut every `width`."""
        per_row = -(-length // width)
        return Tiling(count // length * per_row, length, width, per_row)

    @property
    def shape(self) -> dict[str, int]:
        """The shape of a tile: powers of two."""
        places = triton.next_power_of_2(self.width)
        return {"GRANULES": max(1, TILE // places), "WIDTH": places}

    def grid(self, device: torch.device) -> tuple[int]:
        """Return how many programs there are."""
        return programs32(-(-self.granules // self.shape["GRANULES"]), device, tile=1)


def quantize_rows(
    x: Tensor, scaled: Scaled, axis: int, call: Call, amax: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return values, scales and codes of `x`, counted as `call` says; None where the reference serves.

    `amax`, float32 without axes, is the magnitude of earlier steps that the one scale of `delayedH` follows from.
    """
    element = symmetric_format(scaled)
    if element is None or not _is_covered(x, scaled, call, element) or (amax is None) == (scaled.granule == "delayed"):
        return None
    moved = x.detach().movedim(axis, -1).to(torch.float32).contiguous()
    is_whole = scaled.granule in WHOLE
    length = moved.numel() if is_whole else moved.shape[-1]
    width = scaled.width if scaled.granule == "block" else length
    is_own = width <= LONGEST_OWN and amax is None
    found = _Found(moved, scaled, Tiling.of(moved.numel(), length, width if is_own else TILE), is_own=is_own)
    with torch.cuda.device_of(moved):
        found.compute(call, element, amax)
    scales = [*moved.shape[:-1], -(-length // width)] if not is_whole else [1] * x.dim()
    back = [each.movedim(-1, axis).contiguous() for each in (found.values, found.scales.view(scales), found.codes)]
    return back[0].to(x.dtype), back[1], back[2]


def _is_covered(x: Tensor, scaled: Scaled, call: Call, element: AnyFormat) -> bool:
    """Whether the kernels know this case."""
    row = call.row
    is_known = scaled.granule in ("row", "block") or (scaled.granule in WHOLE and not scaled.has_two_scales)
    is_known = is_known and width_of(scaled) <= 8 and serves32("div", call._replace(format=element))
    is_known = is_known and call.rounding == NEAREST and (row is None or not row.counts_squares)
    return is_known and x.dtype in NARROW and 0 < x.numel() <= MOST_ELEMENTS and x.dim() > 0


class _Found:
    """One tensor on its way: its memory, and how it is cut."""

    def __init__(self, x: Tensor, scaled: Scaled, tiling: Tiling, *, is_own: bool) -> None:
        self.x, self.scaled, self.tiling, self.is_own = x, scaled, tiling, is_own
        self.is_whole = scaled.granule in WHOLE
        self.values = torch.empty_like(x)
        dtype = torch.uint8 if isinstance(scaled.element, Format) else torch.int8
        self.codes = torch.empty(x.shape, dtype=dtype, device=x.device)
        count = tiling.granules if is_own else x.numel() // tiling.length
        self.scales = torch.empty(count, dtype=torch.float32, device=x.device)

    def compute(self, call: Call, element: AnyFormat, amax: Tensor | None) -> None:
        """Launch what finds scales and numbers, and have what it counts added to the row of `call`."""
        x, tiling, device, row = self.x, self.tiling, self.x.device, call.row
        table, style = table32(element, call.rounding, False, device)
        numbers, form = _constants(self.scaled, device)
        cells = None if row is None else log_of(device).borrow(2)
        counts, of_granules = (None, None) if cells is None else (cells.counts[0], cells.counts[1])
        options: dict[str, Any] = {"STYLE": style, "COUNTS": row is not None, "enable_fp_fusion": False}
        options["RULE"] = RULES["two scales" if self.scaled.has_two_scales else self.scaled.rule]
        tops = self._largest() if self.scaled.has_two_scales or not self.is_own else None
        scales = self.scales.view(torch.int32)
        if not self.is_own:
            n = len(scales)
            grid = (-(-n // TILE),)
            history = None if amax is None else amax.reshape(1).view(torch.int32)
            scales_kernel[grid](tops, history, scales, table, numbers, of_granules, n, BLOCK=TILE, **options)
        origin = OWN if self.is_own else GIVEN
        quantize_kernel[tiling.grid(device)](
            x.view(torch.int32), self.values.view(torch.int32), scales, self.codes.view(torch.int8), tops, table,
            numbers, form, counts, of_granules, *tiling,
            FROM=origin, num_warps=WARPS[origin], ROW_STEP=int(not self.is_whole), IS_FLOAT=isinstance(element, Format),
            **tiling.shape, **options,
        )  # fmt: skip
        if cells is not None:
            _settle(cells, call, x.numel())

    def _largest(self) -> Tensor:
        """Return the bits of the largest magnitude of each row; for two scales of all that is not broken."""
        is_one = self.scaled.has_two_scales or self.is_whole
        tops = torch.zeros(1 if is_one else len(self.scales), dtype=torch.int32, device=self.x.device)
        largest_kernel[self.tiling.grid(self.x.device)](
            self.x.view(torch.int32), tops, *self.tiling, WHOLE=is_one, SKIPS_BROKEN=self.scaled.has_two_scales,
            **self.tiling.shape,
        )  # fmt: skip
        return tops


@cache
def _constants(scaled: Scaled, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what the kernels know of scales (NUMBERS) and of codes, on a device."""
    least, greatest = E8M0_RANGE if scaled.scale == "e8m0" else FP32_RANGE
    of_scale = scaled.scale if isinstance(scaled.scale, Format) else None
    numbers: Mapping[str, int] = {
        "largest": _bits64(scaled.largest),
        "emax": scaled.emax,
        "precision": scaled.element.precision,
        "least_exponent": least,
        "greatest_exponent": greatest,
        "scale_precision": of_scale.precision if of_scale else 0,
        "scale_emin": of_scale.emin if of_scale else 0,
        "scale_max": _bits64(of_scale.max if of_scale else 0.0),
    }
    whole = torch.tensor([numbers[name] for name in NUMBERS], dtype=torch.int64, device=device)
    return whole, torch.tensor(_form(scaled), dtype=torch.int32, device=device)


def _form(scaled: Scaled) -> list[int]:
    """Return what a code is made with: places that go, the least pattern, 2^(p-1), 2^emin, the sign's place, a NaN's.

    Of whole numbers and fixed point: the power of two that makes whole numbers of them.
    """
    element = scaled.element
    if not isinstance(element, Format):
        point = element.fraction_bits if isinstance(element, FixedFormat) else scaled.fraction_bits
        return [(127 + point) << 23]
    p, width = element.precision, width_of(scaled)
    biased = element.emin + 127
    return [24 - p, biased << (p - 1), 1 << (p - 1), biased << 23, width - 1, nan_code(element, width)]


def _bits64(x: float) -> int:
    """Return the bits of a float64."""
    return int(np.float64(x).view(np.int64))


def _settle(cells: Cells, call: Call, n: int) -> None:
    """Have what the launches count added to the row, before that is read."""
    row = call.row
    assert row is not None

    def take(found: NDArray[np.int64], repeats: Repeats) -> None:
        (_, zero, dead), (largest, below_inf) = found[:, 1, :3].sum(0).tolist(), found[:, 1, 3:5].max(0).tolist()
        found[:, 0, 0] = n
        found[:, 0, SATURATED] += found[:, 1, 0]
        add_found(call, found[:, 0], repeats)
        scales = (value32(largest), value32(INF32 - below_inf) if below_inf else math.inf)
        of_call = GranuleCounts(zero, dead, *scales)
        with COUNTING:
            row.granules = of_call if row.granules is None else row.granules + of_call

    log_of(cells.counts.device).take_back(cells, take, [row])
