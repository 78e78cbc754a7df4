"""The CUDA kernels as tensors see them: round a tensor, or compute and round an operation, in one pass.

What they refuse (None) the torch reference computes. This file lays out arguments; the arithmetic
is in cuda_bits, and in float32_bits where that has the same bits and counters. Importing it needs Triton; under its
interpreter it serves CPU tensors too.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.formats import AnyFormat
from normstab.numerics.kernels.cuda.cuda_kernels import BLOCK, CODES, pointwise_kernel, round_kernel
from normstab.numerics.kernels.cuda.float32_tensors import (
    MOST_OPERANDS,
    computes32,
    launch_pointwise32,
    launch_round32,
    rounds32,
)
from normstab.numerics.kernels.cuda.launches import Launch, prepared, settle
from normstab.numerics.kernels.format_table import contains_dtype, plan
from normstab.numerics.kernels.shortcut_table import LANE64
from normstab.numerics.kernels.strides import Axes, align, is_dense, overlaps, result_like
from normstab.numerics.precision import Rounding
from normstab.numerics.readable.reference import layout

__all__ = ["NAMES", "pointwise", "round_into", "table64"]

# The dtypes that the kernels read, by name.
NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
OPERAND_DTYPES = (torch.float32, torch.float64)
WIDEST_FOLDED = 51  # beyond, the result is IEEE's own sum: there is no second rounding to prepare
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
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
    launch = prepared(n, call, x.device)
    with torch.cuda.device_of(x):
        if rounds32(x, call):
            launch_round32(x, out, call, launch)
        else:
            _round64(x, out, call, launch)
    settle(launch, n, call, out)
    return True


def _round64(x: Tensor, out: Tensor, call: Call, launch: Launch) -> None:
    """Round `x` into `out`, both dense and in one order, in 64 bits."""
    bits_of, copies = layout(x.dtype), contains_dtype(call.format, NAMES[x.dtype])
    round_kernel[_programs(launch)](
        x.view(bits_of.integer),
        out.view(bits_of.integer),
        table64(call.format, call.rounding, copies, x.device),
        launch.counts,
        launch.bins,
        *launch.place,
        DIGITS=bits_of.fraction_bits,
        BIAS=bits_of.bias,
        COPIES=copies,
        HISTOGRAM=launch.bins is not None,
        BLOCK=BLOCK,
        **launch.options,
    )


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
        # Random bits go by the row-major index, which storage follows only where it is contiguous.
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
    """Return an operand as a tensor; a Python scalar is a float64, or a float32 where that is the same number."""
    if isinstance(x, Tensor):
        return x.detach().resolve_neg()
    # A float32 is served by the faster kernels.
    is_narrow = abs(x) <= LARGEST_FLOAT32 and float(np.float32(x)) == x
    return torch.full((), x, dtype=torch.float32 if is_narrow else torch.float64, device=device)


def _compute(operation: str, tensors: list[Tensor], axes: Axes, call: Call, target: Tensor) -> None:
    """Run the pointwise kernel, and settle what it counted."""
    launch = prepared(target.numel(), call, target.device)
    with torch.cuda.device_of(target):
        if computes32(operation, tensors, call, target):
            launch_pointwise32(operation, tensors, axes, call, launch, target=target)
        else:
            _compute64(operation, tensors, axes, call, launch, target=target)
    settle(launch, target.numel(), call, target)


def _compute64(
    operation: str, tensors: list[Tensor], axes: Axes, call: Call, launch: Launch, *, target: Tensor
) -> None:
    """Run the pointwise kernel in float64."""
    missing = MOST_OPERANDS - len(tensors)
    bits = [x.view(layout(x.dtype).integer) for x in [*tensors, *tensors[:1] * missing]]
    strides = [step for steps in axes.strides + axes.strides[:1] * missing for step in steps]
    pointwise_kernel[_programs(launch)](
        target.view(layout(target.dtype).integer),
        *bits,
        table64(call.format, call.rounding, False, target.device),
        launch.counts,
        launch.bins,
        *launch.place,
        *axes.sizes[1:],
        *strides,
        OPERATION=CODES[operation],
        FOLDS=call.format.precision <= WIDEST_FOLDED,
        ROUNDS_DOWN=call.rounding.mode == "down",
        HISTOGRAM=launch.bins is not None,
        BLOCK=BLOCK,
        **launch.options,
    )


def _programs(launch: Launch) -> tuple[int]:
    """Return the grid of the kernels in float64: a program for each block."""
    n, begin, *_ = launch.place
    return ((n - begin + BLOCK - 1) // BLOCK,)


@cache
def table64(format: AnyFormat, rounding: Rounding, copies: bool, device: torch.device) -> Tensor:
    """Return the plan of lane 64 on a device; nothing writes to it.

    Kept for good, as all that is made once for a device: a captured step reads it wherever it lies.
    """
    return torch.tensor(plan(format, rounding, LANE64, copies=copies), device=device)
