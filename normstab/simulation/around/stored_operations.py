"""What the mode does at a place whose network sees a 16-bit dtype; the arithmetic of each case is in `stored`.

Tensors of that dtype hold numbers of the format. Wide ones are the network's own wish and torch's own business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.execute import round_tensor
from normstab.numerics.precision import NEAREST
from normstab.numerics.rules import OUTSIDE
from normstab.simulation.around.autocast import refuse_autocast
from normstab.simulation.around.dtype_copies import Copies, Made
from normstab.simulation.around.operation_rules import cast_back, loaded
from normstab.simulation.around.parameters import Parameters
from normstab.simulation.around.places import Observers, Place
from normstab.simulation.aten.entering_numbers import FILLS, constant_positions, is_own_format, with_constants
from normstab.simulation.aten.operation import Operation
from normstab.simulation.aten.overloads import Plan
from normstab.simulation.aten.parts.complex_parts import COMPLEX, complex_operand
from normstab.simulation.aten.parts.expand_fused import ATTENTION_STEPS, steps_of
from normstab.simulation.aten.scaled_operands import is_marked_weight, mark_roles, pass_on_roles
from normstab.simulation.aten.stored import DIRECT, GRADIENTS, SEQUENCES, WIDE, stored, survey, widened
from normstab.simulation.code_lines import Sources
from normstab.simulation.unsimulated import Unsimulated, has_numbers
from normstab.torch_private import sparse_parts

__all__ = ["StoredOperations", "expands"]

Arguments = tuple[Any, ...]
Named = Mapping[str, Any]


class StoredOperations:
    """Runs operations on stored tensors, and knows the copies of parameters among them."""

    def __init__(self, mode: AbstractContextManager[Any], parameters: Parameters, unrecognised: Unsimulated) -> None:
        self.mode = mode
        self.parameters = parameters
        self.copies: Copies | None = None
        self.unrecognised = unrecognised
        self.sources = Sources()
        self.expands = False
        self.has_rules = False  # about operations, whose operands are then rounded on the way
        self.observers: Observers | None = None

    def run(self, func: Any, plan: Plan, place: Place, args: Arguments, kwargs: Named) -> Any:
        """Run one operation at its place."""
        dtype = place.shown
        assert dtype is not None
        seen = survey(args, kwargs, dtype)
        if seen.has_wide and place.name != OUTSIDE and self.parameters.any_in(args):
            args = tuple(self._copy_of(x) for x in args)
            seen = survey(args, kwargs, dtype)
        found = complex_operand((*args, *kwargs.values())) if seen.has_other else None
        if found is None and seen.has_complex:
            found = torch.complex32 if dtype == torch.float16 and not seen.is_wide else torch.complex64
        if found is not None and (plan.kind != "exact" or plan.name in COMPLEX):
            return self._complex(func, plan, place, args, kwargs, found)
        if plan.kind == "exact":
            return self._exact(func, plan, place, args, kwargs)
        given = kwargs.get("dtype")
        if not seen.has_stored and given != dtype and not seen.has_other:
            return func(*args, **kwargs)
        if plan.handler is None or seen.has_other:
            return self._unknown(func, plan, args, kwargs, dtype)
        is_narrow = (plan.written and not plan.replaces) or given == dtype
        is_narrow = is_narrow or (plan.name in GRADIENTS and args[0].dtype == dtype)
        if (seen.is_wide and not is_narrow) or given in WIDE:
            return self._wide(func, plan, place, args, kwargs)
        return self._rounded(func, plan, place, args, kwargs)

    def make(self, func: Any, plan: Plan, place: Place, args: Arguments, kwargs: Named) -> Any:
        """Run an operation that makes a tensor of given or random numbers."""
        dtype = place.shown
        assert dtype is not None
        if plan.name in FILLS:
            of = args[0].dtype if args and isinstance(args[0], Tensor) else None
            if (kwargs.get("dtype") or of) == dtype:
                name = "where" if plan.name == "scalar_tensor" else plan.name  # torch.where makes its number so
                args, kwargs = with_constants(place.arithmetic, name, constant_positions(func), args, kwargs, dtype)
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.dtype == dtype and not is_own_format(place.arithmetic.format, dtype):
            round_tensor(result, _constant_call(place, plan.name), out=result)
        return result

    def _rounded(self, func: Any, plan: Plan, place: Place, args: Arguments, kwargs: Named) -> Any:
        """Compute in float32, round once, store."""
        dtype, ar = place.shown, place.arithmetic
        assert dtype is not None and plan.handler is not None
        self.sources.note(place, plan.name)
        roles = mark_roles(plan.name, args, place.direction, self._is_weight) if place.takes_operands else None
        if expands(place, plan.name, self.expands) and (steps := steps_of(func, plan.name)) is not None:
            return self._stepwise(steps, plan, place, args, kwargs)
        read_kwargs: Named = kwargs
        if plan.replaces:
            read_kwargs = {name: x for name, x in kwargs.items() if name not in plan.written}
        if plan.name in FILLS:
            args, read_kwargs = with_constants(ar, plan.name, constant_positions(func), args, read_kwargs, dtype)
        masters = plan.cast_inside if place.casts_inside_norms else plan.raw
        read = self._with_masters(args, masters) if plan.cast_inside else args
        if plan.name not in DIRECT:
            read = widened(read, dtype, self._widen)
            if read_kwargs:
                values = widened(tuple(read_kwargs.values()), dtype, self._widen)
                read_kwargs = dict(zip(read_kwargs, values, strict=True))
        read = loaded(read, place, plan.name)
        kept = dtype if plan.cast_inside and args[0].dtype == dtype and not self.has_rules else None
        op = Operation(plan.name, plan.function, read, read_kwargs, ar, roles=roles, stored=kept)
        result = cast_back(plan.handler(op), place)
        if plan.cast_inside:
            self._store_running(plan, args, read)
        if self.observers is not None:
            place.show(self.observers, op, result)
        if plan.written:
            return self._write(plan, result, args, kwargs)
        return stored(plan.name, result, dtype)

    def _complex(self, func: Any, plan: Plan, place: Place, args: Arguments, kwargs: Named, found: torch.dtype) -> Any:
        """Let torch compute on wide complex numbers; of complex32 round both parts of every result once."""
        if found != torch.complex32:
            return func(*args, **kwargs)
        dtype, handler = place.shown, COMPLEX.get(plan.name)
        if handler is None or dtype != torch.float16:
            return self._unknown(func, plan, args, kwargs, torch.complex32)
        self.sources.note(place, plan.name)
        named = {name: x for name, x in kwargs.items() if not plan.replaces or name not in plan.written}
        read = widened(widened(args, dtype, self._widen), torch.complex32, _wide_complex)
        result = handler(Operation(plan.name, plan.function, read, named, place.arithmetic))
        return self._write(plan, result, args, kwargs) if plan.written else stored(plan.name, result, dtype)

    def _stepwise(self, steps: Callable[..., Any], plan: Plan, place: Place, args: Arguments, kwargs: Named) -> Any:
        """Run the smaller steps of an operation on float32 tensors, each rounded, and store the result."""
        dtype = place.shown
        assert dtype is not None
        read = widened(args, dtype, self._widen)
        pass_on_roles(args, read)
        named = dict(zip(kwargs, widened(tuple(kwargs.values()), dtype, self._widen), strict=True))
        place.shown = None
        try:
            with self.mode:
                result = steps(*read, **named)
        finally:
            place.shown = dtype
        return stored(plan.name, result, dtype)

    def _exact(self, func: Any, plan: Plan, place: Place, args: Arguments, kwargs: Named) -> Any:
        """Move or select numbers; what enters is cast."""
        dtype, name = place.shown, plan.name
        assert dtype is not None
        self._note_read(args, dtype)
        if name == "_to_copy" and args[0].layout == torch.sparse_coo:
            return _with_values(args[0], sparse_parts(args[0])[1].to(kwargs.get("dtype")))
        if name == "_to_copy" and kwargs.get("dtype") == dtype and args[0].dtype != dtype:
            return func(self._cast(args[0], place), **kwargs)
        if name == "copy" and plan.written and args[0].dtype == dtype and args[1].dtype != dtype:
            args = (args[0], self._cast(args[1], place), *args[2:])
        elif (name in FILLS and args[0].dtype == dtype) or (name == "where" and len(args) == 3):
            args, kwargs = with_constants(place.arithmetic, name, constant_positions(func), args, kwargs, dtype)
        result = plan.function(*args, **kwargs)
        if plan.written and self.copies is not None and isinstance(args[0], Tensor):
            self.copies.note_written(args[0])
        return result

    def _cast(self, x: Tensor, place: Place) -> Tensor:
        """Return a wide tensor, or whole numbers, as numbers of the format, in a wide tensor: one rounding."""
        if x.dtype == torch.bool or x.dtype.is_complex or x.layout != torch.strided or x.numel() == 0:
            return x
        if x.is_floating_point():
            call = place.arithmetic.call("to")
            return round_tensor(x.to(torch.float32) if x.dtype not in WIDE else x, call)
        # float64 holds whole numbers up to 2^53; float32 all that bytes can be.
        return round_tensor(x.to(torch.float64), _constant_call(place, "to"))

    def _wide(self, func: Any, plan: Plan, place: Place, args: Arguments, kwargs: Named) -> Any:
        """Let torch compute what it promotes to a wide result; where it has no such form, compute as if stored."""
        try:
            result = func(*args, **kwargs)
        except RuntimeError:
            return self._rounded(func, plan, place, args, kwargs)
        first = result[0] if isinstance(result, tuple) and result else result
        if isinstance(first, Tensor) and first.dtype == place.shown and kwargs.get("dtype") not in WIDE:
            return self._rounded(func, plan, place, args, kwargs)
        return result

    def _unknown(self, func: Any, plan: Plan, args: Arguments, kwargs: Named, dtype: torch.dtype) -> Any:
        """Compute as torch does in the dtype itself, or in float32 where it cannot, and say so."""
        for x in args:
            if isinstance(x, Tensor) and x.dtype != dtype:
                refuse_autocast(plan.name, x.dtype, str(dtype).removeprefix("torch."))
        try:
            result = func(*args, **kwargs)
        except RuntimeError:  # torch has no kernel for the dtype; what it refuses in float32 too raises there
            if plan.written:
                raise
            result = stored("", func(*widened(args, dtype, self._widen), **kwargs), dtype)
        if plan.written or has_numbers(result):
            self.unrecognised.note(_described(plan.name, (*args, *kwargs.values()), dtype), result)
        return result

    def _write(self, plan: Plan, result: Any, args: Arguments, kwargs: Named) -> Any:
        """Copy results to where the operation writes them, and return the targets as torch does."""
        results = result if isinstance(result, tuple) else (result,)
        targets = [args[where] if isinstance(where, int) else kwargs[where] for where in plan.written]
        for target, value in zip(targets, results, strict=False):
            if plan.replaces and target.shape != value.shape:
                target.resize_(value.shape)
            target.copy_(value)
            if self.copies is not None:
                self.copies.note_written(target)
        return targets[0] if len(targets) == 1 else tuple(targets)

    def _widen(self, x: Tensor) -> Tensor:
        """Return a stored tensor in float32, exactly; one that is a parameter's copy is rounded now."""
        made = self._found(x)
        return x.to(torch.float32) if made is None else made.widened(x)

    def _with_masters(self, args: Arguments, positions: tuple[int | str, ...]) -> Arguments:
        """Return the arguments with the tensors themselves where an operation of a norm casts them by itself."""
        read = list(args)
        for i, x in enumerate(args):
            made = self._found(x) if i in positions and isinstance(x, Tensor) else None
            if made is not None and x.shape == made.held.tensor.shape:
                read[i] = made.held.tensor.detach()
        return tuple(read)

    def _store_running(self, plan: Plan, args: Arguments, read: Arguments) -> None:
        """Store running statistics that a norm moved in float32 and that are no buffers: instance norm repeats them."""
        for i in plan.raw:
            if not isinstance(i, int) or not isinstance(x := args[i], Tensor) or read[i].dtype == x.dtype:
                continue
            if self._found(x) is None:
                x.copy_(read[i])

    def _is_weight(self, x: Tensor) -> bool:
        """Whether an operand is a parameter as the network sees it, or was made of one."""
        made = self._found(x)
        return made.held.is_parameter if made is not None else is_marked_weight(x)

    def _copy_of(self, x: Any) -> Any:
        """Return the copy of a parameter that was reached around the modules' tables."""
        held = self.parameters.find(x) if isinstance(x, Tensor) and x.dtype in WIDE else None
        if held is None or held.place.shown is None:
            return x
        return held.of_view(x).to(held.place.shown)

    def _note_read(self, args: Arguments, dtype: torch.dtype) -> None:
        """Count the copies among the operands."""
        for x in args:
            if isinstance(x, Tensor):
                if x.dtype == dtype and (made := self._found(x)) is not None:
                    made.use()
            elif isinstance(x, SEQUENCES) and x and isinstance(x[0], Tensor):
                self._note_read(tuple(x), dtype)

    def _found(self, x: Tensor) -> Made | None:
        """Return the copy of a parameter that `x` is, or is a view of."""
        return self.copies.find(x) if self.copies is not None else None


def expands(place: Place, name: str, expands_all: bool) -> bool:
    """Whether an operation is taken apart: on request, and attention where its products take scaled operands."""
    return expands_all or (place.takes_operands and name in ATTENTION_STEPS)


def _wide_complex(x: Tensor) -> Tensor:
    """Return a tensor of complex32 as complex64, exactly."""
    return x.to(torch.complex64)


def _with_values(x: Tensor, values: Tensor) -> Tensor:
    """Return a sparse tensor with other values: torch casts none whose gradient is that of a dense parameter."""
    return torch.sparse_coo_tensor(
        sparse_parts(x)[0], values, x.shape, is_coalesced=x.is_coalesced(), check_invariants=False
    )


def _constant_call(place: Place, name: str) -> Call:
    """Return how numbers that enter at an operation are cast."""
    return place.arithmetic.call(f"{name}.const")._replace(rounding=NEAREST, draw=None)


def _described(name: str, operands: Arguments, dtype: torch.dtype) -> str:
    """Return the name of an operation, with the first dtype among its operands that is not simulated here."""
    for x in operands:
        if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) and x.dtype not in (*WIDE, dtype):
            return f"{name}({str(x.dtype).removeprefix('torch.')})"
    return name
