"""What `simulate` and `record` share around a model: places, a mode entered and left, steps that are counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from normstab.numerics.arithmetic import Arithmetic
from normstab.simulation.around.compilation import keep_uncompiled
from normstab.simulation.around.dispatch_mode import DispatchMode, close_mode
from normstab.simulation.around.parameters import Held
from normstab.simulation.around.places import ModuleTracker, Place
from normstab.simulation.run import Run
from normstab.torch_private import mode_stack

__all__ = ["Session", "held_tensors", "rounds_itself"]


class Session(ABC):
    """A mode around one model that can be entered and left, and the steps of training that it counts.

    Steps are the optimizer's where one runs (`has_seen_optimizer`), else forwards of the root.
    """

    def __init__(
        self, model: nn.Module, run: Run, mode: DispatchMode, places: dict[nn.Module, Place], held: list[Held]
    ) -> None:
        self.model = model
        self.run = run
        self.mode = mode
        self.tracker: ModuleTracker = mode.tracker
        self.places = places
        self.held = held
        self.is_over = False
        self.is_in_order = True
        self.has_seen_optimizer = False
        self._has_seen_forward = False
        self._has_entered = False

    def end(self) -> None:
        """Leave the mode; hooks on copies of the model do nothing from now on."""
        self.is_in_order = not self._has_entered or close_mode(self.mode)
        self.mode.end()
        self.is_over = True

    @property
    def is_idle(self) -> bool:
        """Whether the session has ended, or another simulation has taken over."""
        return self.is_over or self.mode.is_suspended

    @property
    def has_entered(self) -> bool:
        """Whether the mode is entered."""
        return self._has_entered

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """Whether the mode has anything to do in this step."""

    @property
    @abstractmethod
    def casts_inputs(self) -> bool:
        """Whether the root's floating inputs are cast."""

    def ensure_entered(self) -> None:
        """Enter the mode, unless it is entered or has nothing to do."""
        if not self._has_entered and self.has_work:
            keep_uncompiled(type(self.mode))
            self.mode.__enter__()
            self._has_entered = True

    def leave(self) -> None:
        """Leave the mode if it is the innermost one."""
        modes = mode_stack()
        if self._has_entered and modes and modes[-1] is self.mode:
            self.mode.__exit__(None, None, None)
            self._has_entered = False

    def advance(self) -> None:
        """Begin the next step."""
        self.run.arithmetic.advance()

    def begin_root_forward(self) -> None:
        """Count a step where there is no optimizer to count by; look at the parameters."""
        is_counted_elsewhere = self.has_seen_optimizer or self.run.arithmetic.clock.is_set
        if self._has_seen_forward and not is_counted_elsewhere:
            self.advance()
        self._has_seen_forward = True
        self.tracker.restart()
        self._look_at_parameters()

    @abstractmethod
    def _look_at_parameters(self) -> None:
        """Look at the parameters as they are where a forward of the root begins."""

    def begin_module(self) -> None:  # noqa: B027 - a session need not care
        """A module that no other is running begins."""

    def end_module(self) -> None:  # noqa: B027
        """No module is running any more."""

    @abstractmethod
    def begin_optimizer_step(self, optimizer: Optimizer) -> None:
        """A step of any optimizer begins."""

    @abstractmethod
    def end_optimizer_step(self, optimizer: Optimizer) -> None:
        """A step of any optimizer has ended."""


def rounds_itself(module: nn.Module) -> bool:
    """Whether a module is one of our own layers, written against an Arithmetic."""
    return isinstance(getattr(module, "arithmetic", None), Arithmetic)


def held_tensors(places: dict[nn.Module, Place]) -> Iterator[Held]:
    """Yield every floating or complex parameter and buffer that is cast on use, each once, with its module."""
    seen: set[int] = set()
    for module, place in places.items():
        if place.passes:
            continue
        named: list[tuple[str, Any, bool]] = [(n, p, True) for n, p in module.named_parameters(recurse=False)]
        named += [(n, b, False) for n, b in module.named_buffers(recurse=False)]
        for name, tensor, is_parameter in named:
            # Where dtypes are honoured complex64 is a wide type, and stays one.
            is_cast = tensor.is_floating_point() or (tensor.is_complex() and place.shown is None)
            if is_cast and id(tensor) not in seen:
                seen.add(id(tensor))
                yield Held(tensor, place, name, is_parameter=is_parameter)
