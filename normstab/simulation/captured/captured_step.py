"""A step of training recorded as a CUDA graph and launched as a whole: the same bits and counts, less work of the host.

    calls      1 .. 3      step by step as ever, so that kernels are compiled and tensors have their places
               4           recorded, which computes nothing, then replayed
               5 ...       replayed, each at its own step of training

What the host does in a step happens in no replay, so that it is done here: counts, stamps and the clock move on as if
every operation had been called. A call that is not what was recorded runs step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from normstab.errors import NormstabError
from normstab.numerics.kernels.cuda.captured_log import CapturedLog
from normstab.numerics.kernels.cuda.device_log import counting_in
from normstab.simulation.captured import cuda_graph
from normstab.simulation.captured.host_effects import Before, Effects
from normstab.simulation.run import Run
from normstab.torch_private import modes_off, tree_map_only

__all__ = ["CapturedStep", "Simulated"]

Step = Callable[..., Any]


class Simulated(Protocol):
    """What a captured step asks of the simulation that it runs in."""

    run: Run
    model: nn.Module

    def forget_copies(self) -> None:
        """Cast every parameter anew where it is used next."""

    def why_not_captured(self) -> str:
        """Return why no step can be captured here, or nothing."""


class CapturedStep:
    """A step of training; `run.capture` makes it, a call takes it.

    Inputs are tensors of one shape for ever, of which it keeps copies; what it returns is overwritten by the next call.
    `is_captured` says whether calls are replays by now, `replays` how many were.
    """

    def __init__(self, simulated: Simulated, step: Step, *, warm_up: int) -> None:
        if reason := simulated.why_not_captured():
            raise NormstabError(f"a step cannot be captured: {reason}")
        self._simulated = simulated
        self._step = step
        self._steps_to_go = warm_up
        self._device = next(simulated.model.parameters()).device
        self._log = CapturedLog(self._device)
        self._graph: Callable[[], None] | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: Any = None
        self._optimizers: dict[Optimizer, None] = {}
        self._key: Hashable = None
        self._kept: list[Tensor] = []  # what replays read, so that no memory of theirs becomes another's
        self._effects: Effects | None = None
        self._replays = 0

    @property
    def is_captured(self) -> bool:
        """Whether the step has been recorded."""
        return self._graph is not None

    @property
    def replays(self) -> int:
        """How many calls were replays."""
        return self._replays

    def __call__(self, *inputs: Tensor) -> Any:
        """Take a step on `inputs`; return what it returns, whose tensors the next call overwrites."""
        if self._steps_to_go > 0:
            self._steps_to_go -= 1
            return cuda_graph.aside(lambda: self._step(*inputs), self._device)
        if self._graph is None:
            self._capture(inputs)
        if not self._is_as_captured(inputs):
            return self._step(*inputs)
        with modes_off(), torch.no_grad():
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given, non_blocking=True)
        self._replay()
        return self._outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        """Record a step, and leave everything on the host as it was before."""
        run, parameters = self._simulated.run, list(self._simulated.model.parameters())
        before, gradients = Before.of(run), [p.grad for p in parameters]
        self._simulated.forget_copies()
        with modes_off():
            self._inputs = tuple(x.detach().clone() for x in inputs)
        hook = register_optimizer_step_pre_hook(lambda optimizer, *given: self._optimizers.setdefault(optimizer))
        try:
            with run.ledger.noting() as noted:
                self._graph, outputs = cuda_graph.recorded(self._recorded_step, self._device)
            with modes_off():
                self._outputs = tree_map_only(Tensor, Tensor.detach, outputs)
            self._effects = before.effects(run, noted, [(p, p.grad) for p in parameters])
        except (RuntimeError, NormstabError) as error:
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise NormstabError(f"the step cannot be captured: {reason}") from error
        finally:
            hook.remove()
            self._simulated.forget_copies()
            before.restore(run)
        self._key, self._kept = self._circumstances(), self._read()

    def _recorded_step(self) -> Any:
        """Take the step, which counts in the log of this one."""
        with counting_in(self._log, self._device):
            outputs = self._step(*self._inputs)
            self._log.close()
        return outputs

    def _replay(self) -> None:
        """Launch the step, and do on the host what it does there."""
        run, effects = self._simulated.run, self._effects
        assert effects is not None and self._graph is not None, "there is a recorded step"
        steps, stamps = run.step - effects.begin.step, run.ledger.stamped - effects.stamp
        self._log.begin_replay(stamps=stamps, steps=steps)
        with modes_off():
            self._graph()
        effects.happen(run, stamps=stamps, steps=steps)
        self._replays += 1

    def _is_as_captured(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether a step now does what was recorded."""
        effects = self._effects
        assert effects is not None
        # What was cast in this step already would not be cast again, nor counted.
        is_uncast = not any(held.is_cast for held in effects.first_casts)
        return (
            is_uncast
            and [_kind(x) for x in inputs] == [_kind(x) for x in self._inputs]
            and self._simulated.run.arithmetic.clock.moment().calls == effects.begin.calls
            and self._circumstances() == self._key
        )

    def _read(self) -> list[Tensor]:
        """Return the tensors that were there before the recording, and that replays read or write."""
        model, run = self._simulated.model, self._simulated.run
        states = [state for optimizer in self._optimizers for state in optimizer.state.values()]
        found: list[Any] = [value for state in states for value in state.values()]
        found += [held.copy for held in run.parameters]
        return [x.detach() for x in (*model.parameters(), *model.buffers(), *found) if isinstance(x, Tensor)]

    def _circumstances(self) -> Hashable:
        """Return what a step reads on the host, as far as it can be known: where tensors lie, modes, optimizers."""
        model, run = self._simulated.model, self._simulated.run
        tensors = [(x.data_ptr(), x.requires_grad) for x in (*model.parameters(), *model.buffers())]
        modes = [module.training for module in model.modules()]
        told = [told_of(optimizer) for optimizer in self._optimizers]
        counted = run.ledger.counts_losses
        return tuple(tensors), tuple(modes), run.scaler.scale_factor, torch.is_grad_enabled(), counted, tuple(told)


def told_of(optimizer: Optimizer) -> Hashable:
    """Return what an optimizer's step reads on the host: rates and the like, and where its tensors lie."""
    groups = [
        tuple((name, _number(value)) for name, value in group.items() if name != "params")
        for group in optimizer.param_groups
    ]
    states = [_number(value) for state in optimizer.state.values() for value in state.values()]
    return tuple(groups), tuple(states)


def _number(value: Any) -> Hashable:
    """Return a number as it is, and of a tensor where it lies."""
    if isinstance(value, Tensor):
        return "at", value.data_ptr()
    return tuple(value) if isinstance(value, list) else value


def _kind(x: Tensor) -> tuple[Any, ...]:
    """Return what must not change of an input."""
    return x.shape, x.dtype, x.stride(), x.device
