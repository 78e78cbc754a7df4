"""What sums and differences of CUDA tensors lose, counted on the device, where nobody waits for it.

Sums over axes count their own additions (`ordered_steps`). Importing it needs Triton; under its interpreter it serves
CPU tensors too.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.kernels.cuda.cuda_bits import SIGN64
from normstab.numerics.kernels.cuda.cuda_kernels import read
from normstab.numerics.kernels.cuda.device_log import LOSSES_AT, log_of, multiprocessors
from normstab.numerics.kernels.cuda.losses.losses_bits import lost64
from normstab.numerics.kernels.strides import align, is_dense
from normstab.numerics.readable.losses import half_of_precision, lose
from normstab.numerics.readable.reference import layout
from normstab.numerics.tallies.repeats import Repeats

__all__ = ["count_losses"]

BLOCK, RESIDENT = 1024, 8
LOST = tl.constexpr(LOSSES_AT)
READ = (torch.float32, torch.float64)


@triton.jit(do_not_specialize=["n", "half"])
def lose_kernel(
    first, second, result, counts, n: tl.int64, half, rows, columns,
    first_slow, first_middle, first_fast, second_slow, second_middle, second_fast,
    IS_SUB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count what `n` sums or differences lost; the result is dense, operands have strides along three axes."""
    often = tl.zeros([BLOCK], tl.int64)
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK, n, tl.num_programs(0) * BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < n
        row, fast = index // columns, index % columns
        slow, middle = row // rows, row % rows
        a = read(first, slow * first_slow + middle * first_middle + fast * first_fast, inside)
        b = read(second, slow * second_slow + middle * second_middle + fast * second_fast, inside)
        if IS_SUB:
            b = b ^ SIGN64
        # What is not there is 0 + 0, which loses nothing.
        lost = lost64(a, b, read(result, index, inside), half).to(tl.int64)
        often += (lost & 1) | ((lost >> 10) << 32)
    often = (tl.sum(often) >> (32 * tl.arange(0, 2))) & (2**32 - 1)
    tl.atomic_add(counts + LOST + tl.arange(0, 2), often, mask=often > 0, sem="relaxed")


def count_losses(operation: str, operands: tuple[Tensor | float, ...], result: Tensor, call: Call) -> bool:
    """Count what add or sub of `operands` lost, as `readable.losses` says; False: not covered, nothing counted."""
    if operation == "sub" and operands[0] is operands[1]:
        return True
    tensors = [_read(x, result.device) for x in operands]
    y = result.detach().resolve_neg()
    if not is_dense(y):
        y = y.contiguous()
    if any(x.dtype not in READ or x.device != y.device for x in (*tensors, y)) or call.row is None or not y.numel():
        return not y.numel()
    axes = align(tensors, y)
    if axes is None:
        y = y.contiguous()
        tensors = [x.expand(y.shape).contiguous() for x in tensors]
        axes = align(tensors, y)
        assert axes is not None, "contiguous operands of one shape merge into one axis"
    log = log_of(y.device)
    cells = log.borrow()
    bits, programs = [x.view(layout(x.dtype).integer) for x in (*tensors, y)], -(-y.numel() // BLOCK)
    with torch.cuda.device_of(y):
        lose_kernel[(min(programs, RESIDENT * multiprocessors(y.device)),)](
            *bits, cells.counts, y.numel(), half_of_precision(call.format), *axes.sizes[1:], *axes.strides[0],
            *axes.strides[1], IS_SUB=operation == "sub", BLOCK=BLOCK,
        )  # fmt: skip

    def take(found: NDArray[np.int64], repeats: Repeats) -> None:
        lose(call, found[:, 0, LOSSES_AT:], repeats)

    log.take_back(cells, take, [call.row])
    return True


def _read(x: Tensor | float, device: torch.device) -> Tensor:
    """Return an operand as the kernel reads it."""
    if not isinstance(x, Tensor):
        return torch.full((), x, dtype=torch.float64, device=device)
    x = x.detach().resolve_neg()
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
