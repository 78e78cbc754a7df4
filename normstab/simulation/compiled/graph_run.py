"""A compiled graph while it runs: plainly, or in the arithmetic of the simulation that this thread is in.

What a simulation does with an operation is the mode's own code, entered here without torch's dispatcher: the plan of
each step is known, and so is its place, from the module that the compiler says ran it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import fx

from normstab.numerics.ledger import Site
from normstab.simulation.around.mode import Emulation
from normstab.simulation.around.places import Place
from normstab.simulation.compiled.graph_steps import OVERLOAD, ModuleOrigin, Program, Step, program_of
from normstab.torch_private import mode_stack, modes_off

__all__ = ["CompiledGraph", "Origin"]


class Origin(NamedTuple):
    """What the compiler said of a graph that it handed over.

    `casts` are the casts to a wider type in it that change nothing in float32, by module and name; `notes` say in words
    where the graph was broken off, and what of it is not run as it stands.
    """

    casts: Sequence[tuple[ModuleOrigin, str]] = ()
    notes: Sequence[str] = ()


class CompiledGraph:
    """A forward or a backward graph of aten operations, which torch calls with a list of arguments."""

    def __init__(self, graph: fx.GraphModule, origin: Origin, *, is_backward: bool) -> None:
        self._boxed_call = True
        self._graph = graph
        self._origin = origin
        self._is_backward = is_backward
        self._program: Program | None = None
        self._places: WeakKeyDictionary[Emulation, dict[str, list[Place]]] = WeakKeyDictionary()

    def __call__(self, args: list[Any]) -> Any:
        """Return the outputs of the graph; the list is emptied, so that the graph alone holds what it reads."""
        running = running_simulations()
        if not running:
            given = list(args)
            args.clear()
            return self._graph(*given)
        mode = running[-1]
        # Another mode (a counter of operations, say) sees what passes through torch's dispatcher.
        others = [other for other in mode_stack() if other is not mode]
        is_alone = all(isinstance(other, Emulation) and other.is_suspended for other in others)
        return self._simulated(mode, args, is_alone=is_alone)

    def _simulated(self, mode: Emulation, args: list[Any], *, is_alone: bool) -> Any:
        """Run the steps in the arithmetic of a simulation."""
        if self._program is None:
            self._program = program_of(self._graph)
        program, tracker = self._program, mode.tracker
        around = tracker.here()
        places = self._places_around(mode, around)
        if not self._is_backward:
            self._tell(mode, around)
        values = [*args, *[None] * program.results, *program.constants]
        args.clear()
        before, tracker.pinned = tracker.pinned, around
        line, mode.sources.line = mode.sources.line, ""
        try:
            if is_alone:
                with modes_off():
                    run_at_once(mode, program.steps, places, values)
            else:
                run_through_torch(mode, program.steps, places, values)
        finally:
            tracker.pinned, mode.sources.line = before, line
        return program.outputs(values)

    def _places_around(self, mode: Emulation, around: Place) -> list[Place]:
        """Return the place of every step of a graph that runs in the module `around`."""
        assert self._program is not None
        of_modules = self._places.setdefault(mode, {})
        found = of_modules.get(around.name)
        if found is None:
            found = [self._place(mode, around, step.module) for step in self._program.steps]
            of_modules[around.name] = found
        return found

    def _place(self, mode: Emulation, around: Place, module: ModuleOrigin) -> Place:
        """Return the place of a module: by its path from `around`, else by its identity, else the nearest around it."""
        places, within = mode.places, around.name if around.name in mode.places.by_name else ""
        names = [name for name in (*within.split("."), *module.path.split(".")) if name]
        found = places.by_name.get(".".join(names))
        if found is None or (module.kind is not None and places.kinds[found.name] is not module.kind):
            found = places.by_id.get(module.id, found)
        while found is None and names:
            names.pop()
            found = places.by_name.get(".".join(names))
        if found is None:
            return around
        return found.backward if self._is_backward else found

    def _tell(self, mode: Emulation, around: Place) -> None:
        """Tell the simulation that a graph runs: where it was broken off, and the casts that it does not have."""
        mode.graphs += 1
        for note in self._origin.notes:
            mode.say(note)
        ignored = mode.ignored_casts
        if ignored is None:
            return
        for module, name in self._origin.casts:
            place = self._place(mode, around, module)
            if not place.passes and place.arithmetic.precision.casts == "ignore":
                site = str(Site(place.name, name, place.direction))
                ignored[site] = ignored.get(site, 0) + 1


def running_simulations() -> list[Emulation]:
    """Return the simulations that this thread is in and that have not been taken over by another, if any."""
    return [mode for mode in mode_stack() if isinstance(mode, Emulation) and not mode.is_suspended]


def run_at_once(mode: Emulation, steps: list[Step], places: list[Place], values: list[Any]) -> None:
    """Run the steps by the mode's own code, with no mode on torch's stack."""
    tracker, sources = mode.tracker, mode.sources
    for (function, plan, read, read_named, at, dead, _, line, also), place in zip(steps, places, strict=True):
        args = read(values)
        named = read_named(values) if read_named is not None else {}
        if plan is None or (plan.kind == "pass" and not plan.written):
            result = function(*args, **named)
        elif plan.name == "copy" and args[0] is args[1]:
            result = _written(mode, args[0])
        else:
            tracker.pinned, sources.line = place, line
            if plan.name == "copy" and plan.written:
                _say_written(mode, args[0])
            result = mode.run_at(function, plan, place, args, named)
            if also:
                result = (*result, *(args[i] for i in also))
        values[at] = result
        for i in dead:
            values[i] = None


def run_through_torch(mode: Emulation, steps: list[Step], places: list[Place], values: list[Any]) -> None:
    """Run the steps as eager code is run, so that other modes see them too."""
    for step, place in zip(steps, places, strict=True):
        args = step.read(values)
        named = step.read_named(values) if step.read_named is not None else {}
        mode.tracker.pinned, mode.sources.line = place, step.line
        if step.plan is not None and step.plan.name == "copy" and step.plan.written and args[0] is not args[1]:
            _say_written(mode, args[0])
        if step.plan is not None and step.plan.name == "copy" and args[0] is args[1]:
            result = _written(mode, args[0])
        elif step.plan is not None and not isinstance(step.function, OVERLOAD):
            with modes_off():  # torch runs it under no mode but its own
                result = mode.run_at(step.function, step.plan, place, args, named)
        else:
            result = step.function(*args, **named)
        if step.also:
            result = (*result, *(args[i] for i in step.also))
        values[step.at] = result
        for i in step.dead:
            values[i] = None


def _written(mode: Emulation, statistics: Any) -> Any:
    """Return running statistics that a norm has written where they are.

    Where the network sees a 16-bit copy, the norm wrote to what was copied. torch takes the graph to have written to
    the copy, and will count that as a write.
    """
    if mode.stored.copies is not None:
        mode.stored.copies.renew(statistics)
    return statistics


def _say_written(mode: Emulation, target: Any) -> None:
    """Say that a graph writes to a parameter or buffer: eager code may update it in place, at one site."""
    copies = mode.stored.copies
    made = copies.find(target) if copies is not None else None
    held = made.held if made is not None else mode.updated.find(target)
    if held is not None and target.is_floating_point():
        mode.say(f"{held.name.lstrip('.')} is written by a compiled graph, by operations of its own")
