"""Normalization as the kernels of torch, cuDNN and TransformerEngine do it: `norm=wide`.

Statistics and everything inside are float32; the output is rounded once, at `output`, and each gradient that
leaves the norm once, at `input.grad`, `gamma.grad` and `beta.grad`. What enters is cast as it is op by op.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from normstab.norms import op_by_op
from normstab.norms.catalogue import Scheme
from normstab.norms.op_by_op import Forward, Gradients, Saved
from normstab.norms.reduction import Reduction
from normstab.numerics.arithmetic import Arithmetic

__all__ = ["INSIDE", "SavedWhole", "backward", "forward", "move_average"]

INSIDE = Arithmetic("native")
"""What computes inside: plain torch."""


class SavedWhole(NamedTuple):
    """What torch's own backward needs: the input as cast, gamma, and the statistics, one value a channel.

    An input that the cast did not change may be kept in the 16 bits in which it came.
    """

    input: Tensor
    gamma: Tensor | None
    mean: Tensor
    reciprocal: Tensor


def forward(
    x: Tensor,
    parameters: tuple[Tensor | None, Tensor | None],
    statistics: tuple[Tensor | None, Tensor | None] | None,
    scheme: Scheme,
    reduction: Reduction,
    ar: Arithmetic,
) -> Forward:
    """Return z = gamma (x - mu) / s + beta, and what goes with it; what backward needs is a Saved or a SavedWhole.

    With the statistics of `x` or those given; see `op_by_op.forward`. The batch norm that torch has is torch's own.
    """
    cast = ar.cast(x, "input")
    gamma, beta = (
        None if p is None else _parameter(p, name, ar) for p, name in zip(parameters, ("gamma", "beta"), strict=True)
    )
    with torch.no_grad():
        if statistics is None and _is_torchs(scheme, reduction):
            done = _whole(cast, gamma, beta, scheme, reduction)
        elif statistics is None:
            done = op_by_op.forward(cast, gamma, beta, scheme, reduction, INSIDE)
        else:
            done = op_by_op.evaluate(cast, gamma, beta, statistics, scheme, reduction, INSIDE)
    return done._replace(output=ar.cast(done.output, "output"))


def _is_torchs(scheme: Scheme, reduction: Reduction) -> bool:
    """Whether torch has this very norm as one kernel: batch norm with a variance of more than one value, and an eps."""
    is_batch = reduction.axes == (0, 2) and len(reduction.view) == 3 and reduction.shared is None
    is_l2 = scheme.spec is not None and scheme.spec.kind == "l2" and scheme.centres
    return is_batch and is_l2 and scheme.eps > 0 and reduction.n > 1 and math.prod(reduction.view) > 0


def _whole(x: Tensor, gamma: Tensor | None, beta: Tensor | None, scheme: Scheme, reduction: Reduction) -> Forward:
    """Return the same of batch norm by torch's kernel; with momentum 1 its running variance is the unbiased one."""
    running_mean, variance = (torch.zeros(reduction.view[1], dtype=x.dtype, device=x.device) for _ in range(2))
    gamma, beta = (None if p is None else p.to(x.dtype) for p in (gamma, beta))
    found = torch.native_batch_norm(x, gamma, beta, running_mean, variance, True, 1.0, scheme.eps)
    output, mean, reciprocal = found
    by_channel = (mean.view(1, -1, 1), (1.0 / reciprocal).view(1, -1, 1), variance.view(1, -1, 1))
    return Forward(output, *by_channel, SavedWhole(x, gamma, mean, reciprocal))


def backward(
    grad: Tensor,
    saved: Saved | SavedWhole,
    scheme: Scheme,
    reduction: Reduction,
    ar: Arithmetic,
    needs: tuple[bool, bool, bool],
) -> Gradients:
    """Return the gradients of input, gamma and beta, each rounded once; see `op_by_op.backward`."""
    ar = ar.towards("backward").in_format("gradient")
    cast = ar.cast(grad, "grad")
    with torch.no_grad():
        if isinstance(saved, SavedWhole):
            found = _whole_backward(cast, saved, scheme, reduction, needs)
        else:
            found = op_by_op.backward(cast, saved, scheme, reduction, INSIDE, needs)
    names = ("input.grad", "gamma.grad", "beta.grad")
    return Gradients(*(None if g is None else ar.cast(g, name) for g, name in zip(found, names, strict=True)))


def _whole_backward(
    grad: Tensor, saved: SavedWhole, scheme: Scheme, reduction: Reduction, needs: tuple[bool, bool, bool]
) -> Gradients:
    """Return the gradients by torch's kernel."""
    found = torch.ops.aten.native_batch_norm_backward(
        grad.reshape(saved.input.shape),
        saved.input.to(grad.dtype),
        saved.gamma,
        None,
        None,
        saved.mean,
        saved.reciprocal,
        True,
        scheme.eps,
        list(needs),
    )
    d_input, *d_parameters = (g if need else None for g, need in zip(found, needs, strict=True))
    d_gamma, d_beta = (None if g is None else g.reshape(reduction.parameters) for g in d_parameters)
    return Gradients(None if d_input is None else d_input.reshape(grad.shape), d_gamma, d_beta)


def move_average(running: Tensor, new: Tensor, momentum: float, ar: Arithmetic, operation: str) -> None:
    """Replace `running` by (1 - m) running + m new, rounded once, to the numbers that the network has it in."""
    mean = new.detach().reshape(-1, len(running)).mean(0)
    moved = running.to(mean.dtype) * (1.0 - momentum) + mean * momentum
    running.copy_(moved if _keeps_parameters_wide(ar) else ar.in_format("parameter").cast(moved, operation))


def _parameter(parameter: Tensor, name: str, ar: Arithmetic) -> Tensor:
    """Return gamma or beta as the network has it."""
    return parameter.to(torch.float32) if _keeps_parameters_wide(ar) else ar.cast(parameter, name)


def _keeps_parameters_wide(ar: Arithmetic) -> bool:
    """Whether parameters and buffers are float32 themselves: under autocast."""
    return ar.precision.autocast != "none"
