"""Running statistics: the moving averages that evaluation uses, in the dtype of their buffers.

What is stored: the mean, and the unbiased variance for l2 or s without eps for every other norm.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from normstab.norms import wide_norm
from normstab.norms.reduction import Reduction
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.dispatch import kernels_for, opaque
from normstab.numerics.formats import format_of_dtype
from normstab.numerics.precision import NEAREST, Precision
from normstab.numerics.tallies.counter_row import COUNTING

__all__ = ["update_running"]

WIDE = (torch.float32, torch.float64)


def update_running(
    running: Tensor, new: Tensor, momentum: float, reduction: Reduction, ar: Arithmetic, *, operation: str
) -> None:
    """Replace `running`, shape (C,), by (1 - m) running + m new: two products and a sum, at site `operation`.

    `new` has one value per channel, or per sample and channel (instance norm); the latter are averaged
    first. m and 1 - m are rounded to the dtype of the buffer.
    """
    move(ar, running, new, momentum, reduction, operation)


@opaque
@torch.no_grad()
def move(ar: Arithmetic, running: Tensor, new: Tensor, momentum: float, reduction: Reduction, operation: str) -> None:
    """Do it, by a kernel where one serves."""
    ar.for_operation(operation)  # a rule about the statistic is met here too: it says how evaluation reads it
    if ar.precision.norm == "wide":
        wide_norm.move_average(running, new, momentum, ar, operation)
        return
    if len(running) == new.numel() and not ar.is_native and _by_kernel(running, new, momentum, ar, operation):
        return
    m, rest = weights(momentum, running.dtype)
    if ar.is_native and len(running) == new.numel() and running.dtype == new.dtype and running.dtype in WIDE:
        running.mul_(rest).add_(new.detach().reshape(-1) * m)  # the same roundings, in three calls of torch
        return
    of_buffer = buffer_arithmetic(running.dtype, ar)
    values = (
        new.detach().reshape(-1, len(running)).to(torch.float64 if running.dtype == torch.float64 else torch.float32)
    )
    per_channel = values[0] if len(values) == 1 else of_buffer.mean(values, 0, operation=operation)
    old_part = of_buffer.mul(rest, running, operation=operation)
    new_part = of_buffer.mul(m, per_channel, operation=operation)
    running.copy_(of_buffer.add(old_part, new_part, operation=operation))


@lru_cache(maxsize=256)
def weights(momentum: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return m and 1 - m, rounded to the dtype of the buffer."""
    m, rest = (float(torch.tensor(weight, dtype=dtype, device="cpu")) for weight in (momentum, 1.0 - momentum))
    return m, rest


def _by_kernel(running: Tensor, new: Tensor, momentum: float, ar: Arithmetic, operation: str) -> bool:
    """Do the same for float32 on a CPU where all numbers are normal, and say whether it was done.

    There float32's own products and sums are the roundings wanted, also under flush-to-zero, and nothing but
    `count` and the magnitudes changes in the ledger.
    """
    is_plain = running.dtype == torch.float32 == new.dtype and running.device.type == "cpu" and running.is_contiguous()
    has_extras = ar.ledger is not None and ar.ledger.has_extras
    if not is_plain or has_extras or kernels_for(running) is None:
        return False
    from normstab.norms.cpu.running_kernel import move_average

    # To nearest, as in the buffer's precision: a stochastic call would take a turn of the site's random bits.
    call, x = ar.call(operation, rounding=NEAREST), new.detach().contiguous()
    row = 0 if call.row is None else call.row.address
    weights = np.float32(1.0 - momentum), np.float32(momentum)
    with COUNTING:
        done: bool = move_average(running.data_ptr(), x.data_ptr(), len(running), *weights, row, call.stamp, call.step)
    return done


@cache
def precision_of_buffer(dtype: torch.dtype) -> Precision:
    """Return the precision of a buffer: it is averaged in its own dtype, whatever the compute format of the layer."""
    format = format_of_dtype(dtype)
    return Precision.parse(f"{format}/nearest/{format}")


def buffer_arithmetic(dtype: torch.dtype, ar: Arithmetic) -> Arithmetic:
    """Return the arithmetic of a buffer's dtype, counting where `ar` counts; native where `ar` is."""
    if ar.is_native:
        return ar
    found = Arithmetic(precision_of_buffer(dtype), ledger=ar.ledger)
    found.clock = ar.clock
    return found.at(ar.site) if ar.site else found
