"""The torch mode that gives every operation to the arithmetic of the place where it runs.

It sees operations below autograd, forward, backward and update alike. What each one computes is in the
catalogue; here they are told apart, run in functional form, and written where torch would write them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.readable.reference import holds
from normstab.simulation.around.autocast import refuse_autocast
from normstab.simulation.around.dispatch_mode import NOTHING, Arguments, DispatchMode, Named
from normstab.simulation.around.operands import Operands, read_operands
from normstab.simulation.around.operation_rules import OperationRules, cast_back, loaded
from normstab.simulation.around.parameter_updates import update
from normstab.simulation.around.parameters import Held, Parameters
from normstab.simulation.around.places import ModuleTracker, Observers, Place, Places
from normstab.simulation.around.stored_operations import StoredOperations, expands
from normstab.simulation.aten.foreach import calls_of
from normstab.simulation.aten.operation import Operation
from normstab.simulation.aten.overloads import Plan
from normstab.simulation.aten.parts.complex_parts import COMPLEX, as_real
from normstab.simulation.aten.parts.expand_fused import steps_of
from normstab.simulation.aten.round_and_attribute import FLOATING
from normstab.simulation.aten.scaled_operands import is_marked_weight, mark_roles
from normstab.simulation.aten.selections import COMPARED
from normstab.simulation.aten.stored import in_float32, narrowed, to_dtype
from normstab.simulation.gradient_sums import GradientSums
from normstab.simulation.unsimulated import Unsimulated, has_numbers

__all__ = ["Emulation"]


class Emulation(DispatchMode):
    """Computes every operation in the arithmetic of its place; lists by name what it does not understand.

    `parameters` are those read as rounded copies, `updated` those whose updates are looked at: autocast reads none so.
    """

    def __init__(
        self, tracker: ModuleTracker, parameters: Parameters, unrecognised: Unsimulated, *, master_weights: bool
    ) -> None:
        super().__init__(tracker)
        self.parameters = self.updated = parameters
        self.master_weights = master_weights
        self.unrecognised = unrecognised
        self.stored = StoredOperations(self, parameters, unrecognised)
        self.replaced: dict[nn.Module, Arithmetic] = {}
        self._suspensions = 0
        self.expands = False
        self.observers: Observers | None = None
        self.rules: OperationRules | None = None
        self.gradient_sums: GradientSums | None = None
        self.compiles = False
        # What compiled graphs ask for: the places by name, whom to tell, where ignored casts are counted, how many ran.
        self.places = Places({}, {}, {})
        self.say: Callable[[str], None] = lambda text: None
        self.ignored_casts: dict[str, int] | None = None
        self.graphs = 0

    def suspend(self) -> None:
        """Let everything pass until as many calls of `resume`."""
        self._suspensions += 1
        self.is_suspended = True

    def resume(self) -> None:
        """Undo one `suspend`; a mode that is over stays as it is."""
        self._suspensions -= 1
        self.is_suspended = self.is_over or self._suspensions > 0

    def ignore_compile_internals(self) -> bool:  # type: ignore[override]
        """Whether torch.compile may compile frames, whose graphs then run under this mode (asked by torch)."""
        return self.compiles

    def run_at(self, func: Any, plan: Plan, place: Place, args: Arguments, kwargs: Named | None) -> Any:
        """Run one operation, whose plan is known, at a place."""
        if plan.name == "add" and self.gradient_sums is not None:
            of_gradient = self.gradient_sums.place_of(plan.name, args)
            if of_gradient is not None:
                return self._compute(func, plan, of_gradient, args, kwargs or NOTHING)
        if self.rules is not None and plan.kind in ("exact", "rounded"):
            place = self.rules.place(place, plan.name)
        if plan.kind == "make" and place.shown is not None and not place.passes:
            result = self.stored.make(func, plan, place, args, kwargs or NOTHING)
            self._invalidate(plan, args, kwargs or NOTHING)
            return result
        if place.passes or plan.kind in ("pass", "make"):
            result = func(*args, **kwargs) if kwargs else func(*args)
            self._invalidate(plan, args, kwargs or NOTHING)
            return result
        if plan.kind == "parts":
            with self:
                return plan.function(*args, **(kwargs or NOTHING))
        if plan.kind == "foreach":
            if place.shown is not None and not _has_dtype(args, place.shown):
                return func(*args, **kwargs) if kwargs else func(*args)
            return self._each(func, plan, args, kwargs or NOTHING)
        return self._run(func, plan, place, args, kwargs or NOTHING)

    def _run(self, func: Any, plan: Plan, place: Place, args: Arguments, kwargs: Named) -> Any:
        """Run one operation at its place."""
        if place.shown is not None:
            if plan.written and (held := self._parameter_written(plan, args, kwargs)) is not None:
                return update(func, plan, place, held, args, kwargs, master_weights=self.master_weights)
            return self.stored.run(func, plan, place, args, kwargs)
        if plan.kind == "exact" and self._sees_masters(plan, place, args):
            result = plan.function(*args, **kwargs)
            self._invalidate(plan, args, kwargs)
            return result
        if plan.written and (held := self._parameter_written(plan, args, kwargs)) is not None:
            return update(func, plan, place, held, args, kwargs, master_weights=self.master_weights)
        return self._compute(func, plan, place, args, kwargs)

    def _compute(self, func: Any, plan: Plan, place: Place, args: Arguments, kwargs: Named) -> Any:
        """Compute an operation whose numbers live in float32 tensors, round it, and write where it writes."""
        raw = plan.raw
        if plan.cast_inside and place.casts_inside_norms:
            raw = plan.cast_inside
        seen = read_operands(args, kwargs, self._reads(place), raw)
        if not seen.is_floating:
            return func(*seen.args, **seen.kwargs)
        if isinstance(seen.other, torch.dtype) and seen.other.is_complex and plan.name in COMPLEX:
            return self._in_parts(plan, place, seen, args, kwargs)
        if plan.kind == "exact":
            return plan.function(*seen.args, **seen.kwargs)
        if plan.handler is None or seen.other is not None:
            return self._unknown(func, plan, seen)
        if seen.half is not None:
            return self._in_half(func, plan, place, seen, args, kwargs)
        self.sources.note(place, plan.name)
        roles = mark_roles(plan.name, args, place.direction, self._is_weight) if place.takes_operands else None
        if expands(place, plan.name, self.expands) and (steps := steps_of(func, plan.name)) is not None:
            with self:
                return steps(*args, **kwargs)
        out = args[0] if plan.is_in_place and place.around is None and place.arithmetic.format.fits_float32 else None
        read, named = self._read_only(plan, seen)
        op = Operation(plan.name, plan.function, loaded(read, place, plan.name), named, place.arithmetic, out, roles)
        result = cast_back(plan.handler(op), place)
        if not place.arithmetic.format.fits_float32 and op.dtype == torch.float32:
            result = narrowed(result)
        if self.observers is not None:
            place.show(self.observers, op, result)
        return self._write(plan, result, args, kwargs) if plan.written else result

    def _sees_masters(self, plan: Plan, place: Place, args: Arguments) -> bool:
        """Whether an exact operation runs outside every module, and not for a gradient that reads the copies."""
        if self.tracker.is_inside_module or place.direction == "backward":
            return False
        if plan.name in COMPLEX and args[0].is_complex():
            return False
        return plan.name not in COMPARED or not (torch.is_grad_enabled() and args[0].requires_grad)

    def _is_weight(self, x: Tensor) -> bool:
        """Whether an operand is a parameter, or was made of one."""
        held = self.parameters.find(x)
        return held.is_parameter if held is not None else is_marked_weight(x)

    def _reads(self, place: Place) -> Parameters:
        """Return which tensors are replaced by rounded copies here: an optimizer sees parameters as they are."""
        return NO_PARAMETERS if place.direction == "optimizer" else self.parameters

    def _read_only(self, plan: Plan, seen: Operands) -> tuple[Arguments, Named]:
        """Return the arguments of the functional form: without out=."""
        if not plan.replaces:
            return seen.args, seen.kwargs
        return seen.args, {name: x for name, x in seen.kwargs.items() if name not in plan.written}

    def _write(self, plan: Plan, result: Any, args: Arguments, kwargs: Named) -> Any:
        """Copy results to where the operation writes them, and return the targets as torch does."""
        results = result if isinstance(result, tuple) else (result,)
        targets = [_target(where, args, kwargs) for where in plan.written]
        for target, value in zip(targets, results, strict=False):
            if plan.replaces and target.shape != value.shape:
                target.resize_(value.shape)
            if target is not value:
                target.copy_(value)
        return targets[0] if len(targets) == 1 else tuple(targets)

    def _unknown(self, func: Any, plan: Plan, seen: Operands) -> Any:
        """Compute as torch does, and say so."""
        result = func(*seen.args, **seen.kwargs)
        if plan.written or has_numbers(result):
            name = plan.name if seen.other is None else f"{plan.name}({str(seen.other).removeprefix('torch.')})"
            self.unrecognised.note(name, result)
        return result

    def _in_parts(self, plan: Plan, place: Place, seen: Operands, args: Arguments, kwargs: Named) -> Any:
        """Run an operation on complex numbers, both parts of whose results are rounded."""
        self.sources.note(place, plan.name)
        read, named = self._read_only(plan, seen)
        op = Operation(plan.name, plan.function, read, named, place.arithmetic)
        result = COMPLEX[plan.name](op)
        if self.observers is not None:
            place.show(self.observers, op, as_real(result) if isinstance(result, Tensor) else result)
        return self._write(plan, result, args, kwargs) if plan.written else result

    def _in_half(self, func: Any, plan: Plan, place: Place, seen: Operands, args: Arguments, kwargs: Named) -> Any:
        """Run an operation on tensors of 16 bits in float32, where their dtype can hold the format."""
        assert seen.half is not None and plan.handler is not None
        if place.direction != "optimizer":  # where autocast is off
            refuse_autocast(plan.name, seen.half, place.arithmetic.precision)
        if not holds(seen.half, place.arithmetic.format):
            name = str(seen.half).removeprefix("torch.")
            result = func(*seen.args, **seen.kwargs)
            self.unrecognised.note(f"{plan.name}({name})", result)
            return result
        read_args, read_kwargs = self._read_only(plan, seen)
        wide_args, wide_kwargs = in_float32(read_args), {name: in_float32(x) for name, x in read_kwargs.items()}
        is_mixed = any(isinstance(x, Tensor) and x.dtype in FLOATING and x.dim() for x in seen.args)
        result = plan.handler(Operation(plan.name, plan.function, wide_args, wide_kwargs, place.arithmetic))
        result = result if is_mixed else to_dtype(result, seen.half)
        return self._write(plan, result, args, kwargs) if plan.written else result

    def _each(self, func: Any, plan: Plan, args: Arguments, kwargs: Named) -> Any:
        """Run a foreach form tensor by tensor."""
        calls = calls_of(plan, args, kwargs)
        if calls is None:
            result = func(*args, **kwargs)
            self.unrecognised.note(f"_foreach_{plan.name}", args[0] if plan.written else result)
            return result
        operation, given = calls
        with self:
            results = [operation(*one, **named) for one, named in given]
        return None if plan.written else results

    def _parameter_written(self, plan: Plan, args: Arguments, kwargs: Named) -> Held | None:
        """Return the parameter that the operation writes to, if it does."""
        for where in plan.written:
            target = _target(where, args, kwargs)
            if isinstance(target, Tensor) and (held := self.updated.find(target)) is not None:
                return held
        return None

    def _invalidate(self, plan: Plan, args: Arguments, kwargs: Named) -> None:
        """Notice that a parameter was written to by an operation that passes."""
        if plan.written and (held := self._parameter_written(plan, args, kwargs)) is not None:
            held.invalidate()


NO_PARAMETERS = Parameters(())


def _target(where: int | str, args: Arguments, kwargs: Named) -> Any:
    """Return the argument at a position or of a name."""
    if isinstance(where, int):
        return args[where] if where < len(args) else None
    return kwargs.get(where)


def _has_dtype(args: Arguments, dtype: torch.dtype) -> bool:
    """Whether a list among the arguments holds tensors of `dtype`."""
    lists = [x for x in args if isinstance(x, list | tuple)]
    return any(isinstance(x, Tensor) and x.dtype == dtype for found in lists for x in found)
