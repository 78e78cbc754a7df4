"""Optimizers: torch's own where they do, and ours where an update is compensated or has a rate per channel.

`keep` is how a parameter is stored: a function (parameter, value) -> value, the identity unless stored parameters
are in a format. What a run keeps in formats, and when, is `storage`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from normstab.errors import lookup
from normstab.experiment.network.weighted_layers import last_layer
from normstab.experiment.scenario.training_spec import OptimizerSpec

__all__ = ["OPTIMIZERS", "CompensatedAdamW", "CompensatedSGD", "make_optimizer", "parameter_groups", "set_rate"]

Keep = Callable[[Tensor, Tensor], Tensor]
Groups = Iterable[dict[str, Any]]


def as_it_is(parameter: Tensor, value: Tensor) -> Tensor:
    """Return `value`."""
    return value


def make_optimizer(
    model: nn.Module, spec: OptimizerSpec, *, per_channel: bool = False, keep: Keep = as_it_is
) -> torch.optim.Optimizer:
    """Return the optimizer that `spec` describes for the parameters of `model`.

    `per_channel`: sgd whose `rates` may hold a factor on the rate of each output channel of a parameter.
    Every group has its peak rate as `peak`, which `set_rate` multiplies by the schedule's factor.
    """
    groups = parameter_groups(model, spec)
    make = lookup(OPTIMIZERS, spec.name, what="optimizer")
    optimizer = make(groups, spec, per_channel, keep)
    for group in optimizer.param_groups:
        group["peak"] = spec.lr
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def parameter_groups(model: nn.Module, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """Return the parameters that are decayed and those that are not, in the order of the model's.

    Without `decay_norms`, parameters with one axis (biases, gamma, beta) are spared; with `decay_only_last`
    all but the last layer's.
    """
    in_last = {id(parameter) for parameter in last_layer(model).parameters()}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        is_spared = (parameter.ndim < 2 and not spec.decay_norms) or (
            spec.decay_only_last and id(parameter) not in in_last
        )
        (spared if is_spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _sgd(groups: Groups, spec: OptimizerSpec, per_channel: bool, keep: Keep) -> torch.optim.Optimizer:
    if spec.kahan or per_channel:
        return CompensatedSGD(
            groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, kahan=spec.kahan, keep=keep
        )
    return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov)


def _adam(groups: Groups, spec: OptimizerSpec, per_channel: bool, keep: Keep) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)


def _adamw(groups: Groups, spec: OptimizerSpec, per_channel: bool, keep: Keep) -> torch.optim.Optimizer:
    if spec.kahan:
        return CompensatedAdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, keep=keep)
    return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)


# Name of an optimizer -> what builds it.
OPTIMIZERS: dict[str, Callable[[Groups, OptimizerSpec, bool, Keep], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}


class CompensatedSGD(torch.optim.Optimizer):
    """SGD as torch's, its update a sum of its own so that it can be compensated and scaled per channel.

    d = g + wd w; b = m b + d (first b = d); d = d + m b (nesterov) or b; u = -(lr rate) d; then w + u is kept,
    by Kahan's sum with `kahan`. `rates` maps a parameter to factors that broadcast over it; `gradient_factors`
    likewise, but they multiply g before it enters the momentum.
    """

    def __init__(
        self,
        params: Groups,
        *,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        kahan: bool = False,
        keep: Keep = as_it_is,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.0, "kahan": kahan}
        super().__init__(params, defaults)
        self.rates: dict[Tensor, Tensor] = {}
        self.gradient_factors: dict[Tensor, Tensor] = {}
        self.keep = keep

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self._update(w, group)

    def _update(self, w: Tensor, group: dict[str, Any]) -> None:
        """Update one parameter."""
        state = self.state[w]
        d = w.grad
        assert d is not None
        if w in self.gradient_factors:
            d = d * self.gradient_factors[w].to(d.dtype)
        if group["weight_decay"]:
            d = d + group["weight_decay"] * w
        if group["momentum"]:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = d.clone()
            else:
                state["momentum_buffer"].mul_(group["momentum"]).add_(d)
            b = state["momentum_buffer"]
            d = d + group["momentum"] * b if group["nesterov"] else b
        rate = self.rates.get(w)
        u = d * -group["lr"] if rate is None else d * (-group["lr"] * rate).to(d.dtype)
        _add(w, u, state, keep=self.keep, compensated=group["kahan"])


class CompensatedAdamW(torch.optim.Optimizer):
    """AdamW with Kahan's sum of the updates (Zamirai et al. 2020, algorithm 1 with AdamW's update).

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g g; u = -(lr wd) w - (lr / (1 - b1^t)) m / (sqrt(v / (1 - b2^t)) + eps).
    """

    def __init__(
        self,
        params: Groups,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        keep: Keep = as_it_is,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.keep = keep

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self._update(w, w.grad, group)

    def _update(self, w: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        """Update one parameter from its gradient."""
        state = self.state[w]
        if not state:
            state.update(t=0, exp_avg=torch.zeros_like(w), exp_avg_sq=torch.zeros_like(w))
        state["t"] += 1
        (b1, b2), t, lr = group["betas"], state["t"], group["lr"]
        m = state["exp_avg"].mul_(b1).add_(g * (1 - b1))
        v = state["exp_avg_sq"].mul_(b2).add_((g * g) * (1 - b2))
        u = (m / ((v / (1 - b2**t)).sqrt() + group["eps"])) * (-lr / (1 - b1**t))
        if group["weight_decay"]:
            u = u - (lr * group["weight_decay"]) * w
        _add(w, u, state, keep=self.keep, compensated=True)


def _add(w: Tensor, u: Tensor, state: dict[str, Any], *, keep: Keep, compensated: bool) -> None:
    """Replace w by what is kept of w + u; by Kahan's sum, with the rest in `state`, where `compensated`.

    y = u - c; t = keep(w + y); c = (t - w) - y; w = t. Source: Kahan 1965; Zamirai et al. 2020, algorithm 1.
    """
    if not compensated:
        w.copy_(keep(w, w + u))
        return
    c = state.get("compensation")
    y = u if c is None else u - c
    t = keep(w, w + y)
    state["compensation"] = (t - w) - y
    w.copy_(t)
