"""Sums in a stated order of CUDA tensors.

Every order, format, rounding and counter is served, over any axes where they lie, without a copy; None is returned for
dtypes other than float16, bfloat16, float32 and float64. Importing it needs Triton; under its interpreter it serves CPU
tensors too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normstab.numerics.accumulate import SumCalls
from normstab.numerics.kernels.cuda.cuda_tensors import NAMES
from normstab.numerics.kernels.cuda.sums.sum_launches import job_of, run_passes, settle_job
from normstab.numerics.kernels.cuda.sums.sum_passes import Pass, Walk, block_pass, passes_of, walk_of
from normstab.numerics.precision import Accumulation

__all__ = ["accumulate", "block_sums"]


def accumulate(x: Tensor, reduced: Sequence[int], accumulation: Accumulation, at: SumCalls) -> Tensor | None:
    """Return the sums (K,) of `x` over the axes `reduced`, or None."""
    x = x.detach().resolve_neg()
    walk = walk_of(tuple(x.shape), x.stride(), tuple(reduced))
    found = _sums(x, walk, passes_of(accumulation.order, accumulation.width, walk.n), at, walk.n - 1)
    return None if found is None else found.reshape(-1)


def block_sums(x: Tensor, reduced: Sequence[int], width: int, at: SumCalls) -> Tensor | None:
    """Return the sums (K, blocks) of consecutive blocks of `width` addends, or None."""
    x = x.detach().resolve_neg()
    walk = walk_of(tuple(x.shape), x.stride(), tuple(reduced))
    blocks = block_pass(width, walk.n)
    found = _sums(x, walk, [blocks], at, walk.n - blocks.chunks)
    return None if found is None else found.contiguous()


def _sums(x: Tensor, walk: Walk, passes: list[Pass], at: SumCalls, additions: int) -> Tensor | None:
    """Return the sums (rows, chunks of the last pass), and count; None where the kernel does not read `x`."""
    if x.dtype not in NAMES or any(call is not None and call[:2] != at.add[:2] for call in at):
        return None
    with torch.cuda.device_of(x):
        job = job_of(x, at)
        found = run_passes([x], [walk], passes, job)
    settle_job(job, {"add": walk.rows * additions, "kahan": 3 * walk.rows * additions})
    return found
