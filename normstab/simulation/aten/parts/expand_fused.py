"""Fused operations in their smaller steps, for `expand=True`: softmax, losses, norms of vectors, attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from normstab.simulation.aten.scaled_operands import mark_activation
from normstab.torch_private import decomposition

__all__ = ["ATTENTION_STEPS", "WithoutFastPaths", "steps_of"]

EXPANDED = frozenset(
    (
        *("_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data", "logsumexp"),
        *("_safe_softmax", "nll_loss_forward", "nll_loss_backward", "nll_loss2d_forward", "nll_loss2d_backward"),
        *("mse_loss", "mse_loss_backward", "smooth_l1_loss", "smooth_l1_loss_backward", "huber_loss"),
        *("huber_loss_backward", "soft_margin_loss", "soft_margin_loss_backward", "binary_cross_entropy"),
        *("binary_cross_entropy_backward", "binary_cross_entropy_with_logits", "linalg_vector_norm", "dist"),
    )
)


@lru_cache(maxsize=1024)
def steps_of(func: Any, name: str) -> Callable[..., Any] | None:
    """Return torch's own decomposition of an operation that `expand=True` takes apart, or None."""
    if name in ATTENTION_STEPS:
        return ATTENTION_STEPS[name]
    if name not in EXPANDED:
        return None
    return decomposition(func)


class WithoutFastPaths(TorchFunctionMode):
    """Does nothing, but torch's encoder and attention layers run in one fused operation only without such a mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return softmax(scale Q K^T + mask) V, and the logarithm of the softmax's sum, as the fused kernel does."""
    assert dropout_p == 0.0, "torch's fused kernel of the CPU has no dropout"
    key, value = (_for_every_query(x, query) for x in (key, value))
    scores = _scores(query, key, is_causal, attn_mask, scale)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of Q, K, V: dS = P (dP - sum(dP P)), dP = dO V^T."""
    heads, root = key.shape[1], _root_of_scale(query, scale)
    key, value = (_for_every_query(x, query) for x in (key, value))
    weights = mark_activation(_scores(query, key, is_causal, attn_mask, scale).softmax(-1))
    d_weights = grad @ value.mT
    d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdim=True))
    d_query = (d_scores @ mark_activation(key * root)) * root
    d_key = (d_scores.mT @ mark_activation(query * root)) * root
    return d_query, _over_queries(d_key, heads), _over_queries(weights.mT @ grad, heads)


def _for_every_query(x: Tensor, query: Tensor) -> Tensor:
    """Return keys or values (N, heads, L, E) once for each head of the queries, where several share one."""
    sharing = query.shape[1] // x.shape[1] if x.shape[1] else 1
    return x if sharing == 1 else mark_activation(x.repeat_interleave(sharing, 1))


def _over_queries(gradient: Tensor, heads: int) -> Tensor:
    """Return the gradient of keys or values, summed over the queries' heads that share one."""
    return gradient if gradient.shape[1] == heads else gradient.unflatten(1, (heads, -1)).sum(2)


def _root_of_scale(query: Tensor, scale: float | None) -> float:
    """Return the root of what the products are scaled by; of a negative scale that of its magnitude."""
    return math.sqrt(query.shape[-1] ** -0.5 if scale is None else abs(scale))


def _scores(query: Tensor, key: Tensor, is_causal: bool, mask: Tensor | None, scale: float | None) -> Tensor:
    """Return scale Q K^T, minus infinity where masked, plus the mask where that is numbers.

    Both operands are multiplied by the root of the scale before the product, as torch's own expansion does
    (`_scaled_dot_product_attention_math`): the product of what is not scaled overflows earlier.
    """
    root = _root_of_scale(query, scale)
    left = mark_activation(query * (-root if scale is not None and scale < 0 else root))
    scores = left @ mark_activation(key * root).mT
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores if mask is None else scores + mask


ATTENTION_STEPS: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_flash_attention_for_cpu": attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward,
}
"""Name of a fused attention operation -> its steps."""
