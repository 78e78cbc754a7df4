"""Run the fused forward kernel on tensors: its arguments, threads, and the ledger.

Importing this needs numba.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.norms.dispersion import Scheme
from normstab.norms.fused.coverage import BLOCK
from normstab.norms.fused.environment import SLOTS, read_marks
from normstab.norms.fused.forward_kernel import forward_groups
from normstab.norms.fused.plan_of_layer import FIELDS, FORWARD, Sites, groups_of, layer_fields
from normstab.norms.fused.sums import LEVELS
from normstab.norms.op_by_op import cast_parameters
from normstab.norms.reduction import Reduction
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.kernels.plan import LANE32, plan
from normstab.numerics.kernels.steps import contexts, rows_of, settle_all
from normstab.numerics.kernels.threads import run_chunks

__all__ = ["AGAIN", "Run", "SavedFused", "forward"]

SERIAL_BELOW = 16384
LINE = 8  # int64 of a cache line
N, K, WIDTH = (FIELDS.index(name) for name in ("n", "k", "width"))
STREAMS = 5
# What the backward pass computes once more: these operations of the forward pass.
AGAIN = ("input", "centre", "divide")


class SavedFused(NamedTuple):
    """What the fused backward pass needs: the input itself, and per group the mean, s, 1 / s and the members.

    `signs` are those of d at the members; `draws` say where the random bits of the forward pass came from.
    """

    input: Tensor
    mean: Tensor
    scale: Tensor
    reciprocal: Tensor
    gamma: Tensor | None
    members: Tensor
    signs: Tensor
    draws: Tensor


def forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, scheme: Scheme, reduction: Reduction, ar: Arithmetic
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, SavedFused]:
    """Return the output, mean, scale and stored statistic of `op_by_op.forward`, and what backward needs."""
    source = x.detach().to(torch.float32).contiguous()
    sites = Sites(FORWARD, ar)
    sites.call("input")
    gamma_cast, beta_cast = cast_parameters(gamma, beta, reduction, ar)
    constants = forward_sites(sites, scheme, reduction, ar, has_gamma=gamma is not None, has_beta=beta is not None)
    fields = layer_fields(scheme, reduction, ar, has_gamma=gamma is not None, has_beta=beta is not None)
    groups = groups_of(reduction)
    k = max(int(fields[K]), 1)
    z = torch.empty(x.shape)
    mean, scale, reciprocal, stored = (torch.zeros(groups) for _ in range(4))
    members, signs = torch.zeros(groups, k, dtype=torch.int64), torch.zeros(groups, k)
    tensors = {"x": source, "z": z, "gamma": gamma_cast, "beta": beta_cast, "mean": mean, "scale": scale}
    tensors |= {"reciprocal": reciprocal, "stored": stored, "members": members, "signs": signs}
    Run(sites, ar, fields, constants).over(forward_groups, groups, tensors)
    saved = SavedFused(source, mean, scale, reciprocal, gamma_cast, members, signs, draws_of(sites))
    spec = scheme.spec
    has_stored = spec is not None and (scheme.tracks or spec.kind != "l2")
    return (
        z,
        reduction.keepdim(mean) if scheme.centres else None,
        reduction.keepdim(scale) if spec is not None else None,
        reduction.keepdim(stored) if has_stored else None,
        saved,
    )


def forward_sites(
    sites: Sites, scheme: Scheme, reduction: Reduction, ar: Arithmetic, *, has_gamma: bool, has_beta: bool
) -> NDArray[np.float64]:
    """Make the calls of the forward pass in the order of `op_by_op`; return C and eps, as cast."""
    precision, constants = ar.precision, np.zeros(2)
    compute = precision.format()
    kind = None if scheme.spec is None else scheme.spec.kind
    role = "variance" if kind == "l2" else None
    if scheme.centres:
        sites.mean("mean", compute)
        sites.call("centre")
    if kind is not None:
        if kind == "l2":
            sites.call("square", role="square")
        if kind in ("l2", "l1", "topk"):
            addends = precision.format("square") if kind == "l2" else compute
            sites.mean("dispersion", addends, role=role, are_magnitudes=kind != "l2")
        if kind == "range":
            sites.call("max")
        if kind != "l2":
            constants[0] = ar.constant(scheme.constant(reduction.n), operation="constant")
            sites.call("constant")
        if scheme.eps != 0:
            constants[1] = ar.constant(scheme.eps, operation="eps")
            sites.call("eps", role=role)
        if kind == "l2":
            sites.call("sqrt")
            if scheme.tracks and reduction.n > 1:
                sites.call("running_var", role="variance")
        if precision.divide == "reciprocal":
            sites.call("reciprocal", role="reciprocal")
        sites.call("divide")
    sites.call(*(["scale"] if has_gamma else []), *(["shift"] if has_beta else []))
    return constants


def draws_of(sites: Sites) -> Tensor:
    """Return the Philox words and steps of the input's cast, the centring and the division, to draw them again."""
    draws = torch.zeros(len(AGAIN), 2, dtype=torch.int64)
    for i, name in enumerate(AGAIN):
        call = sites[name]
        if call is not None and call.draw is not None:
            draws[i] = torch.from_numpy(np.array(call.draw[:2], np.uint64).astype(np.int64))
    return draws


