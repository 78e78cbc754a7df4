"""Running statistics: the moving averages that evaluation uses, in the dtype of their buffers.

What is stored: the mean, and the unbiased variance for l2 or s without eps for every other norm.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from normstab.norms.reduction import Reduction
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import COUNTERS
from normstab.numerics.precision import Precision

__all__ = ["update_running"]

# A buffer is averaged in its own dtype, whatever the compute format of the layer.
PRECISION_OF_BUFFERS = {
    torch.float16: Precision.parse("fp16/nearest/fp16"),
    torch.bfloat16: Precision.parse("bf16/nearest/bf16"),
    torch.float32: Precision.parse("fp32/nearest/fp32"),
    torch.float64: Precision.parse("fp64/nearest/fp64"),
}
# Bits of float32: the least normal number, 2^-126, and infinity.
LEAST_NORMAL_CODE, INFINITY_CODE = 0x00800000, 0x7F800000


@torch.no_grad()
def update_running(
    running: Tensor, new: Tensor, momentum: float, reduction: Reduction, ar: Arithmetic, *, operation: str
) -> None:
    """Replace `running`, shape (C,), by (1 - m) running + m new: two products and a sum, at site `operation`.

    `new` has one value per channel, or per sample and channel (instance norm); the latter are averaged
    first. m and 1 - m are rounded to the dtype of the buffer.
    """
    if len(running) == new.numel() and not ar.is_native and _by_numpy(running, new, momentum, ar, operation):
        return
    of_buffer = buffer_arithmetic(running.dtype, ar)
    m, rest = (float(torch.tensor(weight, dtype=running.dtype)) for weight in (momentum, 1.0 - momentum))
    values = (
        new.detach().reshape(-1, len(running)).to(torch.float64 if running.dtype == torch.float64 else torch.float32)
    )
    per_channel = values[0] if len(values) == 1 else of_buffer.mean(values, 0, operation=operation)
    old_part = of_buffer.mul(rest, running, operation=operation)
    new_part = of_buffer.mul(m, per_channel, operation=operation)
    running.copy_(of_buffer.add(old_part, new_part, operation=operation))


def _by_numpy(running: Tensor, new: Tensor, momentum: float, ar: Arithmetic, operation: str) -> bool:
    """Do the same for float32 on a CPU where all numbers are normal, and say whether it was done.

    There float32's own products and sums are the roundings wanted, also under flush-to-zero, and nothing but
    `count` and the magnitudes changes in the ledger.
    """
    call = ar.call(operation)
    is_plain = running.dtype == torch.float32 == new.dtype and running.device.type == "cpu" and running.is_contiguous()
    if not is_plain or call.inexact or (call.row is not None and call.row.histogram is not None):
        return False
    old, x = running.detach().numpy(), new.detach().flatten().numpy()
    values = np.empty((5, len(old)), np.float32)
    values[0], values[1] = old, x
    np.multiply(old, np.float32(1.0 - momentum), out=values[2])
    np.multiply(x, np.float32(momentum), out=values[3])
    np.add(values[2], values[3], out=values[4])
    magnitudes = np.abs(values)
    codes = magnitudes.view(np.int32)
    if not (codes.size and codes.min() >= LEAST_NORMAL_CODE and codes.max() < INFINITY_CODE):
        return False
    if call.row is not None:
        counts = np.zeros(len(COUNTERS), np.int64)
        counts[0] = values[2:].size
        exact = np.multiply.outer((np.float32(1.0 - momentum), np.float32(momentum)), values[:2], dtype=np.float64)
        parts = np.abs(np.stack([exact[0, 0], exact[1, 1], values[2].astype(np.float64) + values[3]]))
        extremes = [_towards_zero(float(value)) for value in (parts.max(), parts.min())]
        call.row.add(counts, *extremes, stamp=call.stamp, step=call.step)
    old[:] = values[4]
    return True


def _towards_zero(value: float) -> float:
    """Return a positive number rounded to float32 toward zero."""
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(0.0)))


def buffer_arithmetic(dtype: torch.dtype, ar: Arithmetic) -> Arithmetic:
    """Return the arithmetic of a buffer's dtype, counting where `ar` counts; native where `ar` is."""
    if ar.is_native:
        return ar
    found = Arithmetic(PRECISION_OF_BUFFERS[dtype], ledger=ar.ledger)
    found.clock = ar.clock
    return found.at(ar.site) if ar.site else found
