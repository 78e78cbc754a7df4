"""The fused backward pass of linf, topK and range, and the sums of gradients of parameters that many groups share."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from normstab.norms.catalogue import Scheme
from normstab.norms.dispersion import slopes
from normstab.norms.fused.launch import AGAIN, SavedFused
from normstab.norms.fused.layer_table import BACKWARD
from normstab.norms.fused.plan_of_layer import Layer, Sites, groups_of, layer_fields
from normstab.norms.op_by_op import Gradients
from normstab.norms.program.known_formats import fitting_loads
from normstab.norms.program.layer_outline import Outline
from normstab.norms.reduction import Reduction
from normstab.norms.trace import Program, trace_backward
from normstab.numerics.accumulate import accumulate
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.execute import round_tensor
from normstab.numerics.kernels.huge_pages import in_huge_pages
from normstab.numerics.philox import Draw

__all__ = ["backward"]


def backward(
    grad: Tensor,
    saved: SavedFused,
    scheme: Scheme,
    reduction: Reduction,
    ar: Arithmetic,
    needs: tuple[bool, bool, bool],
) -> Gradients:
    """Return what `op_by_op.backward` returns."""
    ar = ar.towards("backward").in_format("gradient")
    needs_input, needs_gamma, needs_beta = needs
    source, x = (tensor.detach().to(torch.float32).contiguous() for tensor in (grad, saved.input))
    fields = layer_fields(
        scheme,
        reduction,
        ar,
        has_gamma=saved.gamma is not None,
        sums_parameters=reduction.axes == (0, 2),
        needs_input=needs_input,
        needs_gamma=needs_gamma,
        needs_beta=needs_beta,
    )
    of = Parameters(reduction, ar, needs_gamma=needs_gamma, needs_beta=needs_beta)
    outline = Outline(scheme, reduction, ar.precision, has_gamma=saved.gamma is not None)
    sites = Sites(BACKWARD, ar)
    slope = backward_sites(sites, of, saved, backward_program(outline, needs), scheme)
    groups = groups_of(reduction)
    dx = in_huge_pages(torch.empty(grad.shape, dtype=torch.float32, device=grad.device)) if needs_input else None
    tensors = {"grad": source, "x": x, "gamma": saved.gamma, "mean": saved.mean, "scale": saved.scale}
    tensors |= {"reciprocal": saved.reciprocal, "members": saved.members, "slope": slope, "dx": dx}
    tensors |= of.room(groups, grad.device)
    from normstab.norms.cpu.cpu_run import run_backward  # which needs numba

    run_backward(Layer(sites, ar, fields, np.zeros(2)), groups, tensors)
    return Gradients(dx, *of.gradients())


@lru_cache(maxsize=512)
def backward_program(outline: Outline, needs: tuple[bool, bool, bool]) -> tuple[Program, frozenset[str]]:
    """Return the program of a backward pass, and the loads of its sums that cast nothing."""
    program = trace_backward(outline, needs)
    return program, fitting_loads(program)


def backward_sites(
    sites: Sites, of: Parameters, saved: SavedFused, traced: tuple[Program, frozenset[str]], scheme: Scheme
) -> Tensor:
    """Make the calls of the backward pass in the order of its program; return ds/dx of the members.

    These are few: their slopes are computed here, by the readable code itself.
    """
    program, fitting = traced
    slope, ar = torch.zeros(1, 1, dtype=torch.float32, device=saved.input.device), of.ar
    call_again(sites, saved, scheme, ar)
    for step in program.steps:
        name = step.calls[0].operation if step.calls else ""
        # `slopes` makes the call of the constant, and those of the slopes, itself.
        if step.kind == "constant":
            found = slopes(saved.signs, saved.members, scheme, of.reduction, ar)
            slope = torch.cat([part.expand(len(saved.members), -1) for part in found], 1).to(torch.float32)
        elif not name.startswith(OF_SLOPES):
            sites.make(step, fitting if of.in_kernel or not name.startswith(OF_PARAMETERS) else frozenset())
    of.take_calls(sites)
    return slope


# The operations that `slopes` makes the calls of, and those of the gradients of parameters.
OF_SLOPES, OF_PARAMETERS = ("constant", "slope"), ("dbeta", "dgamma")


def call_again(sites: Sites, saved: SavedFused, scheme: Scheme, ar: Arithmetic) -> None:
    """Make the uncounted calls of what was computed before, with its random bits."""
    was_computed = {"input": True, "centre": scheme.centres, "divide": True}
    for name, (word, step) in zip(AGAIN, saved.draws.numpy().astype(np.uint64).tolist(), strict=True):
        if not was_computed[name]:
            continue
        # The random bits of the forward pass, so that d and y come out as they were; nothing is counted twice.
        draw = Draw(word, step) if ar.precision.rounding.is_stochastic else None
        sites[f"silent.{name}"] = Call(ar.precision.format(), ar.precision.rounding, draw=draw)


class Parameters:
    """The gradients of gamma and beta: summed in the kernel where a group is a channel, else afterwards."""

    def __init__(self, reduction: Reduction, ar: Arithmetic, *, needs_gamma: bool, needs_beta: bool) -> None:
        self.reduction, self.ar = reduction, ar
        self.needs = {"dgamma": needs_gamma, "dbeta": needs_beta}
        self.in_kernel = reduction.axes == (0, 2)
        self.values: dict[str, Tensor | None] = {}
        self.calls: dict[str, tuple[dict[str, Call], Call]] = {}

    def take_calls(self, sites: Sites) -> None:
        """Take the calls of sums that the kernel does not make out of its sites."""
        for name in [name for name, is_needed in self.needs.items() if is_needed and not self.in_kernel]:
            places = {suffix: f"{name}.sum{suffix}" for suffix in ("", ".load")}
            made = {suffix: call for suffix, place in places.items() if (call := sites[place]) is not None}
            cast = sites[name]
            assert cast is not None
            self.calls[name] = made, cast
            for place in (*places.values(), name):
                sites[place] = None

    def room(self, groups: int, device: torch.device) -> dict[str, Tensor | None]:
        """Return where the kernel writes: the gradients, or the terms of those that it does not sum."""
        for name, is_needed in self.needs.items():
            shape = (groups,) if self.in_kernel else self.reduction.view
            self.values[name] = torch.empty(shape, dtype=torch.float32, device=device) if is_needed else None
        names = ("d_gamma", "d_beta") if self.in_kernel else ("product", "grad_cast")
        return dict(zip(names, (self.values["dgamma"], self.values["dbeta"]), strict=True))

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of gamma and beta in the shape of the parameters."""
        return self._gradient("dgamma"), self._gradient("dbeta")

    def _gradient(self, name: str) -> Tensor | None:
        """Return one gradient, or None where it is not needed."""
        terms = self.values[name]
        if terms is None or self.in_kernel:
            return None if terms is None else terms.reshape(self.reduction.parameters)
        sums, cast = self.calls[name]
        total = accumulate(
            terms,
            self.reduction.parameter_axes,
            keepdim=True,
            accumulation=self.ar.precision.accumulation,
            calls=lambda suffix, _: sums[suffix],
            format=self.ar.format,
        )
        return round_tensor(total, cast)
