"""The fused forward pass of linf, topK and range: the tensors, the calls of the sites, and what backward needs.

The kernels are numba's (`cpu_run`), which is imported with the first layer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.norms.catalogue import Scheme
from normstab.norms.fused.layer_table import FIELDS, FORWARD
from normstab.norms.fused.plan_of_layer import Layer, Sites, groups_of, layer_fields
from normstab.norms.op_by_op import Forward
from normstab.norms.program.known_formats import fitting_loads
from normstab.norms.program.layer_outline import Outline
from normstab.norms.reduction import Reduction
from normstab.norms.trace import Program, trace_forward
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.kernels.huge_pages import in_huge_pages

__all__ = ["AGAIN", "SavedFused", "forward"]

K = FIELDS.index("k")
# What the backward pass computes once more: these operations of the forward pass.
AGAIN = ("input", "centre", "divide")
CONSTANTS = ("constant", "eps")  # in the order in which the kernels have them


class SavedFused(NamedTuple):
    """What the fused backward pass needs: the input itself, in its own dtype, and per group mean, s, 1 / s and members.

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
) -> Forward:
    """Return what `op_by_op.forward` returns, but for what backward needs: a SavedFused."""
    source = x.detach().to(torch.float32).contiguous()
    sites = Sites(FORWARD, ar)
    outline = Outline(scheme, reduction, ar.precision, gamma is not None, beta is not None)
    (gamma_cast, beta_cast), constants = forward_sites(sites, outline, (gamma, beta), ar)
    fields = layer_fields(scheme, reduction, ar, has_gamma=gamma is not None, has_beta=beta is not None)
    groups, k = groups_of(reduction), int(fields[K])
    device = x.device
    z = in_huge_pages(torch.empty(x.shape, dtype=torch.float32, device=device))
    mean, scale, reciprocal, stored = (torch.zeros(groups, dtype=torch.float32, device=device) for _ in range(4))
    members, signs = (torch.zeros(groups, k, dtype=dtype, device=device) for dtype in (torch.int64, torch.float32))
    tensors = {"x": source, "z": z, "gamma": gamma_cast, "beta": beta_cast, "mean": mean, "scale": scale}
    tensors |= {"reciprocal": reciprocal, "stored": stored, "members": members, "signs": signs}
    from normstab.norms.cpu.cpu_run import run_forward  # which needs numba

    run_forward(Layer(sites, ar, fields, constants), groups, tensors)
    saved = SavedFused(x.detach(), mean, scale, reciprocal, gamma_cast, members, signs, draws_of(sites))
    kept = reduction.keepdim(mean) if scheme.centres else None
    return Forward(z, kept, reduction.keepdim(scale), reduction.keepdim(stored), saved)


@lru_cache(maxsize=512)
def forward_program(outline: Outline) -> tuple[Program, frozenset[str]]:
    """Return the program of a forward pass, and the loads of its sums that cast nothing."""
    program = trace_forward(outline)
    return program, fitting_loads(program)


def forward_sites(
    sites: Sites, outline: Outline, parameters: tuple[Tensor | None, Tensor | None], ar: Arithmetic
) -> tuple[tuple[Tensor | None, Tensor | None], NDArray[np.float64]]:
    """Make the calls of the forward pass in the order of its program; return the parameters, then C and eps, cast."""
    program, fitting = forward_program(outline)
    given, constants = dict(zip(("gamma", "beta"), parameters, strict=True)), np.zeros(len(CONSTANTS))
    for step in program.steps:
        name = step.calls[0].operation if step.calls else ""
        parameter = given.get(name)
        # gamma and beta are cast here, as tensors: they are small, and shared by groups.
        if parameter is not None:
            given[name] = ar.cast(parameter, name).reshape(outline.reduction.parameters)
        elif step.kind == "constant":
            value, name = step.detail
            constants[CONSTANTS.index(name)] = ar.constant(value, name)
        else:
            sites.make(step, fitting)
    return (given["gamma"], given["beta"]), constants


def draws_of(sites: Sites) -> Tensor:
    """Return the Philox words and steps of the input's cast, the centring and the division, to draw them again."""
    draws = torch.zeros(len(AGAIN), 2, dtype=torch.int64, device="cpu")
    for i, name in enumerate(AGAIN):
        call = sites[name]
        if call is not None and call.draw is not None:
            draws[i] = torch.from_numpy(np.array(call.draw[:2], np.uint64).astype(np.int64))
    return draws
