"""What a simulation puts in place around a model, and takes away again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.precision import Precision
from normstab.numerics.rules import Rules
from normstab.simulation.around.autocast import begin_autocast
from normstab.simulation.around.compilation import inside_compiled, keep_uncompiled, named_modules
from normstab.simulation.around.dtype_copies import Copies
from normstab.simulation.around.hooks import hook_crossing, hook_modules, hook_optimizers
from normstab.simulation.around.mode import Emulation, Observer
from normstab.simulation.around.mode_stack import close_mode, drop_ended_modes
from normstab.simulation.around.parameters import Held, Parameters
from normstab.simulation.around.places import ModuleTracker, Place, Places
from normstab.simulation.around.simulated_machine import Arithmetics, Machine
from normstab.simulation.aten.parts.expand_fused import WithoutFastPaths
from normstab.simulation.compiled.compiled_modules import CompiledModules, obstacle
from normstab.simulation.ignored_casts import counted
from normstab.simulation.ranks.sharded import gathered, sharded_modules, shards_of
from normstab.simulation.run import Run
from normstab.torch_private import mode_stack, modes_off

__all__ = ["Session"]


class Session:
    """A simulation of one model: places, parameters, hooks and the mode."""

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
        self.model = model
        self.run = run
        self.optimizer = _unwrapped(optimizer)
        self.master_weights = master_weights
        self.is_over = False
        self.is_native = all(precision.is_native for precision in rules.values())
        machine = Machine(model, rules, arithmetics)
        self.machine = machine
        self.places = machine.places({module for module in model.modules() if rounds_itself(module)})
        of_optimizer = machine.optimizer(passes=optimizer is None, master_weights=master_weights)
        self.tracker = ModuleTracker(machine.outside(), of_optimizer)
        for note in machine.notes:
            run.note(note)
        run.outside = self.tracker.outside
        self.sharded = sharded_modules(model)
        shards = shards_of(self.places)
        with gathered(self.sharded):
            self.held = list(held_tensors(self.places))
            copied = machine.copied(self.places) if machine.casts_parameters else {}
            self.copies = Copies(model, self.held, copied)
        self.mode = self._made_mode(arithmetics, shards)
        self.is_in_order = True
        self._has_entered = False
        self._has_seen_optimizer = optimizer is not None
        self._has_seen_forward = False

    def _made_mode(self, arithmetics: Arithmetics, shards: list[Held]) -> Emulation:
        """Return the mode of this simulation, which knows its places, its parameters and what the run is told."""
        run, held = self.run, Parameters(self.held)
        run.parameters = held if self.machine.casts_parameters else Parameters(())
        run.unrecognised.is_repeating = self.tracker.replay.follow
        mode = Emulation(self.tracker, run.parameters, run.unrecognised, master_weights=self.master_weights)
        held.come_and_go = bool(self.sharded)
        mode.updated = Parameters(shards) if shards else held
        mode.sources = mode.stored.sources = run.sources
        mode.rules = arithmetics.rules
        mode.places = Places.of(self.places)
        mode.say = run.note
        mode.stored.copies = self.copies if self.copies else None
        return mode

    def begin(self, stack: ExitStack, *, expand: bool, several: bool, observer: Observer | None) -> None:
        """Put everything in place; closing `stack` takes it away. `several` processes may train the network."""
        drop_ended_modes()
        stack.callback(self._end)
        outer = [mode for mode in mode_stack() if isinstance(mode, Emulation)]
        for mode in outer:
            mode.suspend()
            stack.callback(mode.resume)
        for module, place in self.places.items():
            if rounds_itself(module):
                self.mode.replaced[module] = module.arithmetic  # type: ignore[assignment]
                stack.callback(self._give_back, module, outer)
                module.arithmetic = place.arithmetic  # type: ignore[assignment]
        for held in self.held:
            if held.is_parameter:
                self.tracker.own(held.tensor, held.place)
        if not self.master_weights:
            self._store_rounded("forward")
        hook_modules(self.model, self.places, self, stack)
        for module in self.sharded:  # after torch's own hook, which gathers the module's parameters
            stack.callback(module.register_forward_pre_hook(self._note_gathered).remove)
        self._hook_crossings(stack)
        self._hook_compiled(stack, expand=expand, several=several)
        hook_optimizers(self, stack)
        self.run.scaler.on_skip = self.end_skipped_step
        self.mode.expands = self.mode.stored.expands = expand
        self.mode.observer = self.mode.stored.observer = observer
        if expand:
            stack.enter_context(WithoutFastPaths())
        if self.machine.autocast is not None:
            begin_autocast(self.machine.autocast, device_of(self.model), self.tracker, stack)
        if not self.is_native and any(place.arithmetic.precision.casts == "ignore" for place in self.places.values()):
            self.mode.ignored_casts = self.run.ignored_upcasts
            stack.enter_context(counted(self.tracker, self.run.ignored_upcasts))
        self.ensure_entered()

    def _end(self) -> None:
        """Leave the mode; hooks on copies of the model do nothing from now on."""
        self.copies.take_back()
        self.run.note_ignored()
        self.is_in_order = not self._has_entered or close_mode(self.mode)
        self.mode.end()
        self.run.scaler.on_skip = None
        self.is_over = True

    def _give_back(self, module: nn.Module, outer: Sequence[Emulation]) -> None:
        """Give a layer the arithmetic it had, or, where that was of a simulation closed meanwhile, the one before."""
        if getattr(module, "arithmetic", None) is not self.places[module].arithmetic:
            return  # a simulation opened later is still open: it gives back what was before both
        before = self.mode.replaced[module]
        for mode in reversed(outer):
            if mode.is_over and module in mode.replaced:
                before = mode.replaced[module]
        module.arithmetic = before  # type: ignore[assignment]

    @property
    def is_idle(self) -> bool:
        """Whether the session has ended, or another simulation has taken over."""
        return self.is_over or self.mode.is_suspended

    @property
    def casts_inputs(self) -> bool:
        """Whether the root's floating inputs are cast: under autocast the operations cast."""
        return self.machine.casts_parameters

    def ensure_entered(self) -> None:
        """Enter the mode, unless it is entered or has nothing to do."""
        if not self._has_entered and not self.is_native:
            keep_uncompiled(Emulation)
            self.mode.__enter__()
            self._has_entered = True

    def leave(self) -> bool:
        """Leave the mode if it is the innermost one, and say whether it was left."""
        modes = mode_stack()
        if self._has_entered and modes and modes[-1] is self.mode:
            self.mode.__exit__(None, None, None)
            self._has_entered = False
            return True
        return False

    def begin_root_forward(self) -> None:
        """Count a step where there is no optimizer to count by; look up moved parameters."""
        is_counted_elsewhere = self._has_seen_optimizer or self.run.arithmetic.clock.is_set
        if self._has_seen_forward and not is_counted_elsewhere:
            self.run.arithmetic.advance()
        self._has_seen_forward = True
        self.tracker.restart()
        self.mode.updated.refresh()
        keep_uncompiled(Emulation)

    def begin_module(self) -> None:
        """Show parameters and buffers in the network's dtype."""
        if self._has_entered:
            self.copies.put()

    def _note_gathered(self, module: nn.Module, args: Any) -> None:
        """Show the parameters that were gathered for a module in the network's dtype."""
        if self._has_entered and not self.is_idle:
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
        self._has_seen_optimizer = True
        self.ensure_entered()
        if optimizer is not self.optimizer and not self.master_weights:
            self._store_rounded("optimizer")
        if optimizer is self.optimizer or self.optimizer is None:
            self.run.arithmetic.advance()

    def end_skipped_step(self) -> None:
        """Count a step that a loss scaler skipped: no two steps of training draw the same random bits."""
        self._has_seen_optimizer = True
        self.run.arithmetic.advance()

    def _store_rounded(self, direction: str) -> None:
        """Round the parameters themselves."""
        with modes_off():
            for held in self.mode.updated:
                if held.is_parameter:
                    held.round_in_place(direction)


def device_of(model: nn.Module) -> str:
    """Return the type of the device of a model's first parameter."""
    return next((parameter.device.type for parameter in model.parameters()), "cpu")


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


def _unwrapped(optimizer: Any) -> Any:
    """Return torch's optimizer inside wrappers that hold it as `optimizer` (accelerate, Lightning)."""
    while optimizer is not None and not isinstance(optimizer, Optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
