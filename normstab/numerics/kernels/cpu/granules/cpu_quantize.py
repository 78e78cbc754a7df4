"""Scaled formats on the CPU as tensors see them: splits the granules over threads, settles the counts.

    x, rows of the axis   [ granule 0 | granule 1 | a shorter last ]     values and codes lie the same way
    scales                [    s0     |    s1     |       s2       ]     one float32 a granule

A tensor with one scale is cut into pieces that are rounded as granules are, by a scale that is found before.
What it refuses (None) the readable reference computes. The arithmetic is in quantize_kernel.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.formats import FixedFormat, Format
from normstab.numerics.kernels.cpu.granules.quantize_kernel import RULES, granule_amax, quantize_granules
from normstab.numerics.kernels.cpu.threads import chunks, run_chunks
from normstab.numerics.kernels.huge_pages import in_huge_pages
from normstab.numerics.ledger import COUNTERS
from normstab.numerics.rounding_modes import NEAREST
from normstab.numerics.scaled.codes import nan_code, width_of
from normstab.numerics.scaled.granule_counts import GranuleCounts
from normstab.numerics.scaled.scaled_format import Scaled
from normstab.numerics.scaled.scales import E8M0_RANGE, FP32_RANGE, scales_of

__all__ = ["quantize_rows"]

# The whole numbers of a kernel's table, in order, and after them its float64 numbers.
FIELDS = (
    "row_length",
    "width",
    "granules",
    "precision",
    "emin",
    "is_float",
    "has_negative_zero",
    "fraction_bits",
    "code_bits",
    "nan_code",
    "rule",
    "emax",
    "least_exponent",
    "greatest_exponent",
    "is_counted",
)
NUMBERS = ("largest", "least", "tensor_scale", "fixed_scale")
# How a tensor with one scale is split: pieces that stay in the cache.
PIECE = 4096
WORK = 16  # of an element, in roundings to nearest
# The least subnormal, which a processor that flushes makes zero; the bits of infinity.
LEAST = np.float32(1e-45)
INFINITE = np.uint32(0x7F800000)
COUNTED, MEASURED = 7, 4  # int64 and float64 numbers that a thread counts into
NARROW = (torch.float16, torch.bfloat16, torch.float32)


def quantize_rows(x: Tensor, scaled: Scaled, axis: int, call: Call) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return values, scales and codes of `x`, counted as `call` says; None where the reference serves."""
    if not _is_covered(x, scaled, call):
        return None
    # Granules are to be neighbours in memory.
    # Every float16 and bfloat16 is a float32.
    moved = x.movedim(axis, -1).to(torch.float32).contiguous()
    job = _Job(moved, scaled, call)
    job.run()
    shape = [*moved.shape[:-1], job.granules] if scaled.granule != "tensor" else [1] * x.dim()
    scales = job.scales.view(shape) if scaled.granule != "tensor" else job.scales[:1].view(shape)
    back = [each.movedim(-1, axis).contiguous() for each in (job.values, scales, job.codes)]
    return back[0].to(x.dtype), back[1], back[2]


def _is_covered(x: Tensor, scaled: Scaled, call: Call) -> bool:
    """Whether the kernels know this case; under flush-to-zero they do not, for they widen by the processor."""
    row, element = call.row, scaled.element
    is_known = scaled.granule in ("row", "block") or (scaled.granule == "tensor" and not scaled.has_two_scales)
    is_plain = not scaled.has_zero_point and width_of(scaled) <= 8 and getattr(element, "has_subnormals", True)
    is_simply_counted = row is None or (row.histogram is None and not row.counts_squares and not call.inexact)
    is_simple = is_known and is_plain and is_simply_counted and call.rounding == NEAREST
    return is_simple and x.dtype in NARROW and x.numel() > 0 and x.dim() > 0 and bool(LEAST * np.float32(1) > 0)


