"""Normalization as the kernels of torch, cuDNN and TransformerEngine do it: `norm=wide`.

Statistics and everything inside are float32; the output is rounded once, at `output`, and each gradient that
leaves the norm once, at `input.grad`, `gamma.grad` and `beta.grad`. What enters is cast as it is op by op.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normstab.norms import op_by_op
from normstab.norms.dispersion import Scheme
from normstab.norms.op_by_op import Forward, Gradients, Saved
from normstab.norms.reduction import Reduction
from normstab.numerics.arithmetic import Arithmetic

__all__ = ["INSIDE", "backward", "forward", "move_average"]

INSIDE = Arithmetic("native")
"""What computes inside: plain torch."""


def forward(
    x: Tensor,
    parameters: tuple[Tensor | None, Tensor | None],
    statistics: tuple[Tensor | None, Tensor | None] | None,
    scheme: Scheme,
    reduction: Reduction,
    ar: Arithmetic,
) -> Forward:
    """Return z = gamma (x - mu) / s + beta, with the statistics of `x` or those given; see `op_by_op.forward`."""
    cast = ar.cast(x, "input")
    gamma, beta = (
        None if p is None else _parameter(p, name, ar) for p, name in zip(parameters, ("gamma", "beta"), strict=True)
    )
    with torch.no_grad():
        if statistics is None:
            done = op_by_op.forward(cast, gamma, beta, scheme, reduction, INSIDE)
        else:
            done = op_by_op.evaluate(cast, gamma, beta, statistics, scheme, reduction, INSIDE)
    return done._replace(output=ar.cast(done.output, "output"))


def backward(
    grad: Tensor, saved: Saved, scheme: Scheme, reduction: Reduction, ar: Arithmetic, needs: tuple[bool, bool, bool]
) -> Gradients:
    """Return the gradients of input, gamma and beta, each rounded once; see `op_by_op.backward`."""
    ar = ar.towards("backward").in_format("gradient")
    with torch.no_grad():
        found = op_by_op.backward(ar.cast(grad, "grad"), saved, scheme, reduction, INSIDE, needs)
    names = ("input.grad", "gamma.grad", "beta.grad")
    return Gradients(*(None if g is None else ar.cast(g, name) for g, name in zip(found, names, strict=True)))


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
