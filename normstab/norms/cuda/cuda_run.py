"""Run the fused Triton kernels of a layer: what they are told, and the ledger.

    groups    [ program 0 ][ program 1 ] ...     a program for each
    told      one int64 tensor (see cuda_parts), in whose sites the programs count

What is counted is not waited for. Importing this needs Triton; under its interpreter it serves CPU tensors too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from normstab.norms.cuda.cuda_backward import backward_kernel
from normstab.norms.cuda.cuda_forward import forward_kernel
from normstab.norms.cuda.cuda_parts import (
    CONSTANTS_AT,
    COUNTS_AT,
    DRAW_AT,
    HAS_AT,
    IS_DOWN,
    IS_RECIPROCAL,
    SITES_AT,
    STRIDE,
)
from normstab.norms.fused.launch import Layer
from normstab.norms.fused.layer_table import FIELDS
from normstab.numerics.call import Call
from normstab.numerics.kernels.cuda.device_log import log_of
from normstab.numerics.kernels.cuda.launches import add_found, signed
from normstab.numerics.kernels.format_table import plan
from normstab.numerics.kernels.shortcut_table import LANE64
from normstab.numerics.philox import field_width
from normstab.torch_private import modes_off

__all__ = ["run_backward", "run_forward"]

# Values that a program takes at a time where it sums nothing, and blocks that it sums at a time.
BLOCK, BLOCKS = 512, 64
KIND, K, WIDTH = (FIELDS.index(name) for name in ("kind", "k", "width"))


def run_forward(layer: Layer, groups: int, tensors: Mapping[str, Tensor | None]) -> None:
    """Normalize every group; see `launch.Runner`."""
    names = ("x", "z", "gamma", "beta", "mean", "scale", "reciprocal", "stored", "members", "signs")
    run(forward_kernel, names, layer, groups, tensors)


def run_backward(layer: Layer, groups: int, tensors: Mapping[str, Tensor | None]) -> None:
    """Write the gradients of every group; see `launch.Runner`."""
    names = ("grad", "x", "gamma", "mean", "scale", "reciprocal", "members", "slope", "dx")
    run(backward_kernel, (*names, "d_gamma", "d_beta", "product", "grad_cast"), layer, groups, tensors)


def run(kernel: Any, names: tuple[str, ...], layer: Layer, groups: int, tensors: Mapping[str, Tensor | None]) -> None:
    """Run `kernel` on every group, with the tensors that it names; what it counts is added before it is read."""
    device = next(tensor.device for tensor in tensors.values() if tensor is not None)
    # Without waiting: memory that is not pinned is read before this returns.
    told = torch.from_numpy(told_of(layer)).to(device, non_blocking=True)
    given = [bits_of(tensors.get(name)) for name in names]
    # No fused multiply-add: it would merge two roundings into one.
    with torch.cuda.device_of(told):
        kernel[(groups,)](*given, told, **options_of(layer), enable_fp_fusion=False)
    counting = [(i, call) for i, call in enumerate(layer.sites.calls) if call is not None and call.row is not None]
    if counting:
        keep_counts(told[SITES_AT:].view(-1, STRIDE)[:, COUNTS_AT:DRAW_AT], counting)


def keep_counts(counts: Tensor, counting: list[tuple[int, Call]]) -> None:
    """Have what the kernel counted, a row for each site, added to the rows of the calls at these places."""
    log = log_of(counts.device)
    with modes_off():
        cells = log.borrow(len(counts))
        # On the device: the tensor that kernels counted in may then be freed.
        cells.counts[:, : counts.shape[1]].copy_(counts)

    def take(found: NDArray[np.int64]) -> None:
        for i, call in counting:
            add_found(call, found[i])

    log.take_back(cells, take, [call.row for _, call in counting if call.row is not None])


def bits_of(tensor: Tensor | None) -> Tensor | None:
    """Return float32 as int32 of the same bits, which no kernel flushes; integers as they are."""
    return tensor.view(torch.int32) if tensor is not None and tensor.dtype == torch.float32 else tensor


def told_of(layer: Layer) -> NDArray[np.int64]:
    """Return what `cuda_parts` reads: the fields, the constants, and a row for each site."""
    calls = layer.sites.calls
    told = np.zeros(SITES_AT + STRIDE * len(calls), np.int64)
    told[:CONSTANTS_AT] = layer.fields
    told[WIDTH] = max(told[WIDTH], 1)  # a sum in one lane is sequential
    told[CONSTANTS_AT:SITES_AT] = layer.constants.view(np.int64)
    rows = told[SITES_AT:].reshape(-1, STRIDE)
    for row, call in zip(rows, calls, strict=True):
        if call is not None:
            row[:COUNTS_AT] = plan(call.format, call.rounding, LANE64)
            if call.draw is not None:
                row[DRAW_AT:] = signed(call.draw.word), signed(call.draw.step)
    return told


def options_of(layer: Layer) -> dict[str, Any]:
    """Return what is compiled in."""
    sums, rounding, k = layer.ar.precision.accumulation, layer.ar.precision.rounding, max(int(layer.fields[K]), 1)
    # What differs between layers of one kind is told; what
    # is in HOW makes a kernel of its own, without dead code.
    how = (field_width(rounding.bits) if rounding.is_stochastic else 0) | (IS_DOWN if rounding.mode == "down" else 0)
    how |= IS_RECIPROCAL if layer.ar.precision.divide == "reciprocal" else 0
    how |= sum(1 << (HAS_AT + site) for site, call in enumerate(layer.sites.calls) if call is not None)
    is_blocked = sums.order == "blocked"
    lanes = BLOCKS if is_blocked else power_of_two_from(max(int(layer.fields[WIDTH]), 1))
    chosen = {"KIND": int(layer.fields[KIND]), "K": k, "MEMBERS": power_of_two_from(k), "LANES": lanes}
    return chosen | {"BLOCKED": is_blocked, "BLOCK": BLOCK, "HOW": tl.constexpr(how)}


def power_of_two_from(n: int) -> int:
    """Return the least power of two that is not below n."""
    return 1 << (n - 1).bit_length()
