"""Matrix products with an emulated accumulator, of CUDA tensors.

Every order, format, rounding and counter is served, the operands read where they lie; None is returned for an empty
product. Fused ones are computed in float64. Importing it needs Triton; under its interpreter it serves CPU tensors too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normstab.numerics.accumulate import SumCalls
from normstab.numerics.call import Call
from normstab.numerics.kernels.cuda.sums.ordered_steps import How
from normstab.numerics.kernels.cuda.sums.sum_launches import job_of, run_passes, settle_job
from normstab.numerics.kernels.cuda.sums.sum_passes import passes_of, walked_factors
from normstab.numerics.precision import Accumulation
from normstab.numerics.sums.matmul import Shapes

__all__ = ["matmul"]


def matmul(
    a: Tensor, b: Tensor, shapes: Shapes, accumulation: Accumulation, product: Call, at: SumCalls
) -> Tensor | None:
    """Return the products `a @ b`, flattened over (B, M, N), or None."""
    both = SumCalls(at.add, product, at.kahan)
    walked = walked_factors(a, b, shapes)
    if walked is None or any(call and call[:2] != product[:2] for call in both):
        return None
    factors, walks = walked
    passes = passes_of(accumulation.order, accumulation.width, shapes.k)
    with torch.cuda.device_of(a):
        job = job_of(factors[0], both, more=How.LOADS | (How.FUSED if accumulation.fused else 0))
        found = run_passes(factors, walks, passes, job)
    rows, chains = walks[0].rows, passes[0].chunks
    additions = rows * (shapes.k - 1)
    settle_job(
        job, {"add": additions, "kahan": 3 * additions, "load": rows * (chains if accumulation.fused else shapes.k)}
    )
    return found.reshape(-1)