class Run(NamedTuple):
    """One launch of a kernel over all groups: its environment per thread, and what it counted, settled at the end."""

    sites: Sites
    ar: Arithmetic
    fields: NDArray[np.int64]
    constants: NDArray[np.float64]

    def over(self, kernel: Callable[[int, int, int], None], groups: int, tensors: Mapping[str, Tensor | None]) -> None:
        """Run `kernel` on every group of the layer's `tensors`, named as SLOTS."""
        threads = torch.get_num_threads() if groups * int(self.fields[N]) >= SERIAL_BELOW else 1
        pieces = min(threads, groups)
        bounds = [groups * i // pieces for i in range(pieces + 1)]
        made, rows = contexts(self.sites.calls, pieces), rows_of(self.sites.calls)
        table = plan(self.ar.precision.format(), self.ar.precision.rounding, LANE32)
        shared = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
        shared |= {"table": table.ctypes.data, "constants": self.constants.ctypes.data}
        environments = [self.environment(shared | {"contexts": made[i].ctypes.data}, rows) for i in range(pieces)]

        def work(i: int) -> None:
            kernel(environments[i].ctypes.data, bounds[i], bounds[i + 1])

        run_chunks(work, pieces)
        settle_all(made, self.sites.calls, rows)

    def environment(self, addresses: Mapping[str, int], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of one thread: the fields, an address in every slot, and after them the buffers."""
        offsets, size = layout(int(self.fields[N]), int(self.fields[WIDTH]), len(rows))
        memory = np.empty(size, np.int64)
        start, slots = memory.ctypes.data, len(self.fields)
        memory[:slots] = self.fields
        memory[slots : slots + len(SLOTS)] = [
            start + 8 * offsets[name] if name in offsets else addresses.get(name, 0) for name in SLOTS
        ]
        memory[offsets["drawn"] :][: BLOCK // 2] = 0  # for roundings that draw nothing
        read_marks(rows.ctypes.data, len(rows), start + 8 * offsets["marks"])
        return memory


@lru_cache(maxsize=256)
def layout(n: int, width: int, sites: int) -> tuple[dict[str, int], int]:
    """Return the offset of each buffer in the memory of a thread, and its size, in int64; buffers begin cache lines."""
    width = max(width, LEVELS)
    narrow = {"values": n, "kept": n, "block": 6 * BLOCK, "found": BLOCK, "drawn": BLOCK, "words": BLOCK + 16}
    narrow |= {"lanes": STREAMS * width, "before": width}
    wide = {"p": BLOCK, "q": BLOCK, "exact": BLOCK, "rounded": BLOCK, "state": 2 * STREAMS}
    wide |= {"partial": STREAMS * width, "leaves": STREAMS * width, "marks": sites}
    offsets, end = {}, len(FIELDS) + len(SLOTS)
    for name, size in ({name: -(-size // 2) for name, size in narrow.items()} | wide).items():
        offsets[name] = -(-end // LINE) * LINE
        end = offsets[name] + size
    return offsets, end
