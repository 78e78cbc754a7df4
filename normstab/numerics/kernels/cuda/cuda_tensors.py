"""The CUDA kernels as tensors see them: round a tensor, or compute and round an operation, in one pass.

What they refuse (None) the torch reference computes. This file lays out arguments and settles counts; the
arithmetic is in cuda_bits. Importing it needs Triton; under its interpreter it serves CPU tensors too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.formats import AnyFormat
from normstab.numerics.kernels.cuda.cuda_kernels import BLOCK, CODES, pointwise_kernel, round_kernel
from normstab.numerics.kernels.format_table import LANE64, contains_dtype, plan
from normstab.numerics.kernels.strides import Axes, align, is_dense, overlaps, result_like
from normstab.numerics.philox import field_width
from normstab.numerics.precision import Rounding
from normstab.numerics.readable.reference import layout
from normstab.numerics.tallies.counter_row import HISTOGRAM_BINS
from normstab.numerics.tallies.tally import COUNTERS

__all__ = ["add_found", "pointwise", "round_into", "signed"]

NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
OPERAND_DTYPES = (torch.float32, torch.float64)
MOST_OPERANDS = 3
WIDEST_FOLDED = 51  # beyond, the result is IEEE's own sum: there is no second rounding to prepare
INF64, MIN_NORMAL32, REBIAS32, LARGEST32 = 2047 << 52, 897 << 52, 896 << 23, 0x7F7FFFFF
Operand = Tensor | float


def round_into(x: Tensor, out: Tensor, call: Call) -> bool:
    """Round `x` into `out`, of the same shape and dtype, which may be `x`; count. Always True: all is covered."""
    n = x.numel()
    if n == 0:
        return True
    x, out = x.detach().resolve_neg(), out.detach()
    is_plain = x.is_contiguous() and out.is_contiguous()
    if not is_plain and not call.rounding.is_stochastic:
        is_plain = x.stride() == out.stride() and is_dense(x)
    if not is_plain or overlaps(x, out):
        dense = x.clone(memory_format=torch.contiguous_format)
        round_into(dense, dense, call)
        out.copy_(dense)
        return True
    bits_of, copies = layout(x.dtype), contains_dtype(call.format, NAMES[x.dtype])
    table = _table(call.format, call.rounding, copies, x.device)
    launch = _launch(n, call, x.device)
    with torch.cuda.device_of(x):
        round_kernel[launch.grid](
            x.view(bits_of.integer),
            out.view(bits_of.integer),
            table,
            launch.counts,
            launch.bins,
            *launch.place,
            DIGITS=bits_of.fraction_bits,
            BIAS=bits_of.bias,
            COPIES=copies,
            **launch.options,
        )
    _settle(launch, n, call)
    return True


def pointwise(
    operation: str, operands: tuple[Operand, ...], call: Call, dtype: torch.dtype, out: Tensor | None
) -> Tensor | None:
    """Compute `operation` and round it in one pass, into `out` where given; None: not covered, nothing written."""
    device = next(x.device for x in operands if isinstance(x, Tensor))
    tensors = [_as_tensor(x, device) for x in operands]
    if any(x.dtype not in OPERAND_DTYPES or x.device != device for x in tensors):
        return None
    result = result_like(tensors, dtype) if out is None else out.detach()
    target, axes = result, None
    if result.dtype == dtype and (out is None or (is_dense(out) and not any(overlaps(x, out) for x in tensors))):
        is_ordered = not call.rounding.is_stochastic or result.is_contiguous()
        axes = align(tensors, result) if is_ordered else None
    if axes is None:
        target = torch.empty(result.shape, dtype=dtype, device=device)
        tensors = [x.expand(result.shape).contiguous() for x in tensors]
        axes = align(tensors, target)
        assert axes is not None, "contiguous operands of one shape merge into one axis"
    if result.numel():
        _compute(operation, tensors, axes, call, target)
    if target is not result:
        result.copy_(target)
    if out is not None:
        torch.autograd.graph.increment_version(out)
        return out
    return result


def _as_tensor(x: Operand, device: torch.device) -> Tensor:
    """Return an operand as a tensor; a Python scalar is a float64."""
    if isinstance(x, Tensor):
        return x.detach().resolve_neg()
    return torch.full((), x, dtype=torch.float64, device=device)


def _compute(operation: str, tensors: list[Tensor], axes: Axes, call: Call, target: Tensor) -> None:
    """Run the pointwise kernel, and settle what it counted."""
    n, missing = target.numel(), MOST_OPERANDS - len(tensors)
    bits = [x.view(layout(x.dtype).integer) for x in [*tensors, *tensors[:1] * missing]]
    strides = [step for steps in axes.strides + axes.strides[:1] * missing for step in steps]
    launch = _launch(n, call, target.device)
    with torch.cuda.device_of(target):
        pointwise_kernel[launch.grid](
            target.view(layout(target.dtype).integer),
            *bits,
            _table(call.format, call.rounding, False, target.device),
            launch.counts,
            launch.bins,
            *launch.place,
            *axes.sizes[1:],
            *strides,
            OPERATION=CODES[operation],
            FOLDS=call.format.precision <= WIDEST_FOLDED,
            ROUNDS_DOWN=call.rounding.mode == "down",
            **launch.options,
        )
    _settle(launch, n, call)


class Launch(NamedTuple):
    """What both kernels are launched with: programs, counters (ten, then two magnitudes), bins, place, options."""

    grid: tuple[int]
    counts: Tensor | None
    bins: Tensor | None
    place: tuple[int, int, int, int, int]
    options: dict[str, Any]


def _launch(n: int, call: Call, device: torch.device) -> Launch:
    """Return how `n` results are shared among programs, from which random bits on, and where they are counted.

    With random bits the first program begins at the first element of a Philox block, at or before the first.
    """
    row, draw, rounding = call.row, call.draw, call.rounding
    width, begin, block, word, step = 0, 0, 0, 0, 0
    if rounding.is_stochastic:
        assert draw is not None, "stochastic rounding needs a draw"
        width = field_width(rounding.bits)
        block, skipped = divmod(draw.first_index, 128 // width)
        begin, word, step = -skipped, signed(draw.word), signed(draw.step)
    counts = None if row is None else torch.zeros(len(COUNTERS) + 2, dtype=torch.int64, device=device)
    has_histogram = row is not None and row.histogram is not None
    bins = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64, device=device) if has_histogram else None
    # No fused multiply-add: it would merge two roundings into one.
    options = {"WIDTH": width, "COUNTS": row is not None, "HISTOGRAM": has_histogram, "BLOCK": BLOCK}
    options |= {"enable_fp_fusion": False}
    programs = (n - begin + BLOCK - 1) // BLOCK
    return Launch((programs,), counts, bins, (n, begin, word, step, block), options)


def _settle(launch: Launch, n: int, call: Call) -> None:
    """Add what a launch counted to the row of its call; this waits for the device."""
    row = call.row
    if row is None or launch.counts is None:
        return
    found = launch.counts.cpu().numpy()
    found[0] = n
    add_found(call, found)
    if row.histogram is not None and launch.bins is not None:
        row.histogram += launch.bins.cpu().numpy()


def add_found(call: Call, found: NDArray[np.int64]) -> None:
    """Add to the row of a call what a kernel found: ten counters, the greatest magnitude, and that below infinity."""
    assert call.row is not None, "nobody counts"
    counts, largest, below_inf = found[: len(COUNTERS)], int(found[-2]), int(found[-1])
    if not call.inexact:
        counts[-1] = 0
    smallest = _towards_zero32(INF64 - below_inf) if below_inf else np.inf
    call.row.add(counts, _towards_zero32(largest), smallest, stamp=call.stamp, step=call.step)


def _towards_zero32(bits: int) -> float:
    """Return a finite float64 magnitude, given by its bits, rounded to float32 toward zero."""
    if bits >= MIN_NORMAL32:
        narrow = min((bits >> 29) - REBIAS32, LARGEST32)
    else:
        biased = max(bits >> 52, 1)
        significand = bits - ((biased - 1) << 52)
        narrow = significand >> (926 - biased)
    return float(np.int32(narrow).view(np.float32))


@lru_cache(maxsize=1024)
def _table(format: AnyFormat, rounding: Rounding, copies: bool, device: torch.device) -> Tensor:
    """Return the plan of lane 64 on a device; nothing writes to it."""
    return torch.tensor(plan(format, rounding, LANE64, copies=copies), device=device)


def signed(word: int) -> int:
    """Return a 64-bit word as the int64 of the same bits."""
    return word - 2**64 if word >= 2**63 else word
