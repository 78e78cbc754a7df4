"""torch's normalization operations, as calls of a norm whose roundings `norm_errors` knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from normstab.norms.catalogue import Scheme, parse_norm
from normstab.norms.reduction import Reduction
from normstab.numerics.bounds import Step
from normstab.simulation.aten.norm_ops import NORM_OPERATIONS
from normstab.simulation.aten.operation import Operation
from normstab.testing.error_bounds.norm_errors import Normed, norm_backward_steps, norm_steps

__all__ = ["OWN_OF_NORMS"]

L2 = parse_norm("l2")
Steps = list[Step]
Own = Callable[[Operation, Sequence[Tensor]], Steps]


def batch_norm(op: Operation, results: Sequence[Tensor]) -> Steps:
    """Batch norm, by the batch's own statistics or, in evaluation, by the running ones."""
    x, gamma, beta, *rest = op.args
    # rest: [running mean, running variance,] [training,] momentum, eps
    is_training = op.name == "_batch_norm_with_update" or (len(rest) != 4 and bool(rest[-3]))
    scheme = Scheme(L2, eps=float(rest[-1]))
    normed = Normed(x, gamma, beta, scheme, Reduction.of_batch(x.shape), None if is_training else rest[0])
    return norm_steps(normed, results[0], op.ar.precision)


def layer_norm(op: Operation, results: Sequence[Tensor]) -> Steps:
    """Arguments: input, normalized_shape, weight, bias, eps."""
    x, shape, gamma, beta, eps = op.args
    normed = Normed(x, gamma, beta, Scheme(L2, eps=eps), Reduction.of_layer(x.shape, shape))
    return norm_steps(normed, results[0], op.ar.precision)


def group_norm(op: Operation, results: Sequence[Tensor]) -> Steps:
    """Arguments: input, weight, bias, N, C, HxW, group, eps."""
    x, gamma, beta, n, c, area, groups, eps = op.args
    normed = Normed(x, gamma, beta, Scheme(L2, eps=eps), Reduction.of_group((n, c, area), groups))
    return norm_steps(normed, results[0], op.ar.precision)


def rms_norm(op: Operation, results: Sequence[Tensor]) -> Steps:
    """Arguments: input, normalized_shape, weight, eps."""
    x, shape, gamma, eps = op.args
    scheme = Scheme(L2, eps=eps or 0.0, centres=False)
    return norm_steps(Normed(x, gamma, None, scheme, Reduction.of_layer(x.shape, shape)), results[0], op.ar.precision)


def norm_backward(op: Operation, results: Sequence[Tensor]) -> Steps:
    """The gradients of torch's norms: of the input, whose terms are sums over the values that share a scale.

    Batch norm says eps, the others 1 / s of the forward call.
    """
    args, is_cudnn = op.args, op.name.startswith("cudnn")
    grad, x = (args[1], args[0]) if is_cudnn else args[:2]
    fixed, inverse, eps = None, None, 0.0
    if "batch_norm" in op.name:
        reduction, gamma, eps = Reduction.of_batch(x.shape), args[2], float(args[7 if is_cudnn else 8])
        fixed = None if is_cudnn or args[7] else args[3]
    elif "group_norm" in op.name:
        reduction, gamma, inverse = Reduction.of_group(args[5:8], args[8]), args[4], args[3]
    elif "rms" in op.name:
        reduction, gamma, inverse = Reduction.of_layer(x.shape, args[2]), args[4], args[3]
    else:
        reduction, gamma, inverse = Reduction.of_layer(x.shape, args[2]), args[5], args[4]
    scheme = Scheme(L2, eps=eps, centres="rms" not in op.name)
    normed = Normed(x, gamma, None, scheme, reduction, fixed, inverse)
    of_input = results[0] if is_cudnn or args[-1][0] else None
    return norm_backward_steps(normed, grad, of_input, op.ar.precision)


def _own(name: str) -> Own:
    """Return what knows the steps of torch's norm of this name."""
    if name.endswith("_backward"):
        return norm_backward
    found: dict[str, Own] = {
        "native_layer_norm": layer_norm,
        "native_group_norm": group_norm,
        "_fused_rms_norm": rms_norm,
    }
    return found.get(name, batch_norm)


OWN_OF_NORMS: Mapping[str, Own] = {name: _own(name) for name in NORM_OPERATIONS}
"""Name of torch's operation -> its steps."""
