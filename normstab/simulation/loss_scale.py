"""Loss scaling with the names and rules of torch's GradScaler, static or dynamic.

The factors are float32 and unrounded: the loss is scaled after it left the network, gradients are unscaled
into the master copy's precision. Nothing here rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.simulation.ranks.parts import is_in_any_part, part_of
from normstab.torch_private import modes_off

__all__ = ["LossScaler"]

# Source: torch.amp.GradScaler's defaults.
INITIAL_SCALE = 2.0**16
GROWTH_FACTOR, BACKOFF_FACTOR, GROWTH_INTERVAL = 2.0, 0.5, 2000


class LossScaler:
    """`scale(loss).backward()`, `unscale_(optimizer)`, `step(optimizer)`, `update()`, as torch.amp.GradScaler.

    `loss_scale` None leaves everything as it is, a number is a static scale, `"dynamic"` halves the scale and
    skips the step when a gradient is not finite, and doubles it after `interval` steps without. `on_skip` is
    called at a skipped step: a simulation counts it like any other.
    With `asks_later` a dynamic scale takes every gradient for finite, waits for no device, and leaves the answer with
    `take_answer`: whoever finds there that one was not finite has to go back to before that step.
    """

    def __init__(self, loss_scale: float | str | None = None, *, interval: int = GROWTH_INTERVAL) -> None:
        if interval < 1:
            raise NormstabError(f"the interval of a loss scale is a number of steps >= 1; found {interval!r}")
        if isinstance(loss_scale, str) and loss_scale != "dynamic":
            raise NormstabError(f"loss_scale: unknown {loss_scale!r} (None, a number > 0, 'dynamic')")
        is_number = isinstance(loss_scale, int | float)
        if not isinstance(loss_scale, str) and loss_scale is not None and not (is_number and loss_scale > 0):
            raise NormstabError(f"loss_scale is a number > 0, None or 'dynamic'; found {loss_scale!r}")
        self.is_dynamic = loss_scale == "dynamic"
        self.scale_factor: float | None = INITIAL_SCALE if self.is_dynamic else _optional(loss_scale)
        self.interval = interval
        self.skipped_steps = 0
        self.on_skip: Callable[[], None] | None = None
        self.asks_later = False
        self._answer: Tensor | None = None
        self._good_steps = 0
        self._found_nonfinite = False
        self._is_unscaled: set[int] = set()

    def get_scale(self) -> float:
        """Return the current scale; 1 without scaling."""
        return 1.0 if self.scale_factor is None else self.scale_factor

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale; its gradient is the scale, neither is rounded."""
        if self.scale_factor is None:
            return loss
        scaled: Tensor = _Scaled.apply(loss, self.scale_factor)
        return scaled

    @torch.no_grad()
    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the optimizer's gradients by the scale; a dynamic one notes whether all are finite."""
        if self.scale_factor is None or id(optimizer) in self._is_unscaled:
            return
        factor = 1.0 / self.scale_factor
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        with modes_off():
            for gradient in gradients:
                gradient.mul_(factor)
            if self.is_dynamic and self.asks_later:
                flags = [flag.to(gradients[0].device, non_blocking=True) for flag in nonfinite_flags(gradients)]
                self._answer = torch.stack(flags).any() if flags else None
            elif self.is_dynamic:
                found = self._found_nonfinite or has_nonfinite(map(part_of, gradients))
                # Processes that hold parts of one gradient take the step together, or none does.
                self._found_nonfinite = is_in_any_part(found, gradients)
        self._is_unscaled.add(id(optimizer))

    def take_answer(self) -> Tensor | None:
        """Return, on the device, whether a gradient was not finite since this was asked; None where nobody looked."""
        answer, self._answer = self._answer, None
        return answer

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Unscale if that was not done, and step; a dynamic scale skips the step when a gradient is not finite."""
        self.unscale_(optimizer)
        if self.is_dynamic and self._found_nonfinite:
            self.skipped_steps += 1
            if self.on_skip is not None:
                self.on_skip()
            return None
        return optimizer.step(*args, **kwargs)

    def update(self) -> None:
        """Shrink a dynamic scale after a gradient that was not finite, grow it after many that were."""
        if self.is_dynamic and self.scale_factor is not None:
            self._good_steps = 0 if self._found_nonfinite else self._good_steps + 1
            if self._found_nonfinite:
                self.scale_factor *= BACKOFF_FACTOR
            elif self._good_steps == self.interval:
                self.scale_factor *= GROWTH_FACTOR
                self._good_steps = 0
        self._found_nonfinite = False
        self._is_unscaled.clear()

    def state_dict(self) -> dict[str, float | int | None]:
        """Return what a resume needs."""
        return {"scale": self.scale_factor, "good_steps": self._good_steps, "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.scale_factor = _optional(state["scale"])
        self._good_steps, self.skipped_steps = int(state["good_steps"]), int(state["skipped_steps"])


def has_nonfinite(tensors: Iterable[Tensor]) -> bool:
    """Whether any of the tensors holds a number that is not finite: of each device is asked once."""
    return any(bool(is_broken) for is_broken in nonfinite_flags(tensors))


def nonfinite_flags(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return, for each device and on it, whether one of its tensors holds a number that is not finite."""
    found: dict[torch.device, Tensor] = {}
    for x in tensors:
        is_broken = ~torch.isfinite(x).all()
        found[x.device] = found[x.device] | is_broken if x.device in found else is_broken
    return list(found.values())


class _Scaled(torch.autograd.Function):
    """loss * scale in float32; the gradient of the loss is scale times what comes in, unrounded until it is the loss's.

    A loss of 16 bits has a gradient of 16 bits, and 2^16 is no number of fp16: that step overflows, is skipped,
    and the scale is halved.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        with modes_off():
            return loss.to(torch.promote_types(loss.dtype, torch.float32)) * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        with modes_off():
            return grads[0] * ctx.factor, None


def _optional(value: Any) -> float | None:
    """Return a number as float, None as None."""
    return None if value is None else float(value)
