"""The torch mode under `simulate` and `record`: it finds each operation's plan and place, and leaves the stack cleanly.

torch's own exit takes off whatever mode is on top of its stack. A mode of ours that is over and still lies on the stack
of a thread we are not in passes everything through until then.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from normstab.errors import NormstabError
from normstab.numerics.dispatch import PLAIN_DISPATCH
from normstab.simulation.around.compilation import are_fake
from normstab.simulation.around.places import ModuleTracker, Place
from normstab.simulation.aten.overloads import Plan, plan_of
from normstab.simulation.code_lines import Sources
from normstab.torch_private import TorchDispatchMode, mode_stack, set_compiler

__all__ = ["Arguments", "DispatchMode", "Named", "check_order", "close_mode", "drop_ended_modes"]

Arguments = tuple[Any, ...]  # what an operation is called with, by position
Named = Mapping[str, Any]  # and by name
NOTHING: Named = {}


class DispatchMode(TorchDispatchMode):
    """Gives every operation with numbers to `run_at`, with its plan and its place; lets the others pass.

    `is_suspended` lets everything pass: another simulation has taken over, or this mode is over.
    """

    def __init__(self, tracker: ModuleTracker) -> None:
        super().__init__()
        self.tracker = tracker
        self.sources = Sources()
        self.is_suspended = False
        self.is_over = False
        self._plans: dict[int, Plan] = {}

    def end(self) -> None:
        """Let everything pass from now on, on whatever stack the mode may still lie."""
        self.is_over = self.is_suspended = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch's own guard against being compiled costs more than the dispatch itself; set_eval_frame is cheaper.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Arguments = (), kwargs: Named | None = None) -> Any:
        if types and any(found.__torch_dispatch__ is not PLAIN_DISPATCH for found in types):
            if are_fake(types):
                return func(*args, **(kwargs or NOTHING))
            return NotImplemented  # a tensor subclass takes itself apart first; what it is made of is seen afterwards
        compiler = set_compiler(None)
        if compiler is None:
            return self._dispatch(func, args, kwargs)
        try:
            return self._dispatch(func, args, kwargs)
        finally:
            set_compiler(compiler)

    def _dispatch(self, func: Any, args: Arguments, kwargs: Named | None) -> Any:
        """Find out what to do with an operation, and do it."""
        plan = self._plans.get(id(func))
        if plan is None:
            plan = self._plans[id(func)] = plan_of(func)
        if self.is_suspended or (plan.kind == "pass" and not plan.written):
            return func(*args, **kwargs) if kwargs else func(*args)
        if plan.kind == "composite":
            with self:
                return plan.function(*args, **(kwargs or NOTHING))
        return self.run_at(func, plan, self.tracker.here(), args, kwargs)

    @abstractmethod
    def run_at(self, func: Any, plan: Plan, place: Place, args: Arguments, kwargs: Named | None) -> Any:
        """Run one operation, whose plan is known, at a place."""


def close_mode(mode: TorchDispatchMode) -> bool:
    """Take `mode` off this thread's stack, and return whether it was the innermost one there.

    The modes above it, opened later and still open, are taken off and put back as torch does it, so that the flags
    which torch keeps beside its stack stay right.
    """
    modes = mode_stack()
    if mode not in modes:
        return False
    above = modes[modes.index(mode) + 1 :]
    for other in reversed(above):
        TorchDispatchMode.__exit__(other, None, None, None)
    mode.__exit__(None, None, None)
    for other in above:
        TorchDispatchMode.__enter__(other)
    return not above


def drop_ended_modes() -> None:
    """Take those modes off this thread's stack whose contexts were closed in another thread."""
    for mode in mode_stack():
        if getattr(mode, "is_over", False):
            close_mode(mode)


def check_order(is_in_order: bool, name: str) -> None:
    """Raise NormstabError where a context was not closed as the innermost one in the thread that opened it."""
    if not is_in_order:
        raise NormstabError(
            f"{name}: closed out of order: a context that was opened inside it is still open, or this is another "
            "thread; what ran since then may have been computed in the arithmetic of the other context. "
            "Close contexts innermost first, and keep them out of tasks and generators that interleave"
        )