class _Job:
    """One tensor on its way: its memory, its table, and what its threads counted."""

    def __init__(self, x: Tensor, scaled: Scaled, call: Call) -> None:
        self.x, self.scaled, self.call = x, scaled, call
        is_whole = scaled.granule == "tensor"
        self.length = x.numel() if is_whole else x.shape[-1]
        self.width = {"tensor": PIECE, "row": self.length}.get(scaled.granule, scaled.width)
        self.granules = -(-self.length // self.width)
        self.count = x.numel() // self.length * self.granules
        self.values = in_huge_pages(torch.empty_like(x))
        dtype = torch.uint8 if isinstance(scaled.element, Format) else torch.int8
        self.codes = in_huge_pages(torch.empty(x.shape, dtype=dtype))
        self.scales = torch.empty(self.count, dtype=torch.float32)
        pieces = min(len(chunks(x.numel(), work=WORK)), self.count)
        bounds = [self.count * i // pieces for i in range(pieces + 1)]
        self.pieces = list(pairwise(bounds))

    def run(self) -> None:
        """Quantize, on as many threads as there are pieces, and count."""
        table, of_scales = self._table()
        tensors = (self.x, self.values, self.scales, self.codes)
        addresses = np.array([each.data_ptr() for each in tensors], np.int64)
        found = np.zeros((len(self.pieces), COUNTED + MEASURED), np.int64)
        # The same memory twice: whole numbers, and behind them what begins a maximum and a minimum.
        found.view(np.float64)[:, COUNTED:] = (0.0, math.inf, 0.0, math.inf)

        def work(i: int) -> None:
            first, last = self.pieces[i]
            into = found[i].ctypes.data
            quantize_granules(addresses.ctypes.data, table.ctypes.data, first, last, into, of_scales.ctypes.data)

        run_chunks(work, len(self.pieces))
        if self.call.row is not None:
            self._settle(found)

    def _table(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return what the kernel knows of the format: whole numbers, float64 numbers; and the scales' own format."""
        scaled, element = self.scaled, self.scaled.element
        is_float = isinstance(element, Format)
        fraction = element.fraction_bits if isinstance(element, FixedFormat) else scaled.fraction_bits
        least, greatest = E8M0_RANGE if scaled.scale == "e8m0" else FP32_RANGE
        whole: dict[str, Any] = {
            "row_length": self.length,
            "width": self.width,
            "granules": self.granules,
            "precision": element.precision,
            # In fixed point every number up to the largest has the quantum of the top binade.
            "emin": element.emin if isinstance(element, Format) else element.precision - fraction - 1,
            "is_float": is_float,
            "has_negative_zero": isinstance(element, Format) and element.has_negative_zero,
            "fraction_bits": fraction,
            "code_bits": width_of(scaled),
            "nan_code": nan_code(element, width_of(scaled)) if isinstance(element, Format) else 0,
            "rule": RULES["two scales" if scaled.has_two_scales else scaled.rule],
            "emax": scaled.emax,
            "least_exponent": least,
            "greatest_exponent": greatest,
            "is_counted": self.call.row is not None,
        }
        number = {"largest": scaled.largest, "least": -scaled.largest, "tensor_scale": 1.0, "fixed_scale": 1.0}
        if isinstance(element, FixedFormat):
            number["least"] = element.min
        table = np.empty(len(FIELDS) + len(NUMBERS), np.int64)
        of_scales = np.ones(3)
        self._add_scales(whole, number, table, of_scales)
        return table, of_scales

    def _add_scales(
        self, whole: dict[str, Any], number: dict[str, float], table: NDArray[np.int64], of_scales: NDArray[np.float64]
    ) -> None:
        """Fill `table`, with what a look at the whole tensor says of its scale."""
        scaled = self.scaled
        table[: len(FIELDS)] = [int(whole[name]) for name in FIELDS]
        self.broken_scales = 0
        if scaled.granule == "tensor":
            of_tensor = scales_of(torch.from_numpy(self._amax(table).max(keepdims=True).view(np.float32)), scaled)
            table[FIELDS.index("rule")] = RULES["fixed"]
            number["fixed_scale"] = float(of_tensor.value)
            self.broken_scales = of_tensor.saturated
        elif isinstance(scaled.scale, Format):
            amax = self._amax(table)
            # A granule with an infinity or a NaN is lost as a whole, and does not spoil the scale of the others.
            largest = float(amax[amax < INFINITE].max(initial=0).view(np.float32))
            tensor_scale = float(np.float32(largest / (scaled.largest * scaled.scale.max)))
            number["tensor_scale"] = tensor_scale or 1.0
            of_scales[:] = (scaled.scale.precision, scaled.scale.emin, scaled.scale.max)
        # The kernel reads these bits as float64.
        table.view(np.float64)[len(FIELDS) :] = [number[name] for name in NUMBERS]

    def _amax(self, table: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return the bits of the largest magnitude of every granule."""
        found = np.empty(self.count, np.uint32)

        def work(i: int) -> None:
            granule_amax(self.x.data_ptr(), found.ctypes.data, table.ctypes.data, *self.pieces[i])

        run_chunks(work, len(self.pieces))
        return found

    def _settle(self, found: NDArray[np.int64]) -> None:
        """Add what the threads counted to the row of the call."""
        row = self.call.row
        assert row is not None
        clipped, beyond, underflow, subnormal, broken, zero, dead = found[:, :COUNTED].sum(0).tolist()
        measured = found.view(np.float64)[:, COUNTED:]
        largest, smallest = _truncated(float(measured[:, 0].max())), _truncated(float(measured[:, 1].min()))
        counts = np.zeros(len(COUNTERS), np.int64)
        of_name = {"count": self.x.numel(), "overflow": beyond, "saturated": beyond + clipped + self.broken_scales}
        of_name |= {"underflow": underflow, "subnormal": subnormal, "nan_propagated": broken}
        for name, value in of_name.items():
            counts[COUNTERS.index(name)] = value
        row.add(counts, largest, smallest, stamp=self.call.stamp, step=self.call.step)
        if self.scaled.granule == "tensor":
            # The pieces have one scale: they are one granule.
            zero, dead = int(zero == self.count), int(0 < dead == self.count - zero)
        scales = (float(measured[:, 2].max()), float(measured[:, 3].min()))
        of_call = GranuleCounts(zero, dead, *scales)
        row.granules = of_call if row.granules is None else row.granules + of_call


def _truncated(magnitude: float) -> float:
    """Return a magnitude rounded to float32 toward zero; infinity, for none seen, stays."""
    if math.isinf(magnitude):
        return magnitude
    with np.errstate(over="ignore"):
        narrow = np.float32(magnitude)
    return float(narrow if float(narrow) <= magnitude else np.nextafter(narrow, np.float32(0)))
