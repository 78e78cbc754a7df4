"""The readable layer, run once on values that have a shape and no numbers: a program of rounded operations.

The values are tensors of torch's device `meta`. An Arithmetic that records stands in for the real one: it notes
each operation with the calls (site, role, format) that it makes, in the order of stamps. What plain torch does
in between (views, gathers, comparisons) is noted by a mode of torch. Nothing here knows a norm by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normstab.norms import op_by_op
from normstab.norms.program.layer_outline import Outline
from normstab.numerics.accumulate import sum_calls
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.execute import carrier_dtype
from normstab.numerics.formats import AnyFormat
from normstab.numerics.precision import Precision, Rounding
from normstab.numerics.readable.operations import Operand
from normstab.numerics.readable.sums import Sums
from normstab.numerics.sums.reduced_axes import canonical_dims, kept_shape
from normstab.torch_private import TorchDispatchMode, tree_leaves, tree_map

__all__ = ["Called", "Program", "Step", "Value", "trace_backward", "trace_evaluation", "trace_forward"]

UNRECORDED = "aten::empty.memory_format"  # makes memory and no value of the program


class Value(NamedTuple):
    """One tensor of a program: its number, its shape and its dtype."""

    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Called(NamedTuple):
    """One call of an Arithmetic: the operation at which it counts, its role, and the format of its results."""

    operation: str
    role: str | None
    format: AnyFormat


@dataclass(frozen=True)
class Step:
    """One operation on values and numbers.

    `kind` is the name of an operation of Arithmetic, with the calls that it makes; or that of torch, with none.
    `detail` is what else it needs: the axes of a sum, a function to apply, or torch's function and arguments.
    `again` is the number of a step that was done before, and is done once more uncounted (see `program.recomputed`).
    """

    kind: str
    operands: tuple[Value | float | None, ...]
    results: tuple[Value, ...]
    calls: tuple[Called, ...] = ()
    detail: Any = None
    again: int | None = None


@dataclass(frozen=True)
class Program:
    """Steps in the order of stamps, the values that come in, and those that go out (None where there is none)."""

    steps: tuple[Step, ...]
    inputs: dict[str, Value]
    outputs: dict[str, Value | None]

    @property
    def calls(self) -> tuple[Called, ...]:
        """All calls, in the order in which they are made."""
        return tuple(called for step in self.steps for called in step.calls)

    @property
    def sites(self) -> tuple[str, ...]:
        """The operations at which something may be counted, each once, in the order of first use."""
        return tuple(dict.fromkeys(called.operation for called in self.calls))


@dataclass
class Tape:
    """The program while it is recorded; tensors are kept, so that an id means one tensor."""

    steps: list[Step] = field(default_factory=list)
    waiting: list[Called] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    numbers: dict[int, Value] = field(default_factory=dict)

    def new(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a value without numbers."""
        made = torch.empty(tuple(shape), dtype=dtype, device="meta")
        self.name(made)
        return made

    def name(self, x: Tensor) -> Value:
        """Return the value that a tensor stands for, a new one where it is unknown."""
        if id(x) not in self.numbers:
            self.kept.append(x)
            self.numbers[id(x)] = Value(len(self.numbers), tuple(x.shape), x.dtype)
        return self.numbers[id(x)]

    def operand(self, x: Operand | Any) -> Any:
        """Return the value of a tensor that has been seen; a number as it is."""
        if not isinstance(x, Tensor) or (x.device.type != "meta" and id(x) not in self.numbers):
            return x
        return self.numbers[id(x)]

    def note(self, kind: str, operands: Sequence[Any], results: Sequence[Tensor], detail: Any = None) -> None:
        """Note a step, with the calls made since the last one."""
        values = tuple(self.operand(x) for x in operands)
        self.steps.append(Step(kind, values, tuple(map(self.name, results)), tuple(self.waiting), detail))
        self.waiting.clear()


