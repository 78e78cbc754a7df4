"""`record`: plain float32, nothing rounded, but every result's exponents counted in a ledger, every k-th step.

What simulate names, record names alike. Steps that are not recorded run without the mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn
from torch.optim import Optimizer

from normstab.errors import NormstabError
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.execute import round_tensor
from normstab.numerics.ledger import Ledger
from normstab.numerics.rules import OUTSIDE
from normstab.numerics.spelling.arguments import check_instance
from normstab.simulation.around.compilation import keep_uncompiled
from normstab.simulation.around.hooks import hook_modules, hook_optimizers
from normstab.simulation.around.mode_stack import check_order, close_mode, drop_ended_modes
from normstab.simulation.around.observation import Observation
from normstab.simulation.around.parameters import Held
from normstab.simulation.around.places import ModuleTracker, Place
from normstab.simulation.around.session import held_tensors, rounds_itself
from normstab.simulation.aten.parts.complex_parts import as_real
from normstab.simulation.full_float32 import full_float32
from normstab.simulation.log import Log
from normstab.simulation.loss_scale import LossScaler
from normstab.simulation.run import Run
from normstab.torch_private import mode_stack

__all__ = ["Log", "record"]


@contextmanager
def record(model: nn.Module, *, every: int = 1) -> Iterator[Log]:
    """Count the exponents of every result inside the `with` block, in one step of `every`; yield the Log.

    Nothing is rounded and nothing changes. Steps are the optimizer's where one runs, else forwards of the
    root; step 0 is recorded, then `every`, 2 `every`, ... The inside of torch's norm operations is recorded
    at the sites of norms/, forward. Operations inside an optimizer step are not recorded.
    """
    check_instance(model, nn.Module, "record: model", "a torch.nn.Module")
    if not isinstance(every, int) or every < 1:
        raise NormstabError(f"record: every is a whole number >= 1, found {every!r}")
    arithmetic = Arithmetic("fp32", ledger=Ledger(histogram=True))
    log = Log(arithmetic, LossScaler(), every=every)
    recording = _Recording(model, log, every)
    with full_float32(), ExitStack() as stack:
        recording.begin(stack)
        yield log
    check_order(recording.is_in_order, "record")


class _Recording:
    """A recording of one model: places, hooks and the mode, which is entered in recorded steps only."""

    def __init__(self, model: nn.Module, log: Log, every: int) -> None:
        self.model = model
        self.run: Run = log
        self.every = every
        self.is_over = False
        self.is_in_order = True
        at = log.arithmetic
        self.places = {m: Place(name, at, direction="forward", passes=False) for name, m in model.named_modules()}
        outside, optimizer = (Place(OUTSIDE, at, direction=d, passes=False) for d in ("forward", "optimizer"))
        self.tracker = ModuleTracker(outside, optimizer)
        self.mode = Observation(self.tracker)
        self.mode.sources = log.sources
        self.held: list[Held] = list(held_tensors(self.places))
        self._has_entered = False
        self._has_seen_optimizer = False
        self._has_seen_forward = False

    def begin(self, stack: ExitStack) -> None:
        """Put hooks in place and enter the mode; closing `stack` undoes both."""
        drop_ended_modes()
        stack.callback(self._end)
        for held in self.held:
            if held.is_parameter:
                self.tracker.own(held.tensor, held.place)
        hook_modules(self.model, self.places, self, stack)
        hook_optimizers(self, stack)
        for module, place in self.places.items():
            if rounds_itself(module) and not module.arithmetic.is_native:  # type: ignore[union-attr]
                self.run.note(f"module {place.name!r} rounds by itself: its own operations are not recorded")
        self.ensure_entered()

    def _end(self) -> None:
        self.is_in_order = not self._has_entered or close_mode(self.mode)
        self.is_over = self.mode.is_over = True

    @property
    def is_idle(self) -> bool:
        """Whether the recording has ended."""
        return self.is_over

    @property
    def casts_inputs(self) -> bool:
        """Never: nothing is rounded."""
        return False

    def ensure_entered(self) -> None:
        """Enter the mode, unless it is entered or this step is not recorded."""
        if not self._has_entered and self.run.step % self.every == 0:
            keep_uncompiled(Observation)
            self.mode.__enter__()
            self._has_entered = True

    def _leave(self) -> None:
        """Leave the mode if it is the innermost one."""
        modes = mode_stack()
        if self._has_entered and modes and modes[-1] is self.mode:
            self.mode.__exit__(None, None, None)
            self._has_entered = False

    def begin_root_forward(self) -> None:
        """Count a step where there is no optimizer to count by; look at the parameters of a recorded one."""
        is_counted_elsewhere = self._has_seen_optimizer or self.run.arithmetic.clock.is_set
        if self._has_seen_forward and not is_counted_elsewhere:
            self._advance()
        self._has_seen_forward = True
        self.tracker.restart()
        self.ensure_entered()
        if self._has_entered:
            for held in self.held:
                numbers = as_real(held.tensor.detach())
                call = held.place.arithmetic.call(held.local_name, self.mode.format_of(numbers))
                round_tensor(numbers, call, out=numbers)

    def begin_module(self) -> None:
        """Parameters are used as they are."""

    def end_module(self) -> None:
        """Parameters are used as they are."""

    def begin_optimizer_step(self, optimizer: Optimizer) -> None:
        """Optimizers are not recorded."""
        self._leave()

    def end_optimizer_step(self, optimizer: Optimizer) -> None:
        """Count the step."""
        self._has_seen_optimizer = True
        self._advance()
        self.ensure_entered()

    def _advance(self) -> None:
        """Begin the next step, recorded or not."""
        self.run.arithmetic.advance()
        if self.run.step % self.every:
            self._leave()
