"""Native l1, linf, top k and range as one function of autograd, which saves what torch's l2 saves: x, mean and s.

On a CPU it is compiled, elsewhere plain torch in few passes; `op_by_op` is the oracle of both. Where a tensor is no
plain one, or torch traces or transforms, `op_by_op` itself runs and torch differentiates it.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from normstab.norms import op_by_op
from normstab.norms.catalogue import NORMS, Scheme
from normstab.norms.fused.coverage import LARGEST_K
from normstab.norms.reduction import Reduction
from normstab.norms.unrounded import few_passes
from normstab.norms.unrounded.few_passes import Gradients, SavedNative
from normstab.norms.unrounded.outputs import own
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.dispatch import PLAIN_DISPATCH, is_traced, served
from normstab.torch_private import has_modes, is_batched, is_transforming, is_zero_tensor, modes_off

__all__ = ["normalize_native", "serves"]

NATIVE = Arithmetic("native")
DTYPES = (torch.float32, torch.float64)


class Code(Protocol):
    """What `compiled` and `few_passes` offer."""

    def forward(
        self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, scheme: Scheme, reduction: Reduction
    ) -> tuple[Tensor, Tensor, SavedNative]:
        """Return the output, the statistic to be stored, and what backward needs."""

    def backward(
        self, grad: Tensor, saved: SavedNative, scheme: Scheme, reduction: Reduction, *, needs_input: bool
    ) -> Gradients:
        """Return the gradients."""


def serves(x: Tensor, parameters: tuple[Tensor | None, ...], scheme: Scheme) -> bool:
    """Whether this normalizes `x`: by l1, linf, top k or range, undisturbed, plain tensors of one wide dtype."""
    if scheme.spec is None or not scheme.spec.has_constant or scheme.noise is not None or torch.compiler.is_compiling():
        return False
    if is_transforming() or is_traced(x):
        return False
    given = [x, *(p for p in parameters if p is not None)]
    return x.dtype in DTYPES and all(
        type(tensor).__torch_dispatch__ is PLAIN_DISPATCH
        and tensor.layout is torch.strided
        and tensor.dtype is x.dtype
        and tensor.device == x.device
        and x.device.type in ("cpu", "cuda")
        and not (tensor.is_neg() or is_zero_tensor(tensor) or tensor.is_nested)
        and unpack_dual(tensor).tangent is None
        for tensor in given
    )


def normalize_native(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, scheme: Scheme, reduction: Reduction
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return z = gamma (x - mu) / s + beta, the mean and what is stored of the scale; only z has gradients.

    Raises NormstabError when there are fewer values than the members of a top k.
    """
    assert scheme.spec is not None
    scheme.spec.require_values(reduction.n)
    found: list[tuple[Tensor | None, Tensor]] = []
    z: Tensor = _Native.apply(x, gamma, beta, scheme, reduction, found)  # type: ignore[no-untyped-call]
    return z, *found[0]


def code_for(x: Tensor, scheme: Scheme, reduction: Reduction) -> Code:
    """Return the compiled code where it serves (float32 on a CPU, one gamma for all values of a row), else torch's."""
    assert scheme.spec is not None
    plain_torch: Code = few_passes
    is_shared = all(reduction.parameters[axis] == 1 for axis in reduction.axes)
    if x.device.type != "cpu" or x.dtype is not torch.float32 or not is_shared or scheme.spec.k > LARGEST_K:
        return plain_torch
    return _compiled() or plain_torch


@cache
def _compiled() -> Code | None:
    """Return the compiled code, run once to see that it does; None, with a warning, where it does not."""

    def load() -> Code:
        module: Code = import_module("normstab.norms.unrounded.compiled")
        with modes_off():
            x = torch.zeros(1, 1, dtype=torch.float32, device="cpu")
            module.forward(x, None, None, Scheme(NORMS["l1"]), Reduction.of_batch((1, 1)))
        return module

    return served(load, "native norms on a CPU")


class _Native(torch.autograd.Function):
    """The closed forms, forward and backward; second derivatives are those of the readable code."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        scheme: Scheme,
        reduction: Reduction,
        found: list[tuple[Tensor | None, Tensor]],
    ) -> Tensor:
        if has_modes():
            op_by_op.forward(x, gamma, beta, scheme, reduction, NATIVE)  # for a mode that records, to be seen
        with modes_off():
            z, stored, saved = code_for(x, scheme, reduction).forward(x, gamma, beta, scheme, reduction)
        ctx.save_for_backward(*saved)
        ctx.scheme, ctx.reduction = scheme, reduction
        ctx.shapes = [None if tensor is None else tensor.shape for tensor in (gamma, beta)]
        found.append((saved.mean, stored))
        # torch lets nobody write to a view that was made in here: what follows in place needs a tensor of its own.
        return own(z, saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, needs = SavedNative(*ctx.saved_tensors), tuple(ctx.needs_input_grad[:3])
        # A second derivative, or many gradients at once: the
        # readable code has both, the closed forms have neither.
        if torch.is_grad_enabled() or is_batched(grad):
            return (*_differentiable(grad, saved, needs, ctx), None, None, None)
        if has_modes():
            _show(grad, saved, ctx.scheme, ctx.reduction)
        with modes_off():
            code: Code = code_for(saved.input, ctx.scheme, ctx.reduction)
            gradients = code.backward(grad, saved, ctx.scheme, ctx.reduction, needs_input=needs[0])
        parameters = (
            value.reshape(shape) if is_needed else None
            for value, shape, is_needed in zip(gradients[1:], ctx.shapes, needs[1:], strict=True)
        )
        return gradients.input, *parameters, None, None, None


def _differentiable(
    grad: Tensor, saved: SavedNative, needs: tuple[bool, ...], ctx: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of the readable code: functions of the input, gamma and `grad`, or many at once."""
    reduction: Reduction = ctx.reduction
    with torch.enable_grad():
        # Of these alone the gradient is: gamma itself may have been computed from x.
        x, gamma = (None if tensor is None else tensor.view_as(tensor) for tensor in (saved.input, saved.gamma))
        assert x is not None
        z = op_by_op.forward(x, gamma, None, ctx.scheme, reduction, NATIVE).output
    of_both = zip((x, gamma), needs[:2], strict=True)
    sources = [source for source, is_needed in of_both if is_needed and source is not None]
    made = iter(torch.autograd.grad(z, sources, grad, create_graph=torch.is_grad_enabled()) if sources else ())
    d_input, d_gamma = (next(made) if is_needed else None for is_needed in needs[:2])
    d_beta = None
    if needs[2]:
        d_beta = grad.reshape(reduction.view).sum(reduction.parameter_axes, keepdim=True).reshape(ctx.shapes[1])
    return d_input, d_gamma, d_beta


def _show(grad: Tensor, saved: SavedNative, scheme: Scheme, reduction: Reduction) -> None:
    """Run the readable backward pass, for a mode that records."""
    x = saved.input.reshape(reduction.view)
    d = x if saved.mean is None else x - saved.mean
    gamma = None if saved.gamma is None else saved.gamma.reshape(reduction.parameters)
    kept = op_by_op.Saved(d / saved.scale, d, saved.scale, gamma, saved.members)
    op_by_op.backward(grad, kept, scheme, reduction, NATIVE)
