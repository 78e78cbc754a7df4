"""torch's own normalization operations, run as norms/ code: every operation inside is rounded and has its site.

What our gradient needs goes from forward to backward with a statistic that torch saves for it, so that both
directions see the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normstab.norms.catalogue import parse_norm
from normstab.norms.functional import (
    Forward,
    Reduction,
    Scheme,
    in_16_bits,
    normalize_backward,
    normalize_forward,
    normalize_with,
    update_running,
)
from normstab.norms.op_by_op import Saved
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.steps.clock import Clock
from normstab.simulation.aten.operation import Handler, Operation, Result
from normstab.torch_private import schema_of

__all__ = ["NORM_OPERATIONS"]

L2 = parse_norm("l2")
Needs = Sequence[bool]


# ------------------------------------------------------------------------------------------------- batch norm


def native_batch_norm(op: Operation) -> Result:
    """native_batch_norm, _native_batch_norm_legit, cudnn_batch_norm: `training` chooses the statistics."""
    x, gamma, beta, *rest = op.args
    if len(rest) == 3:  # the overload without running statistics
        training, momentum, eps = rest
        return batch_norm(op, x, (gamma, beta), (None, None), training, momentum, eps)
    running_mean, running_var, training, momentum, eps = rest
    return batch_norm(op, x, (gamma, beta), (running_mean, running_var), training, momentum, eps)


def batch_norm_inference(op: Operation) -> Result:
    """_native_batch_norm_legit_no_training and _batch_norm_no_update: the running statistics are used."""
    x, gamma, beta, running_mean, running_var, momentum, eps = op.args
    return _with_reserve(op, batch_norm(op, x, (gamma, beta), (running_mean, running_var), False, momentum, eps))


def batch_norm_with_update(op: Operation) -> Result:
    """_batch_norm_with_update: the batch's own statistics, and the running ones updated."""
    x, gamma, beta, running_mean, running_var, momentum, eps = op.args
    return _with_reserve(op, batch_norm(op, x, (gamma, beta), (running_mean, running_var), True, momentum, eps))


