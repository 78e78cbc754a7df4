"""Run the compiled native norm: which layers it serves, its memory per thread, the groups of each thread.

    row of a thread   [ FIELDS: numbers of the layer, addresses | values | grads | lanes | found ]

A group is normalized by one thread alone, so that a sum has one order, whatever the number of threads. Importing this
needs numba.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.norms.catalogue import Scheme
from normstab.norms.cpu.native_kernel import BUFFERS, FIELDS, backward_groups, buffer_bytes, forward_groups
from normstab.norms.fused.layer_table import KINDS
from normstab.norms.fused.plan_of_layer import groups_of, where
from normstab.norms.reduction import Reduction
from normstab.norms.unrounded.few_passes import Gradients, SavedNative
from normstab.numerics.dispatch import plain
from normstab.numerics.kernels.cpu.threads import run_chunks
from normstab.numerics.kernels.huge_pages import in_huge_pages

__all__ = ["backward", "forward"]

SERIAL_BELOW = 16384
LINE = 64  # bytes of a cache line
FIRST_TENSOR = FIELDS.index("x")
FEW = {"linf": 1, "range": 2}


def forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, scheme: Scheme, reduction: Reduction
) -> tuple[Tensor, Tensor, SavedNative]:
    """Return the output, the statistic to be stored, and what backward needs, of a float32 tensor on a CPU."""
    groups, k = groups_of(reduction), members_of(scheme)
    z = in_huge_pages(torch.empty(x.shape, dtype=torch.float32, device=x.device))
    mean, scale, stored = torch.empty(3, groups, dtype=torch.float32, device=x.device).unbind()
    members = torch.empty(groups, k, dtype=torch.int64, device=x.device) if k else None
    tensors = {"x": x, "gamma": gamma, "beta": beta}
    written = {"z": z, "mean": mean, "scale": scale, "stored": stored, "members": members}
    run(forward_groups, scheme, reduction, tensors, written)
    kept = reduction.keepdim(mean) if scheme.centres else None
    saved = SavedNative(x, kept, reduction.keepdim(scale), gamma, members)
    return z, reduction.keepdim(stored), saved


def backward(grad: Tensor, saved: SavedNative, scheme: Scheme, reduction: Reduction, *, needs_input: bool) -> Gradients:
    """Return the gradients of the input, and of gamma and beta: as many as there are parameters."""
    groups = groups_of(reduction)
    d_gamma, d_beta = torch.empty(2, groups, dtype=torch.float32, device=grad.device).unbind()
    dx = in_huge_pages(torch.empty(grad.shape, dtype=torch.float32, device=grad.device)) if needs_input else None
    written = {"dx": dx, "d_gamma": d_gamma, "d_beta": d_beta}
    tensors = {"x": saved.input, "gamma": saved.gamma, "mean": saved.mean, "scale": saved.scale}
    tensors |= {"members": saved.members, "grad": grad}
    run(backward_groups, scheme, reduction, tensors, written)
    if groups != math.prod(reduction.parameters):  # instance norm: one sum per sample
        d_gamma, d_beta = (reduction.keepdim(value).sum_to_size(reduction.parameters) for value in (d_gamma, d_beta))
    return Gradients(dx, d_gamma, d_beta)


def members_of(scheme: Scheme) -> int:
    """Return how many members the scale of a row has; 0 for l1."""
    assert scheme.spec is not None
    return FEW.get(scheme.spec.kind, scheme.spec.k)


def run(
    kernel: Callable[[int, int, int], None],
    scheme: Scheme,
    reduction: Reduction,
    tensors: dict[str, Tensor | None],
    written: dict[str, Tensor | None],
) -> None:
    """Run a kernel on all groups, whose results do not depend on how many threads there are.

    What is not row-major, such as an input in channels_last, is copied first, forward and backward.
    """
    assert scheme.spec is not None
    n, groups = reduction.n, groups_of(reduction)
    # Named here, so that they outlive the kernels: what is contiguous already is itself.
    held = {name: plain(x.detach()).contiguous() for name, x in tensors.items() if x is not None}
    held |= {name: x for name, x in written.items() if x is not None}
    constants = np.array([scheme.constant(n), scheme.eps], np.float32)
    known = where(reduction) | {name: x.data_ptr() for name, x in held.items()}
    known |= {"n": n, "kind": KINDS[scheme.spec.kind], "k": members_of(scheme), "centres": int(scheme.centres)}
    known |= {"has_eps": int(scheme.eps != 0), "needs_input": int("dx" in held), "constants": constants.ctypes.data}
    pieces = min(torch.get_num_threads() if n * groups >= SERIAL_BELOW else 1, groups)
    rows = [row_of_thread(known, n, members_of(scheme)) for _ in range(pieces)]

    def work(i: int) -> None:
        kernel(rows[i].ctypes.data, groups * i // pieces, groups * (i + 1) // pieces)

    run_chunks(work, pieces)


def row_of_thread(known: dict[str, int], n: int, k: int) -> NDArray[np.int64]:
    """Return the fields of one thread, with its buffers after them."""
    offsets, size = layout(n, k)
    row = np.empty(size, np.int64)
    start = row.ctypes.data
    buffers = {name: start + offset for name, offset in offsets.items()}
    row[: len(FIELDS)] = [buffers[name] if name in buffers else known.get(name, 0) for name in FIELDS]
    return row


@lru_cache(maxsize=256)
def layout(n: int, k: int) -> tuple[dict[str, int], int]:
    """Return the offset in bytes of each buffer of a thread, and the size of all in int64; they begin cache lines."""
    offsets, end, bytes_of = {}, 8 * len(FIELDS), buffer_bytes(n, k)
    for name in BUFFERS:
        offsets[name] = -(-end // LINE) * LINE
        end = offsets[name] + bytes_of[name]
    return offsets, -(-end // 8)
