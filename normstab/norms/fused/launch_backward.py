"""The fused backward pass of a layer, and the sums of the gradients of parameters that many groups share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.norms.dispersion import Scheme, slopes
from normstab.norms.fused.launch import AGAIN, Layer, SavedFused, runner_of
from normstab.norms.fused.plan_of_layer import BACKWARD, Sites, SumCallsOf, groups_of, layer_fields, sum_calls_of
from normstab.norms.op_by_op import Gradients
from normstab.norms.reduction import Reduction
from normstab.numerics.accumulate import accumulate
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.execute import round_tensor
from normstab.numerics.formats import Format
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
    source = grad.detach().to(torch.float32).contiguous()
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
    sites = Sites(BACKWARD, ar)
    slope, constants = backward_sites(sites, of, saved, scheme, reduction, ar, needs_input=needs_input)
    groups = groups_of(reduction)
    dx = torch.empty(grad.shape, device=grad.device) if needs_input else None
    tensors = {"grad": source, "x": saved.input, "gamma": saved.gamma, "mean": saved.mean, "scale": saved.scale}
    tensors |= {"reciprocal": saved.reciprocal, "members": saved.members, "slope": slope, "dx": dx}
    tensors |= of.room(groups, grad.device)
    runner_of(grad).run_backward(Layer(sites, ar, fields, constants), groups, tensors)
    return Gradients(dx, *of.gradients())


def backward_sites(
    sites: Sites,
    of: Parameters,
    saved: SavedFused,
    scheme: Scheme,
    reduction: Reduction,
    ar: Arithmetic,
    *,
    needs_input: bool,
) -> tuple[Tensor, NDArray[np.float64]]:
    """Make the calls of the backward pass in the order of `op_by_op`; return ds/dx of the members, and C."""
    slope, constants = torch.zeros(1, 1, device=saved.input.device), np.zeros(2)
    kind, gradient = None if scheme.spec is None else scheme.spec.kind, ar.format
    call_again(sites, saved, scheme, ar)
    sites.call("grad")
    of.make_calls(sites)
    if not needs_input:
        return slope, constants
    if saved.gamma is not None:
        sites.call("scale")
    if scheme.centres:
        sites.mean("mean", gradient)
        sites.call("centre")
    if kind is None:
        return slope, constants
    sites.call("product")
    if kind in ("l2", "l1"):
        sites.mean("product", gradient)
    else:
        sites.sum("product.sum", gradient)
        found = slopes(saved.signs, saved.members, scheme, reduction, ar)
        shape = (len(saved.members), -1)
        slope = torch.cat([part.expand(*shape) for part in found], 1).to(torch.float32)
        sites.call("project", "project.elsewhere")
    if kind == "l1":
        constants[0] = ar.constant(scheme.constant(reduction.n), operation="constant")
        sites.call("constant")
        if scheme.centres:
            sites.mean("slope", SIGNS)
            sites.call("slope")
    if kind in ("l2", "l1"):
        sites.call("project")
    sites.call("subtract", "divide")
    return slope, constants


# The values of sign(d): -1, 0 and 1, which the narrowest accumulator may lack.
SIGNS = Format("sign", 1, 0, 0, 1.0, has_subnormals=False)


def call_again(sites: Sites, saved: SavedFused, scheme: Scheme, ar: Arithmetic) -> None:
    """Make the uncounted calls of what was computed before, with its random bits."""
    was_computed = {"input": True, "centre": scheme.centres, "divide": scheme.spec is not None}
    for name, (word, step) in zip(AGAIN, saved.draws.numpy().astype(np.uint64).tolist(), strict=True):
        if not was_computed[name]:
            continue
        draw = Draw(word, step) if ar.precision.rounding.is_stochastic else None
        sites[f"silent.{name}"] = Call(ar.precision.format(), ar.precision.rounding, draw=draw)


class Parameters:
    """The gradients of gamma and beta: summed in the kernel where a group is a channel, else afterwards."""

    def __init__(self, reduction: Reduction, ar: Arithmetic, *, needs_gamma: bool, needs_beta: bool) -> None:
        self.reduction, self.ar = reduction, ar
        self.needs = {"dgamma": needs_gamma, "dbeta": needs_beta}
        self.in_kernel = reduction.axes == (0, 2)
        self.values: dict[str, Tensor | None] = {}
        self.calls: dict[str, tuple[SumCallsOf, Call]] = {}

    def make_calls(self, sites: Sites) -> None:
        """Make the calls of both gradients, beta's first."""
        for name in ("dbeta", "dgamma"):
            if not self.needs[name]:
                continue
            if name == "dgamma":
                sites.call("dgamma.product")
            if self.in_kernel:
                sites.sum(f"{name}.sum", self.ar.format)
                sites.call(name)
            else:
                self.calls[name] = sum_calls_of(self.ar, f"{name}.sum"), self.ar.call(name)

    def room(self, groups: int, device: torch.device) -> dict[str, Tensor | None]:
        """Return where the kernel writes: the gradients, or the terms of those that it does not sum."""
        for name, is_needed in self.needs.items():
            shape = (groups,) if self.in_kernel else self.reduction.view
            self.values[name] = torch.empty(shape, device=device) if is_needed else None
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
        made = {"": sums.add, ".load": sums.load, ".kahan": sums.kahan or sums.add}
        total = accumulate(
            terms,
            self.reduction.parameter_axes,
            keepdim=True,
            accumulation=self.ar.precision.accumulation,
            calls=lambda suffix, _: made[suffix],
            format=self.ar.format,
        )
        return round_tensor(total, cast)
