"""What sums and differences of CPU tensors lose: operands laid out beside their result, split, the counts settled."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.kernels.cpu.layout import FLOAT32, FLOAT64
from normstab.numerics.kernels.cpu.losses.lost_bits import lose_chunk
from normstab.numerics.kernels.cpu.losses.lost_updates import count_lost
from normstab.numerics.kernels.cpu.threads import chunks, run_chunks
from normstab.numerics.readable.losses import half_of_precision, lose

__all__ = ["count_losses", "lost_updates"]

KINDS = {torch.float32: FLOAT32, torch.float64: FLOAT64}
WORK = 10  # of an element, in roundings to nearest


def count_losses(operation: str, operands: tuple[Tensor | float, ...], result: Tensor, call: Call) -> bool:
    """Count what add or sub of `operands` lost, as `readable.losses` says; False: not covered, nothing counted."""
    if operation == "sub" and operands[0] is operands[1]:
        return True
    laid = [_beside(result, x) for x in (*operands, result)]
    if any(x is None for x in laid) or result.numel() == 0:
        return result.numel() == 0
    a, b, y = (x for x in laid if x is not None)
    kinds = KINDS[a.dtype] << 6 | KINDS[b.dtype] << 3 | KINDS[y.dtype]
    sign = -1.0 if operation == "sub" else 1.0
    pieces = chunks(y.numel(), work=WORK)
    losses = np.zeros((len(pieces), 3), np.int64)
    losses[:, 0] = half_of_precision(call.format)

    def run(i: int) -> None:
        start, n = pieces[i]
        lose_chunk(a.data_ptr(), b.data_ptr(), y.data_ptr(), kinds, sign, start, n, losses[i].ctypes.data)

    run_chunks(run, len(pieces))
    lose(call, losses[:, 1:].sum(0, keepdims=True))
    return True


def lost_updates(before: Tensor, after: Tensor, step: Tensor) -> int:
    """Return how many elements a step that is not zero left as they were; all float32, dense and of one shape."""
    lost: int = count_lost(before.data_ptr(), after.data_ptr(), step.data_ptr(), after.numel())
    return lost


def _beside(result: Tensor, x: Tensor | float) -> Tensor | None:
    """Return `x` dense in the row-major order of `result`, or None where no kernel reads its dtype."""
    if not isinstance(x, Tensor):
        return torch.full(result.shape, x, dtype=torch.float64)
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return x.expand(result.shape).contiguous().resolve_neg() if x.dtype in KINDS and x.is_cpu else None
