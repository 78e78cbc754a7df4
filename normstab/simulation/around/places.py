"""Where an operation belongs: the module that runs it, and its direction.

Forward, that is the innermost module entered; backward, the module whose forward pass made the autograd
node. Nothing here computes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Site
from normstab.simulation.aten.operation import Operation
from normstab.simulation.aten.scaled_operands import quantizes
from normstab.torch_private import autograd_node, next_node_number, node_number

__all__ = ["ModuleTracker", "Observers", "Place", "Places", "adds_up"]

# An AccumulateGrad node has no sequence number of its own but the greatest there is.
LARGEST_SEQUENCE = 2**63
# A boundary is a pair of list entries; beyond this many the older half belongs to graphs long gone.
MOST_BOUNDARIES = 1 << 18


class Observers(NamedTuple):
    """Who is shown the first result of each operation at its site, and who the operation with all its results."""

    of_results: Callable[[Site, Tensor], None] | None = None
    of_operations: Callable[[Site, Operation, Any], None] | None = None


class Place:
    """A module and a direction, with the arithmetic of the results there.

    `passes` says that operations here are left to torch: a module whose precision is `native`, one of our own
    norm layers (they round by themselves), an optimizer that was not given. `shown` is the 16-bit dtype that
    the network sees here; None where numbers live in float32 tensors. `around` is the place itself where this one is
    for an operation that has a rule of its own; `rounds_itself` says that the module is one of our own norm layers,
    `takes_operands` that products here take their operands in a scaled format.
    """

    __slots__ = (
        "arithmetic",
        "around",
        "backward",
        "direction",
        "name",
        "passes",
        "rounds_itself",
        "shown",
        "takes_operands",
    )

    def __init__(
        self, name: str, arithmetic: Arithmetic, *, direction: str, passes: bool, shown: torch.dtype | None = None
    ) -> None:
        self.name = name
        self.direction = direction
        role = {"backward": "gradient", "optimizer": "optimizer"}.get(direction)
        at = arithmetic.at(name) if name else arithmetic
        self.arithmetic = at if arithmetic.is_native else at.towards(direction).in_format(role)
        self.passes = passes or arithmetic.is_native
        self.shown = shown
        self.around: Place | None = None
        self.rounds_itself = False
        self.takes_operands = not self.passes and quantizes(arithmetic.precision, direction)
        self.backward: Place = self
        if direction == "forward":
            self.backward = Place(name, arithmetic, direction="backward", passes=passes, shown=shown)

    @property
    def casts_inside_norms(self) -> bool:
        """Whether a norm takes its parameters as they are and casts them itself, at sites of its own."""
        return self.arithmetic.precision.parameter is None

    def show(self, observers: Observers, op: Operation, result: Any) -> None:
        """Show observers an operation, unless it was shown before (checkpointing), and its first floating result."""
        if self.arithmetic.clock.replay.follow():
            return
        site = Site(self.name, op.name, self.direction)
        if observers.of_operations is not None:
            observers.of_operations(site, op, result)
        if observers.of_results is None:
            return
        for value in result if isinstance(result, list | tuple) else (result,):
            if isinstance(value, Tensor) and value.is_floating_point():
                observers.of_results(site, value)
                return

    def in_arithmetic(self, arithmetic: Arithmetic) -> Place:
        """Return this place for an operation that has a rule of its own."""
        found = Place(self.name, arithmetic, direction=self.direction, passes=False, shown=self.shown)
        found.around = self
        return found

    def __repr__(self) -> str:
        return f"Place({self.name!r}, {self.direction})"


class Places(NamedTuple):
    """The places of a network's modules, forward: by name, with the kind of each, and by the identity of the module."""

    by_name: dict[str, Place]
    kinds: dict[str, type]
    by_id: dict[int, Place]

    @staticmethod
    def of(places: dict[nn.Module, Place]) -> Places:
        """Return the places of modules; of several with one name (a compiled one and what it wraps) the last."""
        by_name = {place.name: place for place in places.values()}
        kinds = {place.name: type(module) for module, place in places.items()}
        return Places(by_name, kinds, {id(module): place for module, place in places.items()})


