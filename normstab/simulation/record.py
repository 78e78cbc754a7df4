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
from normstab.simulation.around.dispatch_mode import check_order
from normstab.simulation.around.hooks import put_in_place
from normstab.simulation.around.observation import Observation
from normstab.simulation.around.places import ModuleTracker, Place
from normstab.simulation.around.session import Session, held_tensors, rounds_itself
from normstab.simulation.aten.parts.complex_parts import as_real
from normstab.simulation.full_float32 import full_float32
from normstab.simulation.log import Log
from normstab.simulation.loss_scale import LossScaler

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
        recording.record(stack)
        yield log
    check_order(recording.is_in_order, "record")


class _Recording(Session):
    """A session whose mode counts, and is entered in recorded steps only."""

    def __init__(self, model: nn.Module, log: Log, every: int) -> None:
        at = log.arithmetic
        places = {m: Place(name, at, direction="forward", passes=False) for name, m in model.named_modules()}
        outside, optimizer = (Place(OUTSIDE, at, direction=d, passes=False) for d in ("forward", "optimizer"))
        mode = Observation(ModuleTracker(outside, optimizer))
        mode.sources = log.sources
        super().__init__(model, log, mode, places, list(held_tensors(places)))
        self.every = every

    def record(self, stack: ExitStack) -> None:
        """Put hooks in place and enter the mode; closing `stack` undoes both."""
        put_in_place(self, stack)
        for module, place in self.places.items():
            if rounds_itself(module) and not module.arithmetic.is_native:  # type: ignore[union-attr]
                self.run.note(f"module {place.name!r} rounds by itself: its own operations are not recorded")
        self.ensure_entered()

    @property
    def has_work(self) -> bool:
        """Whether this step is recorded."""
        return self.run.step % self.every == 0

    @property
    def casts_inputs(self) -> bool:
        """Never: nothing is rounded."""
        return False

    def _look_at_parameters(self) -> None:
        """Count the parameters of a recorded step."""
        self.ensure_entered()
        if self.has_entered:
            for held in self.held:
                numbers = as_real(held.tensor.detach())
                call = held.place.arithmetic.call(held.local_name, Observation.format_of(numbers))
                round_tensor(numbers, call, out=numbers)

    def begin_optimizer_step(self, optimizer: Optimizer) -> None:
        """Optimizers are not recorded."""
        self.leave()

    def end_optimizer_step(self, optimizer: Optimizer) -> None:
        """Count the step."""
        self.has_seen_optimizer = True
        self.advance()
        self.ensure_entered()

    def advance(self) -> None:
        """Begin the next step, recorded or not."""
        super().advance()
        if not self.has_work:
            self.leave()
