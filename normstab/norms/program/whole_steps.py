"""Steps of a traced program computed on whole tensors, in any order that has every operand at hand.

The calls are made first, in the order of stamps; then it does not matter when a step runs. What a step computes is
what the readable layer computed there: the same functions of numerics, or torch's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from normstab.norms.passes import VIEWS
from normstab.norms.program.calls_in_order import Calls, listed
from normstab.norms.program.recomputed import silent_calls
from normstab.norms.trace import Program, Step, Value
from normstab.numerics.accumulate import accumulate
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.execute import carrier_dtype, compute, compute_function, round_tensor
from normstab.numerics.readable import exact

__all__ = ["Values", "make_calls", "run_steps"]

# The number of a value -> its tensor, and the id of a step -> its calls.
Values = dict[int, Tensor]
Made = Mapping[int, tuple[Call, ...]]


def make_calls(program: Program, ar: Arithmetic, draws: Tensor | None = None) -> Made:
    """Make the calls of every step in the order of stamps, and count its constants; return them by the id of a step.

    `draws` are the random bits of what is done once more, which no one counts (see `recomputed`).
    """
    known = listed(program, ar)
    if known is not None:
        return Calls.of_run(known)
    made: dict[int, tuple[Call, ...]] = {} if draws is None else silent_calls(program, draws, ar)
    for step in program.steps:
        if step.again is not None:
            continue
        if step.kind == "constant":
            ar.constant(*step.detail)
        elif step.calls:
            made[id(step)] = tuple(ar.in_format(c.role).call(c.operation, c.format) for c in step.calls)
    return made


def run_steps(steps: Iterable[Step], values: Values, made: Made, ar: Arithmetic, views: dict[int, Step]) -> None:
    """Compute steps, adding their results to `values`; a view, by the number of its result, is made when it is read."""
    for step in steps:
        for x in step.operands:
            if isinstance(x, Value) and x.number not in values:
                run_steps([views[x.number]], values, made, ar, views)
        operands = tuple(values[x.number] if isinstance(x, Value) else x for x in step.operands)
        calls = made.get(id(step), ()) if step.calls else ()
        found = _result(step, operands, calls, values, ar)
        for value, tensor in zip(step.results, [found] if isinstance(found, Tensor) else found, strict=True):
            values[value.number] = tensor


def _result(step: Step, operands: tuple[Any, ...], calls: tuple[Call, ...], values: Values, ar: Arithmetic) -> Any:
    """Return what a step computes: a tensor, or those of torch's function, in its order."""
    match step.kind:
        case "constant":
            return ()
        case "cast":
            return round_tensor(operands[0].to(carrier_dtype(operands, calls[0].format)), calls[0])
        case "apply":
            return compute_function(step.detail, operands, calls[0])
        case "abs":
            return operands[0].abs()
        case "sign":
            return exact.sign(operands[0])
        case "accumulate":
            return _sum(step, operands[0], calls, ar)
        case kind if kind in VIEWS:
            return operands[0].reshape(step.results[0].shape)
    if step.calls:
        return compute(step.kind, operands, calls[0])
    function, args, kwargs = step.detail
    device = next((x.device for x in operands if isinstance(x, Tensor)), None)
    told = given(kwargs, values)
    if "device" in told:
        told["device"] = device
    found = function(*given(args, values), **told)
    return found if isinstance(found, Tensor) else tuple(x for x in found if isinstance(x, Tensor))


def given(tree: Any, values: Values) -> Any:
    """Return arguments of a function of torch with tensors for values."""
    if isinstance(tree, Value):
        return values[tree.number]
    if isinstance(tree, dict):
        return {name: given(part, values) for name, part in tree.items()}
    return type(tree)(given(part, values) for part in tree) if isinstance(tree, tuple | list) else tree


def _sum(step: Step, x: Tensor, calls: tuple[Call, ...], ar: Arithmetic) -> Tensor:
    """Return a sum over axes, with the calls that were made for it, in the order in which it asks for them."""
    waiting = iter(calls)
    axes, keepdim, format = step.detail
    return accumulate(
        x,
        axes,
        keepdim=keepdim,
        accumulation=ar.precision.accumulation,
        calls=lambda suffix, wanted: next(waiting),
        format=format,
    )
