"""The six operations on CPU tensors: operands laid out as a task of the pointwise kernel, split, counts settled."""

from __future__ import annotations

import struct
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.kernels.cpu.counting import OVERFLOW, SCRATCH, settle
from normstab.numerics.kernels.cpu.cpu_pointwise import CODES, SCALAR, UNSAFE, pointwise_chunk, pointwise_nearest
from normstab.numerics.kernels.cpu.layout import FLOAT32, FLOAT64
from normstab.numerics.kernels.cpu.openmp import flushes_subnormals
from normstab.numerics.kernels.cpu.threads import chunks, run_chunks
from normstab.numerics.kernels.cpu.workspace import OWN, address_of
from normstab.numerics.kernels.format_table import PLAN, plan
from normstab.numerics.kernels.shortcut_table import LANE64, MAGIC
from normstab.numerics.kernels.strides import Axes, align, flat, is_dense, is_flat, overlaps, result_like
from normstab.numerics.philox import signed_step
from normstab.numerics.readable.carriers import WIDEST_FOLDED, are_wide, is_ieee, wraps
from normstab.numerics.tallies.counter_row import COUNTING

__all__ = ["pointwise"]

# Codes of dtypes in the kernel; an operand that an operation does not have; how much work one element is.
KINDS = {torch.float32: FLOAT32, torch.float64: FLOAT64}
MOST_OPERANDS, NO_OPERAND = 3, [0, SCALAR, 0, 0, 0]
STYLE = PLAN.index("style")
WORK = 10  # of an operation, in roundings to nearest
Operand = Tensor | float


def pointwise(
    operation: str, operands: tuple[Operand, ...], call: Call, dtype: torch.dtype, out: Tensor | None
) -> Tensor | None:
    """Compute `operation` and round it in one pass, into `out` where given; None: not covered, nothing written."""
    tensors = [x for x in operands if isinstance(x, Tensor)]
    if not all(x.dtype in KINDS and x.is_cpu for x in tensors):
        return None
    if call.format.precision > WIDEST_FOLDED and not (is_ieee(operation, call) or call.rounding.is_stochastic):
        return None
    may_fail = are_wide(operands) or wraps(call.format)
    if out is not None and may_fail:  # what it may have to be computed from again is not written over
        fresh = pointwise(operation, operands, call, dtype, None)
        return None if fresh is None else out.copy_(fresh)
    result = result_like(tensors, dtype) if out is None else out.detach()
    if is_flat(tensors, result, dtype):
        task = _task(operation, operands, tensors, flat(tensors, result), call, result)
        is_done = _run(task, result.numel(), call)
    else:
        tensors = [x.resolve_neg() for x in tensors]
        is_done = _aligned(operation, operands, tensors, call, dtype, result, is_fresh=out is None)
    if not is_done:
        return None
    if out is not None:
        torch.autograd.graph.increment_version(out)
        return out
    return result


def _aligned(
    operation: str,
    operands: tuple[Operand, ...],
    tensors: list[Tensor],
    call: Call,
    dtype: torch.dtype,
    result: Tensor,
    *,
    is_fresh: bool,
) -> bool:
    """Compute where operands broadcast or are strided, or `result` is not a dense place of its own."""
    target, axes = result, None
    # The kernel writes a dense result in the order of its storage.
    # It may not write over what it still has to read, and random bits go by
    # the row-major index, which storage follows only where it is contiguous.
    is_own = is_fresh or (is_dense(result) and not any(overlaps(x, result) for x in tensors))
    if result.dtype == dtype and is_own and (result.is_contiguous() or not call.rounding.is_stochastic):
        axes = align(tensors, result)
    if axes is None:
        target = torch.empty(result.shape, dtype=dtype, device="cpu")
        tensors = [x.expand(result.shape).contiguous() for x in tensors]
        axes = flat(tensors, target)
    is_done = _run(_task(operation, operands, tensors, axes, call, target), target.numel(), call)
    if target is not result:
        result.copy_(target)
    return is_done


def _task(
    operation: str, operands: tuple[Operand, ...], tensors: list[Tensor], axes: Axes, call: Call, target: Tensor
) -> NDArray[np.int64]:
    """Return the task of cpu_pointwise.TASK: what to compute, where to write, and each operand."""
    row, draw = call.row, call.draw
    bins = row.histogram.ctypes.data if row is not None and row.histogram is not None else 0
    word, step, first = (draw.word, draw.step, draw.first_index) if draw is not None else (0, 0, 0)
    is_wide, folds = target.dtype == torch.float64, call.format.precision <= WIDEST_FOLDED
    rounds_down = call.rounding.mode == "down"
    fields = [CODES[operation], target.data_ptr(), is_wide, folds, rounds_down]
    fields += [signed_step(word), signed_step(step), first, bins, row is not None, axes.sizes[1], axes.sizes[2]]
    fields += [folds and are_wide(operands), 0, flushes_subnormals()]
    placed = zip(tensors, axes.strides, strict=True)
    for operand in operands:
        if isinstance(operand, Tensor):
            x, strides = next(placed)
            fields += [x.data_ptr(), KINDS[x.dtype], *strides]
        else:
            fields += [_bits(operand), SCALAR, 0, 0, 0]
    fields += NO_OPERAND * (MOST_OPERANDS - len(operands))
    return np.array(fields, np.int64)


def _run(task: NDArray[np.int64], n: int, call: Call) -> bool:
    """Run a task of `n` elements in pieces, and settle what they counted; False: the result does not hold.

    That is where an element needs more than its float64 and an error: it left what Dekker's product allows, or a range
    that wraps. Nothing is counted then.
    """
    if n == 0:
        return True
    row = call.row
    table = plan(call.format, call.rounding, LANE64)
    kernel = pointwise_nearest if table.item(STYLE) == MAGIC else pointwise_chunk
    # A histogram has no copy for each thread.
    pieces = chunks(n, work=WORK) if row is None or row.histogram is None else [(0, n)]
    if len(pieces) == 1:
        scratch, counts = OWN.counts, OWN.address
    else:
        scratch = np.empty(SCRATCH * len(pieces), np.int64)
        counts = address_of(scratch)

    def compute(i: int) -> None:
        start, length = pieces[i]
        kernel(task, table, counts + 8 * SCRATCH * i, start, length)

    if row is None:
        run_chunks(compute, len(pieces))
        return _holds(task, scratch, call)
    with COUNTING if row.histogram is not None else nullcontext():
        # Bins are filled as the kernel goes: where its result does not hold, they are put back.
        kept = None if row.histogram is None else row.histogram.copy()
        run_chunks(compute, len(pieces))
        if not _holds(task, scratch, call):
            if kept is not None:
                row.histogram[:] = kept  # type: ignore[index]
            return False
    with COUNTING:
        settle(counts, len(pieces), row.address, call.stamp, call.step, call.inexact)
    return True


def _holds(task: NDArray[np.int64], scratch: NDArray[np.int64], call: Call) -> bool:
    """Whether every carrier was exact enough for its rounding."""
    # Only the kernel sees this, element by element, and leaves the mark in the task.
    if task[UNSAFE]:
        return False
    return not wraps(call.format) or not scratch.reshape(-1, SCRATCH)[:, OVERFLOW].any()


def _bits(scalar: float) -> int:
    """Return the bits of a float64 as an int64."""
    return int(struct.unpack("<q", struct.pack("<d", scalar))[0])
