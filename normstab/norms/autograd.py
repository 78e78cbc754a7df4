"""Emulated normalization under autograd: the closed-form gradients, rounded as the forward pass is.

Under `native` the operations are torch's own, and torch differentiates them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from normstab.norms.functional import (
    HALVES,
    Forward,
    Reduction,
    Scheme,
    in_16_bits,
    normalize_backward,
    normalize_forward,
    normalize_with,
)
from normstab.norms.unrounded.native_norm import normalize_native, serves
from normstab.norms.unrounded.outputs import own
from normstab.norms.wide_norm import INSIDE
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.dispatch import opaque, plain
from normstab.numerics.readable.reference import holds
from normstab.numerics.rounding import check_operand
from normstab.torch_private import modes_off

__all__ = ["Normalized", "normalize"]


class Normalized(NamedTuple):
    """The output, and the mean and the statistic to be stored, one value per row of the reduction."""

    output: Tensor
    mean: Tensor | None
    stored: Tensor | None


class Plan(NamedTuple):
    """How a layer normalizes: everything but the tensors that have gradients."""

    scheme: Scheme
    reduction: Reduction
    ar: Arithmetic
    statistics: tuple[Tensor | None, Tensor | None] | None

    @property
    def is_native(self) -> bool:
        """Whether plain torch computes, and differentiates."""
        return self.ar.is_native

    @opaque
    def emulate(self, x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Normalized:
        """Normalize in the arithmetic, differentiable by backward, once."""
        check_operand(x, self.ar.format)
        x, gamma, beta = plain(x), *(None if p is None else plain(p) for p in (gamma, beta))
        found: list[Normalized] = []
        output: Tensor = _Emulated.apply(x, gamma, beta, self, found)  # type: ignore[no-untyped-call]
        return found[0]._replace(output=output)

    def run(self, x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Forward:
        """Normalize by the statistics of `x`, or by those given."""
        if self.statistics is None:
            return normalize_forward(x, gamma, beta, self.scheme, self.reduction, self.ar)
        return normalize_with(x, gamma, beta, self.statistics, self.scheme, self.reduction, self.ar)


def normalize(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    scheme: Scheme,
    reduction: Reduction,
    ar: Arithmetic,
    statistics: tuple[Tensor | None, Tensor | None] | None = None,
) -> Normalized:
    """Return z = gamma (x - mu) / s + beta, differentiable in x, gamma and beta.

    With `statistics` (the running mean, and what is stored of the scale) those are used, as in evaluation.
    The output has the dtype of `x` where that can hold the compute format, else the carrier's. Of no values at
    all there are no statistics, and the gradients of gamma and beta are zero.
    """
    if ar.precision.autocast != "none" and x.dtype in (torch.float32, torch.float64):
        ar = INSIDE  # under autocast what is wide stays so
    plan = Plan(scheme, reduction, ar, statistics)
    if x.numel() == 0:
        return Normalized(_of_nothing(x, gamma, beta), None, None)
    if ar.is_native:
        if statistics is None and serves(x, (gamma, beta), scheme):
            return Normalized(*normalize_native(x, gamma, beta, scheme, reduction))
        # As torch's own layers do, half tensors are normalized in float32.
        done = plan.run(x.float() if x.dtype in HALVES else x, gamma, beta)
        return Normalized(done.output.to(x.dtype), done.mean, done.stored)
    return plan.emulate(x, gamma, beta)


def _of_nothing(x: Tensor, *parameters: Tensor | None) -> Tensor:
    """Return the empty output of an empty `x`, a function of the parameters all the same."""
    with modes_off():
        output = x.clone()
        for parameter in parameters:
            if parameter is not None:
                output = output + parameter.flatten()[:0].sum()  # an empty sum: of gradient zero
    return output


class _Emulated(torch.autograd.Function):
    """Round forward and backward; any torch mode that is active sees one operation, not its insides."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor | None, beta: Tensor | None, plan: Plan, found: list[Normalized]
    ) -> Tensor:
        with modes_off():
            done = plan.run(x, gamma, beta)
            output = done.output
            if output.dtype != x.dtype and holds(x.dtype, plan.ar.format):
                output = output.to(x.dtype)
            output = own(output, done.saved)
        saved = in_16_bits(done.saved, x.detach(), x.dtype, plan.ar) if x.dtype in HALVES else done.saved
        ctx.save_for_backward(*saved)
        ctx.plan, ctx.kind, ctx.dtype = plan, type(saved), x.dtype
        ctx.shapes = [None if tensor is None else tensor.shape for tensor in (gamma, beta)]
        found.append(Normalized(output, done.mean, done.stored))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        with modes_off():
            needs = tuple(ctx.needs_input_grad[:3])
            gradients = normalize_backward(
                grad, ctx.kind(*ctx.saved_tensors), plan.scheme, plan.reduction, plan.ar, (needs[0], needs[1], needs[2])
            )
            parameters = [
                None if value is None else value.reshape(shape)
                for value, shape in zip(gradients[1:], ctx.shapes, strict=True)
            ]
            d_input = gradients.input
            if (
                d_input is not None
                and d_input.dtype != ctx.dtype
                and holds(ctx.dtype, plan.ar.in_format("gradient").format)
            ):
                d_input = d_input.to(ctx.dtype)
        return d_input, *parameters, None, None
