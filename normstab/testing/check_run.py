"""One run of a checked model: forward, loss, backward and, with more than one step, the optimizer.

The same code runs in every arithmetic; it judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normstab.errors import NormstabError, lookup
from normstab.experiment.network.users_code import users_code
from normstab.testing.subject import Subject, floating_tensors

__all__ = ["OPTIMIZERS", "Outcome", "Training", "run_plainly", "run_subject"]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
"""The optimizers that `check` trains with, with torch's defaults but the rate."""


@dataclass(frozen=True)
class Training:
    """How `check` trains: a row of OPTIMIZERS, its rate, the steps (0: one pass, no update), a row of LOSSES."""

    optimizer: str = "sgd"
    lr: float = 0.01
    steps: int = 0
    loss: str = "default"

    def __post_init__(self) -> None:
        lookup(OPTIMIZERS, self.optimizer, what="optimizer")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise NormstabError(f"the learning rate is {self.lr:g}; allowed: a finite number above 0")

    def optimizer_of(self, module: nn.Module) -> torch.optim.Optimizer | None:
        """Return the optimizer of the parameters that take part, or None where there are none."""
        trained = [p for p in module.parameters() if p.requires_grad]
        return OPTIMIZERS[self.optimizer](trained, lr=self.lr) if trained else None


@dataclass(frozen=True)
class Outcome:
    """One run of the subject: the first outputs, every loss, and what was not finite, if anything was."""

    outputs: list[Tensor]
    losses: tuple[float, ...]
    nonfinite: str | None


def run_subject(
    subject: Subject, seed: int, training: Training, optimizer: torch.optim.Optimizer | None = None
) -> Outcome:
    """Run forward and backward, and the optimizer between steps; stop at the first loss that is not finite.

    A buffer that was finite and is no more, such as a running variance, breaks the evaluation that reads it.
    """
    optimizer = optimizer if optimizer is not None else training.optimizer_of(subject.module)
    outputs: list[Tensor] = []
    losses: list[float] = []
    whole = _finite_buffers(subject.module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(max(1, training.steps)):
            output, loss = subject.forward()
            if step == 0:
                outputs = [x.detach().double().clone() for x in floating_tensors(output)]
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                return Outcome(outputs, tuple(losses), "the loss")
            if loss.requires_grad:
                loss.backward()
            gradients = [p.grad for p in subject.module.parameters() if p.grad is not None]
            if not all(_is_finite(g) for g in gradients):
                return Outcome(outputs, tuple(losses), "a gradient")
            if optimizer is not None and training.steps > 1:
                optimizer.step()
                optimizer.zero_grad()
    if not all(_is_finite(x) for x in outputs):
        return Outcome(outputs, tuple(losses), "an output")
    broken = sorted(whole - _finite_buffers(subject.module))
    return Outcome(outputs, tuple(losses), f"the buffer {broken[0]}" if broken else None)


def _finite_buffers(module: nn.Module) -> set[str]:
    """Return the names of the floating buffers without inf and NaN."""
    return {name for name, x in module.named_buffers() if x.is_floating_point() and _is_finite(x)}


def _is_finite(x: Tensor) -> bool:
    """Whether no element is inf or NaN."""
    return bool(x.isfinite().all())


def run_plainly(subject: Subject, seed: int) -> None:
    """Run one pass as torch does: what fails here is the user's, and is told with the user's line."""
    module = subject.module
    if isinstance(module, torch.jit.ScriptModule):
        raise NormstabError(
            "the model is traced or scripted (torch.jit), which hides its operations; give the original"
        )
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        raise NormstabError("the model has lazy layers without a shape; run it once on its input in the factory")
    if any(type(layer).__module__.startswith("torch.ao.nn.quantized") for layer in module.modules()):
        raise NormstabError("the model is quantized by torch already; give the original and a precision such as int8")
    with users_code("the model cannot be copied"):
        plain = subject.copied(torch.float32)
    with users_code("the model does not run on this input"):
        run_subject(plain, seed, Training())
