"""What a simulation puts in place around a model beside the hooks: rounded parameters, casts, graphs, autocast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from normstab.numerics.dispatch import LATER
from normstab.numerics.precision import Precision
from normstab.numerics.rules import Rules
from normstab.simulation.around.autocast import begin_autocast
from normstab.simulation.around.compilation import inside_compiled, keep_uncompiled, named_modules
from normstab.simulation.around.dtype_copies import Copies
from normstab.simulation.around.hooks import hook_crossing, put_in_place
from normstab.simulation.around.mode import Emulation
from normstab.simulation.around.parameters import Held, Parameters
from normstab.simulation.around.places import ModuleTracker, Observers, Place, Places
from normstab.simulation.around.session import Session, held_tensors, rounds_itself
from normstab.simulation.around.simulated_machine import Arithmetics, Machine
from normstab.simulation.aten.parts.expand_fused import WithoutFastPaths
from normstab.simulation.captured.captured_step import CapturedStep
from normstab.simulation.compiled.compiled_modules import CompiledModules, obstacle
from normstab.simulation.gradient_sums import GradientSums
from normstab.simulation.ignored_casts import counted
from normstab.simulation.ranks.parts import is_split
from normstab.simulation.ranks.sharded import gathered, sharded_modules, shards_of
from normstab.simulation.run import Run
from normstab.torch_private import mode_stack, modes_off

__all__ = ["Simulation"]


class Simulation(Session):
    """A session whose mode rounds: rules, rounded parameters, and an optimizer that may be rounded too."""

    def __init__(
        self,
        model: nn.Module,
        run: Run,
        rules: Rules[Precision],
        arithmetics: Arithmetics,
        optimizer: Optimizer | None,
        *,
        master_weights: bool,
    ) -> None:
        rules.check([name for name, _ in named_modules(model)])
        self.optimizer = _unwrapped(optimizer)
        self.master_weights = master_weights
        self.is_native = all(precision.is_native for precision in rules.values())
        self.machine = machine = Machine(model, rules, arithmetics)
        places = machine.places({module for module in model.modules() if rounds_itself(module)})
        of_optimizer = machine.optimizer(passes=optimizer is None, master_weights=master_weights)
        tracker = ModuleTracker(machine.outside(), of_optimizer)
        for note in machine.notes:
            run.note(note)
        run.outside = tracker.outside
        self.sharded = sharded_modules(model)
        shards = shards_of(places)
        with gathered(self.sharded):
            held = list(held_tensors(places))
            copied = machine.copied(places) if machine.casts_parameters else {}
            self.copies = Copies(model, held, copied)
        run.capturing = lambda step, warm_up: CapturedStep(self, step, warm_up=warm_up)
        run.parameters = Parameters(held) if machine.casts_parameters else Parameters(())
        self.mode: Emulation = Emulation(tracker, run.parameters, run.unrecognised, master_weights=master_weights)
        super().__init__(model, run, self.mode, places, held)
        self.has_seen_optimizer = optimizer is not None
        self._set_up_mode(arithmetics, shards)

    def _set_up_mode(self, arithmetics: Arithmetics, shards: list[Held]) -> None:
        """Tell the mode of its places, its parameters and what the run is told."""
        run, mode = self.run, self.mode
        run.unrecognised.is_repeating = self.tracker.replay.follow
        held = run.parameters if self.machine.casts_parameters else Parameters(self.held)
        held.come_and_go = bool(self.sharded)
        mode.updated = run.updated = Parameters(shards) if shards else held
        mode.sources = mode.stored.sources = run.sources
        mode.rules = rules = arithmetics.rules
        mode.stored.has_rules = rules is not None
        are_stored = not self.master_weights
        if are_stored or (rules is not None and rules.concern_gradient_sums):
            mode.gradient_sums = GradientSums(dict(self._summed()), rules, are_stored=are_stored)
        mode.places = Places.of(self.places)
        mode.say = run.note
        mode.stored.copies = self.copies if self.copies else None

    def _summed(self) -> Iterator[tuple[Tensor, Place]]:
        """Yield every parameter that is rounded, and every part of one, with the place where its gradients add up."""
        yield from ((held.tensor, held.place.backward) for held in self.held if held.is_parameter)
        for module, place in self.places.items():
            for parameter in module.parameters(recurse=False):
                if place.rounds_itself:
                    yield parameter, self.tracker.outside.backward
                elif is_split(parameter) and not place.passes:
                    yield parameter, place.backward

    def simulate(self, stack: ExitStack, *, expand: bool, several: bool, observers: Observers | None) -> None:
        """Put everything in place; closing `stack` takes it away. `several` processes may train the network."""
        put_in_place(self, stack)
        outer = [mode for mode in mode_stack() if isinstance(mode, Emulation)]
        for mode in outer:
            mode.suspend()
            stack.callback(mode.resume)
        for module, place in self.places.items():
            if rounds_itself(module):
                self.mode.replaced[module] = module.arithmetic  # type: ignore[assignment]
                stack.callback(self._give_back, module, outer)
                module.arithmetic = place.arithmetic  # type: ignore[assignment]
        if not self.master_weights:
            self._store_rounded("forward")
        for module in self.sharded:  # after torch's own hook, which gathers the module's parameters
            stack.callback(module.register_forward_pre_hook(self._note_gathered).remove)
        self._hook_crossings(stack)
        self._hook_compiled(stack, expand=expand, several=several)
        self.run.scaler.on_skip = self.end_skipped_step
        self.mode.expands = self.mode.stored.expands = expand
        self.mode.observers = self.mode.stored.observers = observers
        if expand:
            stack.enter_context(WithoutFastPaths())
        if self.machine.autocast is not None:
            begin_autocast(self.machine.autocast, device_of(self.model), self.tracker, stack)
        if not self.is_native and any(place.arithmetic.precision.casts == "ignore" for place in self.places.values()):
            self.mode.ignored_casts = self.run.ignored_upcasts
            stack.enter_context(counted(self.tracker, self.run.ignored_upcasts))
        self.ensure_entered()

    def end(self) -> None:
        """Give parameters back, and leave the mode."""
        self.copies.take_back()
        self.run.note_ignored()
        super().end()
        self.run.scaler.on_skip = None

    def _give_back(self, module: nn.Module, outer: Sequence[Emulation]) -> None:
        """Give a layer the arithmetic it had, or, where that was of a simulation closed meanwhile, the one before."""
        if getattr(module, "arithmetic", None) is not self.places[module].arithmetic:
            return  # a simulation opened later is still open: it gives back what was before both
        before = self.mode.replaced[module]
        for mode in reversed(outer):
            if mode.is_over and module in mode.replaced:
                before = mode.replaced[module]
        module.arithmetic = before  # type: ignore[assignment]

    def forget_copies(self) -> None:
        """Cast every parameter anew where it is used next."""
        self.copies.forget()
        for held in self.run.parameters:
            held.invalidate()

    def why_not_captured(self) -> str:
        """Return why no step can be captured here, or nothing."""
        device, ledger = device_of(self.model), self.run.ledger
        reasons = {
            f"a device of type {device} has no graphs": device not in LATER,
            "histograms of a ledger are added up on the host": ledger.counts_histogram,
            "an observer or watcher is shown every operation": self.mode.observers is not None,
            "several processes train together": self.run.rank is not None,
            "the simulation is over, or another one has taken over": self.is_idle,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    @property
    def has_work(self) -> bool:
        """Whether any rule rounds."""
        return not self.is_native

    @property
    def casts_inputs(self) -> bool:
        """Whether the root's floating inputs are cast: under autocast the operations cast."""
        return self.machine.casts_parameters

    def _look_at_parameters(self) -> None:
        """Look up moved parameters."""
        self.mode.updated.refresh()
        keep_uncompiled(Emulation)

    def begin_module(self) -> None:
        """Show parameters and buffers in the network's dtype."""
        if self.has_entered:
            self.copies.put()

    def _note_gathered(self, module: nn.Module, args: Any) -> None:
        """Show the parameters that were gathered for a module in the network's dtype."""
        if self.has_entered and not self.is_idle:
            self.run.parameters.refresh()
            self.copies.put_more()

    def end_module(self) -> None:
        """Show parameters and buffers as they are."""
        self.copies.take_back()

    def _crossings(self) -> Iterator[tuple[nn.Module, Place, Place]]:
        """Yield the modules that see another dtype than the module around them, with both places."""
        by_name = self.mode.places.by_name
        for module, place in self.places.items():
            around = by_name.get(place.name.rpartition(".")[0], self.tracker.outside)
            if module is not self.model and place.shown != around.shown:
                yield module, place, around

    def _hook_crossings(self, stack: ExitStack) -> None:
        """Hook the modules that see another dtype than the module around them."""
        for module, place, around in self._crossings():
            hook_crossing(module, place, around, stack, casts_back=self.machine.casts_parameters)

    def _hook_compiled(self, stack: ExitStack, *, expand: bool, several: bool) -> None:
        """Let compiled modules run their graphs, or say why they do not."""
        inside = inside_compiled(self.model)
        crossing = [place for module, place, _ in self._crossings() if module in inside]
        autocast = self.machine.autocast is not None
        several |= any(isinstance(m, DistributedDataParallel) for m in self.model.modules()) or bool(self.sharded)
        why = obstacle(crossing, autocast=autocast, expand=expand, several=several)
        CompiledModules(self.mode, self.run.note, why).hook(self.model, self.places, stack)

    def begin_optimizer_step(self, optimizer: Optimizer) -> None:
        """Place what follows with the optimizer; an optimizer that was not given is not even looked at."""
        self.tracker.optimizer_depth += 1
        if optimizer is not self.optimizer:
            self.run.note(
                f"the steps of {type(optimizer).__name__} passed unrounded; simulate(..., optimizer=...) rounds them"
            )
            self.leave()

    def end_optimizer_step(self, optimizer: Optimizer) -> None:
        """Count the step, and store rounded parameters where there are no master weights."""
        self.tracker.optimizer_depth = max(0, self.tracker.optimizer_depth - 1)
        self.has_seen_optimizer = True
        self.ensure_entered()
        if optimizer is not self.optimizer and not self.master_weights:
            self._store_rounded("optimizer")
        if optimizer is self.optimizer or self.optimizer is None:
            self.advance()

    def end_skipped_step(self) -> None:
        """Count a step that a loss scaler skipped: no two steps of training draw the same random bits."""
        self.has_seen_optimizer = True
        self.advance()

    def _store_rounded(self, direction: str) -> None:
        """Round the parameters themselves."""
        with modes_off():
            for held in self.mode.updated:
                if held.is_parameter:
                    held.round_in_place(direction)


def device_of(model: nn.Module) -> str:
    """Return the type of the device of a model's first parameter."""
    return next((parameter.device.type for parameter in model.parameters()), "cpu")


def _unwrapped(optimizer: Any) -> Any:
    """Return torch's optimizer inside wrappers that hold it as `optimizer` (accelerate, Lightning)."""
    while optimizer is not None and not isinstance(optimizer, Optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
