"""Steps of optimizers that torch takes in one fused kernel, taken apart into those of its plain implementation.

A fused step is written by nobody's operations: torch's `fused=False` form of the same optimizer says which there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.sgd import sgd

__all__ = ["FUSED"]

Tensors = Sequence[Tensor]


def _is_skipped(grads: Tensors, grad_scale: Tensor | None, found_inf: Tensor | None) -> bool:
    """Unscale gradients as the fused kernels do, in place; say whether a gradient scaler skips the step."""
    if found_inf is not None and bool(found_inf):
        return True
    if grad_scale is not None:
        for grad in grads:
            grad.div_(grad_scale)
    return False


def _before(steps: Tensors) -> list[Tensor]:
    """Return the numbers of the step before: the fused kernels are told this one's, the plain forms count."""
    return [torch.tensor(float(step) - 1.0) for step in steps]


def _adam(lists: Sequence[Tensors], options: dict[str, Any], *, is_decoupled: bool) -> None:
    """Take a step of Adam; `is_decoupled`: of AdamW."""
    params, grads, averages, squares, largest, steps = (list(x) for x in lists)
    if not _is_skipped(grads, options.pop("grad_scale", None), options.pop("found_inf", None)):
        adam(
            params,
            grads,
            averages,
            squares,
            largest,
            _before(steps),
            foreach=False,
            fused=False,
            decoupled_weight_decay=is_decoupled,
            **options,
        )


def fused_adam(*lists: Tensors, **options: Any) -> None:
    """Take a step of Adam."""
    _adam(lists, options, is_decoupled=False)


def fused_adamw(*lists: Tensors, **options: Any) -> None:
    """Take a step of AdamW."""
    _adam(lists, options, is_decoupled=True)


def fused_sgd(
    params: Tensors,
    grads: Tensors,
    buffers: Tensors,
    *,
    is_first_step: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    **options: Any,
) -> None:
    """Take a step of SGD; in the first one the momentum is the gradient."""
    if _is_skipped(grads, grad_scale, found_inf):
        return
    made: list[Tensor | None] = [None] * len(params) if is_first_step or not buffers else list(buffers)
    sgd(list(params), list(grads), made, foreach=False, fused=False, **options)
    if is_first_step:
        for buffer, momentum in zip(buffers, made, strict=True):
            buffer.copy_(momentum)  # type: ignore[arg-type]


def fused_adagrad(
    params: Tensors,
    grads: Tensors,
    sums: Tensors,
    steps: Tensors,
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    **options: Any,
) -> None:
    """Take a step of Adagrad."""
    if not _is_skipped(grads, grad_scale, found_inf):
        adagrad(list(params), list(grads), list(sums), _before(steps), foreach=False, fused=False, **options)


FUSED: Mapping[str, Callable[..., Any]] = {
    "_fused_adam": fused_adam,
    "_fused_adamw": fused_adamw,
    "_fused_sgd": fused_sgd,
    "_fused_adagrad": fused_adagrad,
}
"""Name of torch's operation -> the smaller ones that it is made of here."""