def batch_norm(
    op: Operation,
    x: Tensor,
    affine: tuple[Tensor | None, Tensor | None],
    running: tuple[Tensor | None, Tensor | None],
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize per channel; update `running`, the buffers themselves, when training."""
    reduction = Reduction.of_batch(x.shape)
    tracks = training and running[1] is not None
    scheme = Scheme(L2, eps=eps, tracks=tracks)
    if not training:
        done = normalize_with(x, *affine, running, scheme, reduction, op.ar)
        output, mean, statistic = _remember(op, done, scheme, reduction)
        return output, mean[:0], statistic[:0]  # torch saves none; what hangs on the storage stays
    done = normalize_forward(x, *affine, scheme, reduction, op.ar)
    for buffer, new, name in zip(running, (done.mean, done.stored), ("running_mean", "running_var"), strict=True):
        if buffer is not None and new is not None:
            update_running(buffer, new, momentum, reduction, op.ar, operation=name)
    return _remember(op, done, scheme, reduction)


def native_batch_norm_backward(op: Operation) -> Result:
    """native_batch_norm_backward and batch_norm_backward."""
    grad, x, gamma, running_mean, running_var, _, statistic, training, eps, needs, *_ = op.args
    running = (None, None) if training else (running_mean, running_var)
    found = _remembered(statistic, lambda: batch_norm(_uncounted(op), x, (gamma, None), running, training, 0.0, eps))
    return _backward(op, grad, x, found, (needs[0], needs[1] and gamma is not None, needs[2]), (-1,))


def cudnn_batch_norm_backward(op: Operation) -> Result:
    """cudnn_batch_norm_backward: always of training, always all three gradients."""
    x, grad, gamma, _, _, _, statistic, eps, *_ = op.args
    found = _remembered(statistic, lambda: batch_norm(_uncounted(op), x, (gamma, None), (None, None), True, 0.0, eps))
    return _backward(op, grad, x, found, (True, True, True), (-1,))


# ------------------------------------------------------------------------------ layer, group and RMS norm


def native_layer_norm(op: Operation) -> Result:
    """Arguments: input, normalized_shape, weight, bias, eps."""
    x, normalized_shape, gamma, beta, eps = op.args
    found = _of_rows(op, x, (gamma, beta), Scheme(L2, eps=eps), Reduction.of_layer(x.shape, normalized_shape))
    return _shown_in(_rows_of_layer(x, normalized_shape), *found)


def native_layer_norm_backward(op: Operation) -> Result:
    """Arguments: grad, input, normalized_shape, mean, rstd, weight, bias, mask."""
    grad, x, normalized_shape, _, statistic, gamma, _, needs = op.args
    reduction = Reduction.of_layer(x.shape, normalized_shape)
    found = _remembered(statistic, lambda: _of_rows(_uncounted(op), x, (gamma, None), Scheme(L2, eps=0.0), reduction))
    return _backward(op, grad, x, found, needs, tuple(normalized_shape))


def native_group_norm(op: Operation) -> Result:
    """Arguments: input, weight, bias, N, C, HxW, group, eps."""
    x, gamma, beta, n, c, area, groups, eps = op.args
    found = _of_rows(op, x, (gamma, beta), Scheme(L2, eps=eps), Reduction.of_group((n, c, area), groups))
    return _shown_in((n, groups), *found)


def native_group_norm_backward(op: Operation) -> Result:
    """Arguments: grad, input, mean, rstd, weight, N, C, HxW, group, mask."""
    grad, x, _, statistic, gamma, n, c, area, groups, needs = op.args
    reduction = Reduction.of_group((n, c, area), groups)
    found = _remembered(statistic, lambda: _of_rows(_uncounted(op), x, (gamma, None), Scheme(L2, eps=0.0), reduction))
    return _backward(op, grad, x, found, needs, (-1,))


def fused_rms_norm(op: Operation) -> Result:
    """Arguments: input, normalized_shape, weight, eps; results: output, rstd."""
    x, normalized_shape, gamma, eps = op.args
    scheme = Scheme(L2, eps=torch.finfo(x.dtype).eps if eps is None else eps, centres=False)
    found = _of_rows(op, x, (gamma, None), scheme, Reduction.of_layer(x.shape, normalized_shape))
    output, _, statistic = _shown_in(_rows_of_layer(x, normalized_shape), *found)
    return output, statistic


def fused_rms_norm_backward(op: Operation) -> Result:
    """Arguments: grad, input, normalized_shape, rstd, weight, mask; results: d_input, d_weight."""
    grad, x, normalized_shape, statistic, gamma, needs = op.args
    reduction = Reduction.of_layer(x.shape, normalized_shape)
    scheme = Scheme(L2, eps=0.0, centres=False)
    found = _remembered(statistic, lambda: _of_rows(_uncounted(op), x, (gamma, None), scheme, reduction))
    return _backward(op, grad, x, found, (needs[0], needs[1], False), tuple(normalized_shape))[:2]


def _of_rows(
    op: Operation, x: Tensor, affine: tuple[Tensor | None, Tensor | None], scheme: Scheme, reduction: Reduction
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize by the input's own statistics."""
    return _remember(op, normalize_forward(x, *affine, scheme, reduction, op.ar), scheme, reduction)


def _rows_of_layer(x: Tensor, normalized_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of torch's statistics of the last axes."""
    k = len(normalized_shape)
    return (*x.shape[: x.dim() - k], *[1] * k)


def _shown_in(shape: tuple[int, ...], output: Tensor, mean: Tensor, statistic: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two statistics in the shape that torch gives them."""
    if mean.numel() != math.prod(shape):
        return output, mean, statistic
    return output, mean.view(shape), statistic.view(shape)


# ---------------------------------------------------------------------------------- what torch saves for us


class Remembered(NamedTuple):
    """What a forward leaves for its backward; None in the place of an input that torch keeps for it, in 16 bits."""

    saved: Any
    scheme: Scheme
    reduction: Reduction


def _remember(op: Operation, done: Forward, scheme: Scheme, reduction: Reduction) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output and the two statistics that torch saves, mean and 1 / s, one value per row, in one axis.

    What our gradient needs hangs on the storage of the second one: it lives and dies with the graph.
    """
    scale = torch.empty(0) if done.scale is None else done.scale.detach().flatten()
    mean = torch.zeros_like(scale) if done.mean is None else done.mean.detach().flatten()
    reciprocal = 1.0 / scale
    reciprocal.untyped_storage()._normstab = Remembered(_kept(op, done.saved), scheme, reduction)  # type: ignore[attr-defined]
    return done.output.to(op.args[0].dtype), mean.clone(), reciprocal


def _kept(op: Operation, saved: Any) -> Any:
    """Return what our gradient needs beside what torch keeps for it."""
    return saved if op.stored is None else in_16_bits(saved, None, op.stored, op.ar)


def _remembered(statistic: Tensor, again: Callable[[], tuple[Tensor, ...]]) -> Remembered:
    """Return what the forward left; where a saved-tensor hook made a copy, run the forward `again` to get it."""
    found = getattr(statistic.untyped_storage(), "_normstab", None)
    if found is None:
        found = again()[-1].untyped_storage()._normstab  # type: ignore[attr-defined]
    assert isinstance(found, Remembered)
    return found


def _uncounted(op: Operation) -> Operation:
    """Return the operation with an arithmetic whose counts go nowhere, to run a forward once more."""
    ar = Arithmetic(op.ar.precision, key=op.ar.key)
    ar.clock = Clock(op.ar.clock.step)
    return op._replace(ar=ar.at(op.ar.site) if op.ar.site else ar)


def _backward(
    op: Operation, grad: Tensor, x: Tensor, found: Remembered, needs: Needs, shape: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of input, gamma and beta, the parameters' in `shape`."""
    wanted = (bool(needs[0]), bool(needs[1]), bool(needs[2]))
    is_input_torchs = not isinstance(found.saved, Saved) and found.saved.input is None
    saved = found.saved._replace(input=x) if is_input_torchs else found.saved
    gradients = normalize_backward(grad, saved, found.scheme, found.reduction, op.ar, wanted)
    d_input = None if gradients.input is None else gradients.input.to(x.dtype)
    return d_input, _shaped(gradients.gamma, shape), _shaped(gradients.beta, shape)


def _shaped(gradient: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """Return a parameter's gradient in the parameter's shape."""
    return None if gradient is None else gradient.reshape(shape)


def _with_reserve(op: Operation, results: tuple[Tensor, Tensor, Tensor]) -> tuple[Any, ...]:
    """Append the reserve that some forms return."""
    if len(schema_of(op.function).returns) < 4:  # type: ignore[attr-defined]
        return results
    return (*results, torch.empty(0, dtype=torch.uint8, device=results[0].device))


# Name of torch's operation -> its handler.
NORM_OPERATIONS: dict[str, Handler] = {
    "native_batch_norm": native_batch_norm,
    "_native_batch_norm_legit": native_batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm_inference,
    "_batch_norm_no_update": batch_norm_inference,
    "_batch_norm_with_update": batch_norm_with_update,
    "cudnn_batch_norm": lambda op: _with_reserve(op, native_batch_norm(op)),
    "native_batch_norm_backward": native_batch_norm_backward,
    "batch_norm_backward": native_batch_norm_backward,
    "cudnn_batch_norm_backward": cudnn_batch_norm_backward,
    "native_layer_norm": native_layer_norm,
    "native_layer_norm_backward": native_layer_norm_backward,
    "native_group_norm": native_group_norm,
    "native_group_norm_backward": native_group_norm_backward,
    "_fused_rms_norm": fused_rms_norm,
    "_fused_rms_norm_backward": fused_rms_norm_backward,
}
