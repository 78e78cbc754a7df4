"""Activation checkpointing: a forward that is run again in the backward pass draws the bits that it drew before.

torch says nowhere that a call of `torch.utils.checkpoint` begins, so its traces are read. Without reentrance: the
saved-tensor hooks on top belong to a frame, of a checkpoint or of its recomputation. With it: the node of the
backward pass that runs, whose number is less than that of the nodes to come when its forward ran.
"""

from __future__ import annotations

import inspect
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch

from normstab.torch_private import (
    REENTRANT,
    autograd_node,
    backward_pass,
    next_node_number,
    node_number,
    saved_tensor_hooks,
)

__all__ = ["Beginning", "Moment", "Replay"]

# Where a torch does not have these hooks, or that node, only modules that begin in a backward pass are told.
CHECKPOINT, RECOMPUTATION = (
    "_checkpoint_hook.__init__.<locals>.pack_hook",
    "_recomputation_hook.__init__.<locals>.pack_hook",
)
# Of forwards without gradient, among which reentrant checkpoints are, so many beginnings are remembered.
MOST_BEGINNINGS = 4096
OLDEST_STEPS = 64  # micro-batches are forwards of one step, or steps of their own where no optimizer counts them


class Moment(NamedTuple):
    """A step, and how often each site had been called in it before this moment."""

    step: int
    calls: Mapping[str, int]


class Dial(Protocol):
    """A clock that can be set back."""

    step: int

    def moment(self) -> Moment:
        """Return what `turn_to` goes back to."""

    def turn_to(self, moment: Moment) -> None:
        """Go on as from `moment`."""


class Beginning(NamedTuple):
    """What the clock showed when a checkpoint's forward began, and what `where` said then."""

    moment: Moment
    place: Any


def nowhere() -> None:
    """Return no place: nobody has asked for one. A function with a name, for clocks are pickled."""


class Replay:
    """Sets a clock back while a checkpoint's forward is recomputed, and forward again afterwards.

    `where` is asked at the beginning of each checkpoint for what `beginning.place` is to be during its recomputation.
    `is_in_module`: a module was entered within a backward pass; it is recomputed, by whomever.
    """

    def __init__(self, clock: Dial) -> None:
        self.clock = clock
        self.where: Callable[[], Any] = nowhere
        self.is_in_module = False
        self.beginning: Beginning | None = None
        self._source: Any = None
        self._task = -1  # the backward pass that `_source` is part of
        self._done: set[tuple[int, int]] = set()
        self._now: Moment | None = None
        self._of_frame: WeakKeyDictionary[Any, Beginning] = WeakKeyDictionary()
        self._numbers: list[int] = []  # ascending, and beside it what began there
        self._of_numbers: list[Beginning] = []

    def __getstate__(self) -> dict[str, Dial]:
        # What is being replayed belongs to the graphs of this process; a copy begins with none.
        return {"clock": self.clock}

    def __setstate__(self, state: dict[str, Dial]) -> None:
        self.__init__(state["clock"])  # type: ignore[misc]

    def follow(self) -> bool:
        """Notice where autograd is; return whether what is computed now was computed before."""
        node = autograd_node()
        source = None if node is None else self._source_at(node)
        if source is not self._source:
            self._turn_to(source)
        if node is None and self._done:
            self._done.clear()
        is_recomputed = source is not None or (self.is_in_module and node is not None)
        if node is None or is_recomputed:
            self._note_beginnings()
        return is_recomputed

    def _source_at(self, node: Any) -> Any:
        """Return what recomputes, or None in a backward pass proper."""
        if type(node) is REENTRANT:
            # Once its own backward pass has run, gradients are added up under this node still.
            return None if (id(node), backward_pass()) in self._done else node
        hooks = saved_tensor_hooks(True)
        if hooks is None:
            return None
        if _name(hooks[0]) == RECOMPUTATION:
            return hooks[0]
        # Hooks within the recomputed function. A backward pass proper runs without gradients, or below no hooks.
        return self._source if torch.is_grad_enabled() else None

    def _turn_to(self, source: Any) -> None:
        """Set the clock to where the forward began that `source` recomputes; None: to where it was before."""
        if self._source is None:
            self._now = self.clock.moment()
        elif type(self._source) is REENTRANT:
            self._done.add((id(self._source), self._task))
        self._task = backward_pass()
        self._source = source
        self.beginning = None if source is None else self._beginning_of(source)
        moment = self._now if self.beginning is None else self.beginning.moment
        assert moment is not None
        self.clock.turn_to(moment)

    def _beginning_of(self, source: Any) -> Beginning | None:
        """Return the beginning of what `source` recomputes; None if it was before the first rounding here."""
        if type(source) is REENTRANT:
            i = bisect_right(self._numbers, node_number(source))
            return self._of_numbers[i] if i < len(self._numbers) else None
        reference = _variable(source, "target_frame_ref")
        frame = None if reference is None else reference()
        return None if frame is None else self._of_frame.get(frame)

    def _note_beginnings(self) -> None:
        """Remember where the clock stands if a forward has begun that may be recomputed."""
        hooks = saved_tensor_hooks(True)
        if hooks is not None and _name(hooks[0]) == CHECKPOINT:
            frame = _variable(hooks[0], "frame")
            if frame is not None and frame not in self._of_frame:
                self._of_frame[frame] = Beginning(self.clock.moment(), self.where())
        if not torch.is_grad_enabled():
            number = next_node_number()
            i = bisect_left(self._numbers, number)
            if i == len(self._numbers) or self._numbers[i] != number:
                self._numbers.insert(i, number)
                self._of_numbers.insert(i, Beginning(self.clock.moment(), self.where()))
                if len(self._numbers) > MOST_BEGINNINGS:
                    half = MOST_BEGINNINGS // 2
                    del self._numbers[:half], self._of_numbers[:half]
                # Of forwards so many steps ago the backward pass has long been.
                while self._of_numbers[0].moment.step + OLDEST_STEPS < self.clock.step:
                    del self._numbers[0], self._of_numbers[0]


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", "")


def _variable(function: Any, name: str) -> Any:
    """Return what a function holds of the function around it under `name`, or None."""
    inner = inspect.unwrap(function)
    found = dict(zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True))
    return found[name].cell_contents if name in found else None
