"""Run one Call: round a tensor, or compute an operation and round it once, by the fastest way there is.

The CPU and CUDA kernels serve where they can, the torch reference everywhere else, with the same bits and
counters. What a format, a rounding or a counter means is in formats, precision, reference and ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from normstab.numerics import dispatch as backends
from normstab.numerics.call import Call, Operands
from normstab.numerics.formats import AnyFormat
from normstab.numerics.kernels.huge_pages import in_huge_pages
from normstab.numerics.philox import random_fields
from normstab.numerics.readable.carriers import carried_for
from normstab.numerics.readable.event_counts import Counts, count
from normstab.numerics.readable.losses import SUMMING, count_losses, counts_losses
from normstab.numerics.readable.operations import Carried, Operand, carried_value, wide_operands, widened
from normstab.numerics.readable.reference import Rounded, decode, encode, round_reference
from normstab.numerics.rounding_modes import NEAREST
from normstab.numerics.spelling.arguments import check_tensors, number
from normstab.numerics.sums.kernels_of_sums import kernels_for

__all__ = [
    "add_counts",
    "all_finite",
    "carrier_dtype",
    "compute",
    "compute_function",
    "fields_of",
    "finish",
    "round_tensor",
    "rounded_constant",
]


def round_tensor(x: Tensor, call: Call, *, out: Tensor | None = None) -> Tensor:
    """Round `x` as `call` says, into `out` (which may be `x`) or a new tensor of the same strides."""
    x = backends.plain(x)
    kernels = backends.kernels_for(x, call)
    result = in_huge_pages(torch.empty_like(x)) if out is None else out
    if kernels is None or not kernels.round_into(x, result, call):
        fields = fields_of(x.shape, call, x.device)
        rounded = round_reference(x, call.format, call.rounding, fields=fields)
        add_counts(call, Carried(x, x.isnan(), x.isinf(), None), rounded)
        result.copy_(rounded.value)
    if out is not None:
        torch.autograd.graph.increment_version(out)
    return result


def compute(operation: str, operands: tuple[Operand, ...], call: Call, *, out: Tensor | None = None) -> Tensor:
    """Compute add, sub, mul, div, sqrt or fma of `operands`, round once, count.

    Operands are floating tensors that broadcast, or Python scalars, used as they come. The result is float64
    where the format or an operand is wider than float32, else float32.
    """
    if not counts_losses(call) or operation not in SUMMING:
        return _rounded_once(operation, operands, call, out)
    before = _kept(operands, out)
    result = _rounded_once(operation, operands, call, out)
    kernels = kernels_for(result, call, "losses") if operation != "fma" else None
    if kernels is None or not kernels.count_losses(operation, before, result, call):
        count_losses(operation, before, result, call)
    return result


def _kept(operands: tuple[Operand, ...], out: Tensor | None) -> tuple[Operand, ...]:
    """Return the operands, with copies of those whose memory the result is written to; one given twice stays one."""
    if out is None:
        return operands
    memory = out.untyped_storage().data_ptr()
    tensors = {id(x): x for x in operands if isinstance(x, Tensor)}
    copies = {key: x.clone() if x.untyped_storage().data_ptr() == memory else x for key, x in tensors.items()}
    return tuple(copies.get(id(x), x) for x in operands)


def _rounded_once(operation: str, operands: tuple[Operand, ...], call: Call, out: Tensor | None) -> Tensor:
    """Compute by a kernel, or else by the reference."""
    check_tensors(operation, operands)
    dtype = carrier_dtype(operands, call.format)
    operands = tuple(backends.carried_operand(x) if isinstance(x, Tensor) else number(x, operation) for x in operands)
    first = next(x for x in operands if isinstance(x, Tensor))
    kernels = backends.kernels_for(first, call)
    if kernels is not None:
        result = kernels.pointwise(operation, operands, call, dtype, out)
        if result is not None:
            return result
    carried, shown = carried_for(operation, operands, call)
    return finish(carried, call, dtype=dtype, out=out, shown=shown)


def compute_function(function: Callable[..., Tensor], operands: tuple[Operand, ...], call: Call) -> Tensor:
    """Compute `function` of `operands` in float64, by torch's library, and round it once."""
    dtype = carrier_dtype(operands, call.format)
    operands = tuple(backends.plain(x) if isinstance(x, Tensor) else x for x in operands)
    first = next(x for x in operands if isinstance(x, Tensor))
    kernels = kernels_for(first, call, "functions")
    wide = wide_operands(operands, widened if kernels is None else kernels.widen)
    value = function(*wide)
    if value.numel() and backends.later_for(value, call) is not None:
        told = call._replace(operands=Operands(wide, are_elementwise=True))  # the device asks whose a NaN is
        return encode(round_tensor(value, told), dtype).view(value.shape)
    found = _finite(value, call, dtype) if kernels is not None else None
    return finish(carried_value(value, wide), call, dtype=dtype) if found is None else found


