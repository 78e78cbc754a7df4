"""Run the fused forward kernel on tensors: its arguments, threads, and the ledger.

Importing this needs numba.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.norms.dispersion import Scheme
from normstab.norms.fused.coverage import BLOCK
from normstab.norms.fused.environment import SLOTS
from normstab.norms.fused.forward_kernel import forward_groups
from normstab.norms.fused.plan_of_layer import FIELDS, FORWARD, Sites, groups_of, layer_fields
from normstab.norms.fused.sums import LEVELS
from normstab.norms.op_by_op import cast_parameters
from normstab.norms.reduction import Reduction
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.kernels.plan import LANE32, plan
from normstab.numerics.kernels.steps import contexts, settle_all
from normstab.numerics.kernels.threads import run_chunks

__all__ = ["AGAIN", "Run", "SavedFused", "forward"]

SERIAL_BELOW = 16384
INFINITY = 0x7F800000
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
        made, marks = contexts(self.sites.calls, pieces), marks_of(self.sites.calls)
        environments = [self.environment(tensors, made[i], marks.copy()) for i in range(pieces)]

        def work(i: int) -> None:
            kernel(environments[i][0].ctypes.data, bounds[i], bounds[i + 1])

        run_chunks(work, pieces)
        settle_all(made, self.sites.calls)

    def environment(
        self, tensors: Mapping[str, Tensor | None], made: NDArray[np.int64], marks: NDArray[np.uint32]
    ) -> list[NDArray[Any]]:
        """Return the row of addresses of one thread, and every array that it points to, to keep them alive."""
        precision, width = self.ar.precision, max(int(self.fields[WIDTH]), LEVELS)
        known: dict[str, NDArray[Any]] = {
            "table": plan(precision.format(), precision.rounding, LANE32),
            "contexts": made,
            "marks": marks,
            "constants": self.constants,
            "drawn": np.zeros(BLOCK, np.uint32),
        }
        sizes = {"values": self.fields[N], "kept": self.fields[N], "block": 6 * BLOCK, "found": BLOCK}
        sizes |= {"words": BLOCK + 16, "lanes": STREAMS * width, "before": width}
        wide = {"p": BLOCK, "q": BLOCK, "exact": BLOCK, "rounded": BLOCK, "state": 2 * STREAMS}
        wide |= {"partial": STREAMS * width, "leaves": STREAMS * width}
        known |= {name: np.empty(size, np.float32) for name, size in sizes.items()}
        known |= {name: np.zeros(size, np.int64) for name, size in wide.items()}
        row = np.concatenate([self.fields, np.zeros(len(SLOTS), np.int64)])
        for index, name in enumerate(SLOTS, start=len(self.fields)):
            tensor = tensors.get(name)
            if name in known:
                row[index] = known[name].ctypes.data
            elif tensor is not None:
                row[index] = tensor.data_ptr()
        return [row, *known.values()]


def marks_of(calls: list[Call | None]) -> NDArray[np.uint32]:
    """Return the largest and the smallest magnitude that each site's row has seen, as float32 bits."""
    marks = np.zeros((len(calls), 2), np.uint32)
    marks[:, 1] = INFINITY
    for i, call in enumerate(calls):
        if call is not None and call.row is not None:
            marks[i] = call.row.extremes.view(np.uint32)
    return marks