class ModuleTracker:
    """The module now running, and the modules that made the nodes of the autograd graph.

    torch numbers the nodes of a thread in order of creation, so that it is enough to note the number at
    which each module was entered and left.
    """

    def __init__(self, outside: Place, optimizer: Place) -> None:
        self.outside = outside
        self.optimizer = optimizer
        self.replay = outside.arithmetic.clock.replay
        self.replay.where = self._around
        self._stack: list[Place] = [outside]
        self._is_recomputed: list[bool] = [False]
        self._numbers: list[int] = [0]
        self._places: list[Place] = [outside.backward]
        self._of_parameter: dict[int, Place] = {}
        self._last: tuple[int, Place] = (-1, outside.backward)
        self.optimizer_depth = 0
        self.on_restart: Callable[[], None] | None = None
        self.pinned: Place | None = None  # while a compiled graph runs: the place of its step

    def own(self, parameter: torch.Tensor, place: Place) -> None:
        """Note that gradients added up for `parameter` belong to `place`."""
        self._of_parameter[id(parameter)] = place.backward

    def place_of(self, parameter: torch.Tensor) -> Place:
        """Return the place to which the gradient of a parameter belongs."""
        return self._of_parameter.get(id(parameter), self.outside.backward)

    def enter(self, place: Place) -> None:
        """Begin a module. One that begins within a backward node is being recomputed (checkpointing)."""
        self.replay.follow()
        self._stack.append(place)
        self._is_recomputed.append(_current_node() is not None)
        self.replay.is_in_module = self._is_recomputed[-1]
        self._mark(place)

    def leave(self, place: Place) -> None:
        """End a module, and those inside it that an exception left open."""
        if place not in self._stack[1:]:
            return
        while self._stack.pop() is not place:
            self._is_recomputed.pop()
        self._is_recomputed.pop()
        self.replay.is_in_module = self._is_recomputed[-1]
        self._mark(self._around())

    def _around(self) -> Place:
        """Return the innermost module that is running; within a function that is recomputed, at least its own."""
        if self.replay.beginning is not None and not self.is_inside_module:
            place: Place = self.replay.beginning.place
            return place
        return self._stack[-1]

    @property
    def is_inside_module(self) -> bool:
        """Whether a module is running."""
        return len(self._stack) > 1

    def here(self) -> Place:
        """Return the place of the operation that is being dispatched."""
        if self.pinned is not None:
            return self.pinned
        node = _current_node()
        if node is None or self._is_recomputed[-1]:
            place = self._stack[-1]
            if self.optimizer_depth and place is self.outside and not torch.is_grad_enabled():
                return self.optimizer
            return place
        self.replay.follow()
        if self.replay.beginning is not None:
            return self._replayed(self.replay.beginning.place)
        number = node_number(node)
        if number == self._last[0]:
            return self._last[1]
        if number >= LARGEST_SEQUENCE:
            variable = getattr(node, "variable", None)
            return self._of_parameter.get(id(variable), self.outside.backward)
        place = self._places[max(0, bisect_right(self._numbers, number) - 1)]
        self._last = (number, place)
        if torch.is_grad_enabled():
            self._mark_node(place)
        return place

    @property
    def is_recomputing(self) -> bool:
        """Whether what runs now ran before (checkpointing)."""
        return self.replay.follow()

    def _replayed(self, place: Place) -> Place:
        """Return the place of a function that is recomputed, to which the nodes belong that are made from now on."""
        if self._places[-1] is not place.backward:
            self._mark(place, since=1)  # the node of the operation that shows it was made before
        return place

    def autocasts_here(self) -> bool:
        """Whether autocast, where it is on, casts: loops have it around the forward pass; a rule may keep it out."""
        is_backward = _current_node() is not None and not self.is_recomputing
        return not is_backward and not self.optimizer_depth and self._stack[-1].shown is not None

    def restart(self) -> None:
        """Begin a forward of the root; forget the older half of the boundaries when there are very many."""
        if self.on_restart is not None:
            self.on_restart()
        if len(self._numbers) > MOST_BOUNDARIES:
            half = len(self._numbers) // 2
            del self._numbers[:half], self._places[:half]

    def _mark(self, place: Place, *, since: int = 0) -> None:
        """Note that nodes from now on, and `since` so many before, belong to `place`."""
        number = _next_sequence_number() - since
        self._last = (-1, place.backward)
        if self._numbers[-1] >= number:
            self._places[-1] = place.backward
        else:
            self._numbers.append(number)
            self._places.append(place.backward)

    def _mark_node(self, place: Place) -> None:
        """Note that nodes made while differentiating a node of `place` (create_graph) belong there too."""
        if self._places[-1] is not place and not self.is_inside_module:
            last = self._last
            self._mark(place)
            self._last = last


def adds_up(node: Any) -> bool:
    """Whether an autograd node adds a gradient to the `.grad` of its `variable`."""
    return node_number(node) >= LARGEST_SEQUENCE


def _current_node() -> Any:
    """Return the autograd node that is being evaluated, or None outside a backward pass."""
    return autograd_node()


def _next_sequence_number() -> int:
    """Return the number that the next autograd node of this thread gets."""
    number: int = next_node_number()
    return number