def finish(
    carried: Carried, call: Call, *, dtype: torch.dtype, out: Tensor | None = None, shown: Tensor | None = None
) -> Tensor:
    """Round a result that is still in float64, once, count it, and return it as `dtype`.

    `shown` is what the magnitudes are counted of where the carrier has been reduced modulo a range that wraps.
    """
    value = carried.value
    narrowed = _finite(value, call, dtype) if shown is None else None
    if narrowed is None:
        fields = fields_of(value.shape, call, value.device)
        rounded = round_reference(value, call.format, call.rounding, fields=fields)
        add_counts(call, carried, rounded if shown is None else replace(rounded, exact=decode(shown)))
        narrowed = encode(rounded.value, dtype).view(value.shape)
    return narrowed if out is None else out.copy_(narrowed)


def _finite(value: Tensor, call: Call, dtype: torch.dtype) -> Tensor | None:
    """Return `value` rounded by a kernel and counted; None where there is none, or something is infinite or NaN.

    Else it does not matter what the operands were, and a plain cast counts right.
    """
    kernels = backends.kernels_for(value, call)
    if kernels is None or not value.numel():
        return None
    if not all_finite(value):
        return None
    result = torch.empty_like(value)
    if not kernels.round_into(value, result, call):
        return None
    if dtype == torch.float64:
        return result
    functions = kernels_for(value, call, "functions") if dtype == torch.float32 else None
    return encode(result, dtype).view(value.shape) if functions is None else functions.narrow(result)


def all_finite(x: Tensor) -> bool:
    """Whether every number of a tensor is finite; a sum that is finite says it in one pass."""
    return (x.is_floating_point() and math.isfinite(x.sum())) or bool(x.isfinite().all())


def carrier_dtype(operands: tuple[Operand, ...], format: AnyFormat) -> torch.dtype:
    """Return the dtype that results live in: float32, or float64 for wide formats and operands."""
    is_wide = not format.fits_float32 or any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in operands)
    return torch.float64 if is_wide else torch.float32


def fields_of(shape: torch.Size, call: Call, device: torch.device) -> Tensor | None:
    """Return U per element, by the logical row-major index, for stochastic rounding; else None."""
    if not call.rounding.is_stochastic:
        return None
    assert call.draw is not None, "stochastic rounding needs a draw"
    index = torch.arange(shape.numel(), dtype=torch.int64, device=device)
    return random_fields(call.draw, index, call.rounding.bits).view(shape)


def add_counts(call: Call, carried: Carried, rounded: Rounded) -> None:
    """Add what happened to the row of `call`, if anyone counts."""
    if call.row is None or rounded.value.numel() == 0 or rounded.value.device.type == "meta":
        return
    counts = count(
        rounded,
        operand_nan=carried.operand_nan,
        operand_inf=carried.operand_inf,
        divide_by_zero=carried.divide_by_zero,
    )
    if not call.inexact:
        counts.counts[-1] = 0
    call.row.add(counts.counts, counts.largest, counts.smallest, stamp=call.stamp, step=call.step)
    call.row.add_bins(counts.histogram)


def rounded_constant(value: float, format: AnyFormat) -> tuple[float, Counts]:
    """Return a host constant cast to `format`, and what that counts."""
    return _rounded_constant(float(value).hex(), format)  # by its digits: -0 equals 0 and is another constant


@lru_cache(maxsize=4096)
def _rounded_constant(digits: str, format: AnyFormat) -> tuple[float, Counts]:
    """Return the same of a constant given in hexadecimal."""
    x = torch.tensor([float.fromhex(digits)], dtype=torch.float64, device="cpu")
    rounded = round_reference(x, format, NEAREST)
    return float(rounded.value[0]), count(rounded, operand_nan=x.isnan(), operand_inf=x.isinf())
