"""Welford's mean on a CUDA device: which calls the kernel serves, its launch, the counting after it.

Importing it needs Triton; under its interpreter it serves CPU tensors too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.kernels.cuda.cuda_tensors import NAMES, table64
from normstab.numerics.kernels.cuda.device_log import Cells, log_of
from normstab.numerics.kernels.cuda.launches import add_found, drawn_from
from normstab.numerics.kernels.cuda.sums.ordered_steps import How
from normstab.numerics.kernels.cuda.sums.sum_passes import walk_of
from normstab.numerics.kernels.cuda.sums.welford_kernel import WELFORD_SITES, welford_kernel
from normstab.numerics.kernels.format_table import contains_dtype
from normstab.numerics.philox import field_width
from normstab.numerics.readable.losses import counts_losses, half_of_precision
from normstab.numerics.readable.reference import layout
from normstab.numerics.tallies.repeats import Repeats
from normstab.numerics.tallies.tally import COUNTERS

__all__ = ["welford"]

ROWS, A_WARP = 32, 32  # few rows a program, for there are seldom many
WIDEST = 24  # significand bits whose quotients and products float64 gives as well as exactly
BY_ZERO = COUNTERS.index("divide_by_zero")


def welford(x: Tensor, reduced: Sequence[int], calls: Mapping[str, Call]) -> tuple[Tensor, Tensor] | None:
    """Return Welford's mean (K,) and M2 (K,) in float64, or None; `calls` by its sites, zeros without that of M2."""
    x = x.detach().resolve_neg()
    call = calls["sum"]
    has_histogram = any(made.row is not None and made.row.has_histogram for made in calls.values())
    if x.dtype not in NAMES or x.dtype == torch.float64 or call.format.precision > WIDEST or has_histogram:
        return None
    walk = walk_of(tuple(x.shape), x.stride(), tuple(reduced))
    found = torch.zeros(2, walk.rows, dtype=torch.float64, device=x.device)
    cells = log_of(x.device).borrow(len(WELFORD_SITES)) if any(made.row for made in calls.values()) else None
    bits, draws = layout(x.dtype), [calls[site].draw if site in calls else None for site in WELFORD_SITES]
    with torch.cuda.device_of(x):
        welford_kernel[(-(-walk.rows // ROWS),)](
            x.view(bits.integer), *found.view(torch.int64), table64(call.format, call.rounding, False, x.device),
            *drawn_from(draws, x.device), None if cells is None else cells.counts, walk.rows, walk.n,
            half_of_precision(call.format), walk.kept, walk.reduced, walk.kept_index, walk.reduced_index,
            DIGITS=bits.fraction_bits, BIAS=bits.bias, HOW=tl.constexpr(how_of(x, call, counts=cells is not None)),
            HAS_M2="m2" in calls, ROWS=ROWS, num_warps=ROWS // A_WARP, enable_fp_fusion=False,
        )  # fmt: skip
    if cells is not None:
        settle(cells, calls, walk.rows * walk.n)
    return found[0], found[1]


def how_of(x: Tensor, call: Call, *, counts: bool) -> int:
    """Return what is compiled in, as bits of How."""
    how = field_width(call.rounding.bits) if call.rounding.is_stochastic else 0
    loads = not contains_dtype(call.format, NAMES[x.dtype])
    flags = {How.DOWN: call.rounding.mode == "down", How.FOLDS: True, How.COUNTS: counts, How.LOADS: loads}
    flags[How.LOSES] = counts and counts_losses(call)
    return how | sum(flag for flag, is_set in flags.items() if is_set)


def settle(cells: Cells, calls: Mapping[str, Call], results: int) -> None:
    """Have what the kernel counts added to the rows of the calls; of loads it counts how many as divided by zero."""
    counting = [
        (i, calls[site]) for i, site in enumerate(WELFORD_SITES) if site in calls and calls[site].row is not None
    ]

    def take(found: NDArray[np.int64], repeats: Repeats) -> None:
        for i, call in counting:
            is_load = WELFORD_SITES[i] == "load"
            found[:, i, 0] = found[:, i, BY_ZERO] if is_load else results
            if is_load:
                found[:, i, BY_ZERO] = 0
            if found[:, i, 0].any():
                add_found(call, found[:, i], repeats)

    log_of(cells.counts.device).take_back(cells, take, [call.row for _, call in counting if call.row is not None])