class TorchRecorder(TorchDispatchMode):
    """Note what plain torch does with the values of a tape."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports torch's compiler

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        results = _tensors(result)
        if results and func.name() != UNRECORDED and all(x.device.type == "meta" for x in results):
            told = tree_map(self._tape.operand, (args, kwargs or {}))
            self._tape.note(func.name(), _tensors((args, kwargs)), results, (func, *told))
        return result


@contextmanager
def recording(tape: Tape) -> Iterator[None]:
    """Note torch's own operations; inference mode would show some of them under other names."""
    with torch.inference_mode(False), torch.no_grad(), TorchRecorder(tape):
        yield


class Recorder(Arithmetic):
    """An Arithmetic that notes on a tape what it would compute; all else, as the forms of a mean, is the real one's."""

    def __init__(self, precision: Precision, tape: Tape) -> None:
        super().__init__(precision)
        self._tape = tape
        self.sums = Sums(self._accumulate, self._block_sums, self._welford)

    def call(self, operation: str, format: AnyFormat | None = None, *, rounding: Rounding | None = None) -> Call:
        """Note the call, and return it as one that nobody counts."""
        target = self.format if format is None else format
        self._tape.waiting.append(Called(operation, self.role, target))
        return Call(target, self.precision.rounding)

    def cast(self, x: Tensor, operation: str = "cast", *, out: Tensor | None = None) -> Tensor:
        return self._made("cast", (x,), x.shape, carrier_dtype((x,), self.call(operation).format))

    def constant(self, value: float, operation: str) -> float:
        """Note the constant, and return it as cast."""
        found = super().constant(value, operation)
        self._tape.note("constant", (), (), (value, operation))
        return found

    def apply(self, function: Callable[..., Tensor], *operands: Operand, operation: str) -> Tensor:
        """Note a function applied to each element."""
        dtype = carrier_dtype(operands, self.call(operation).format)
        return self._made("apply", operands, _broadcast(operands), dtype, function)

    def sign(self, a: Tensor) -> Tensor:
        return self._made("sign", (a,), a.shape, a.dtype)

    def abs(self, a: Tensor) -> Tensor:
        # torch's own would import its compiler to find the shape
        return self._made("abs", (a,), a.shape, a.dtype)

    def _operate(self, name: str, operands: tuple[Operand, ...], operation: str, out: Tensor | None) -> Tensor:
        dtype = carrier_dtype(operands, self.call(operation).format)
        return self._made(name, operands, _broadcast(operands), dtype)

    def _made(
        self, kind: str, operands: Sequence[Operand], shape: Sequence[int], dtype: torch.dtype, detail: Any = None
    ) -> Tensor:
        """Note a step with one result, and return that."""
        made = torch.empty(tuple(shape), dtype=dtype, device="meta")
        self._tape.note(kind, operands, (made,), detail)
        return made

    def _accumulate(self, x: Tensor, dims: Any, *, keepdim: bool = False, **how: Any) -> Tensor:
        """Note a sum over axes; the calls that it makes are those of its kind, in their order."""
        reduced, calls, format = canonical_dims(dims, x.dim()), how["calls"], how["format"]
        match how["accumulation"].kind:
            case "rounded":
                format = sum_calls(how["accumulation"], calls).add.format
            case "exact":
                calls("", format)
        shape, dtype = kept_shape(x, reduced, keepdim=keepdim), carrier_dtype((x,), format)
        return self._made("accumulate", (x,), shape, dtype, (reduced, keepdim, how["format"]))

    def _block_sums(self, x: Tensor, dims: Sequence[int], width: int, at: Any) -> Tensor:
        """Note the sums of consecutive blocks."""
        n = math.prod(x.shape[axis] for axis in dims)
        shape = (x.numel() // n, -(-n // width))
        return self._made("block_sums", (x,), shape, carrier_dtype((x,), at.add.format), (tuple(dims), width))

    def _welford(self, x: Tensor, reduced: Sequence[int], calls: dict[str, Call]) -> tuple[Tensor, Tensor]:
        """Note Welford's mean and M2."""
        kept = x.numel() // math.prod(x.shape[axis] for axis in reduced)
        made = [torch.empty(kept, dtype=torch.float64, device="meta") for _ in range(2)]
        self._tape.note("welford", (x,), made, tuple(reduced))
        return made[0], made[1]


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _broadcast(operands: Sequence[Operand]) -> Sequence[int]:
    """Return the shape of what operands broadcast to."""
    return tuple(torch.broadcast_shapes(*(x.shape for x in operands if isinstance(x, Tensor))))


@lru_cache(maxsize=512)
def trace_forward(outline: Outline) -> Program:
    """Return the program of `op_by_op.forward`: x, gamma, beta to output, mean, stored and what backward needs."""
    return _forward(outline)[0]


def _forward(outline: Outline) -> tuple[Program, op_by_op.Saved]:
    """Return the program of the forward pass, and what it saves, as values without numbers."""
    tape = Tape()
    inputs = _inputs(tape, outline)
    with recording(tape):
        ar = Recorder(outline.precision, tape)
        done = op_by_op.forward(inputs["x"], inputs["gamma"], inputs["beta"], outline.scheme, outline.reduction, ar)
    outputs = {"output": done.output, "mean": done.mean, "stored": done.stored, **done.saved._asdict()}
    return _program(tape, inputs, outputs), done.saved


@lru_cache(maxsize=512)
def trace_evaluation(outline: Outline, has_mean: bool = True, has_stored: bool = True) -> Program:
    """Return the program of `op_by_op.evaluate`, given statistics of one number per channel."""
    tape, count = Tape(), max(outline.reduction.parameters)
    inputs = _inputs(tape, outline)
    for name, is_given in (("running_mean", has_mean), ("running_var", has_stored)):
        inputs[name] = tape.new((count,)) if is_given else None
    x, gamma, beta, *given = inputs.values()
    statistics, ar = (given[0], given[1]), Recorder(outline.precision, tape)
    with recording(tape):
        done = op_by_op.evaluate(x, gamma, beta, statistics, outline.scheme, outline.reduction, ar)
    outputs = {"output": done.output, "mean": done.mean, "stored": done.stored, **done.saved._asdict()}
    return _program(tape, inputs, outputs)


@lru_cache(maxsize=512)
def trace_backward(outline: Outline, needs: tuple[bool, bool, bool] = (True, True, True)) -> Program:
    """Return the program of `op_by_op.backward`: grad and what the forward pass saved to the gradients."""
    saved, tape = _forward(outline)[1], Tape()
    inputs: dict[str, Any] = {"grad": tape.new(outline.reduction.view)}
    for name, kept in saved._asdict().items():
        inputs[name] = None if kept is None else tape.new(kept.shape, kept.dtype)
    given, ar = op_by_op.Saved(*(inputs[name] for name in saved._fields)), Recorder(outline.precision, tape)
    with recording(tape):
        found = op_by_op.backward(inputs["grad"], given, outline.scheme, outline.reduction, ar, needs)
    return _program(tape, inputs, {f"d_{name}": value for name, value in found._asdict().items()})


def _inputs(tape: Tape, outline: Outline) -> dict[str, Any]:
    """Return x, gamma and beta as values, None where the layer has none."""
    reduction = outline.reduction
    gamma, beta = (tape.new(reduction.parameters) if has else None for has in (outline.has_gamma, outline.has_beta))
    return {"x": tape.new(reduction.view), "gamma": gamma, "beta": beta}


def _program(tape: Tape, inputs: dict[str, Any], outputs: dict[str, Any]) -> Program:
    """Return what a tape holds."""
    known = {name: tape.name(x) for name, x in inputs.items() if x is not None}
    found = {name: None if value is None else tape.name(value) for name, value in outputs.items()}
    return Program(tuple(tape.steps), known, found)
