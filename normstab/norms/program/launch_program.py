"""A layer of any norm by its traced program: walks by the kernels of the device, all else by plain torch.

What is returned, counted and drawn is what `op_by_op` returns, counts and draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

from torch import Tensor

from normstab.norms.catalogue import Scheme
from normstab.norms.op_by_op import Forward, Gradients, Saved
from normstab.norms.program.known_formats import Known, formats_of
from normstab.norms.program.layer_outline import Outline
from normstab.norms.program.segments import Plan, plan_of
from normstab.norms.program.whole_steps import make_calls, run_steps
from normstab.norms.reduction import Reduction
from normstab.norms.trace import Program, trace_backward, trace_forward
from normstab.numerics.arithmetic import Arithmetic

__all__ = ["RUNNERS", "backward", "forward"]

# Type of a device -> the module that runs segments there.
RUNNERS = {"cpu": "normstab.norms.cpu.program.program_run"}
Needs = tuple[bool, bool, bool]
# What torch raises where a tensor of the device meta is asked for a number (`item`, `bool`; a NotImplementedError of
# `tolist` and `nonzero` is a RuntimeError), or to be an array of numpy. A fault of the layer's own that looks like one
# is not hidden: the readable code runs the layer next, and raises it at its own line.
NO_NUMBERS = (RuntimeError, TypeError)


def forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, scheme: Scheme, reduction: Reduction, ar: Arithmetic
) -> Forward | None:
    """Return what `op_by_op.forward` returns; None, and nothing is done, where the layer has no program."""
    plan = forward_plan(Outline(scheme, reduction, ar.precision, gamma is not None, beta is not None))
    if plan is None:
        return None
    found = run(plan, {"x": x.reshape(reduction.view), "gamma": gamma, "beta": beta}, ar)
    normalized, *rest = (found[name] for name in Saved._fields)
    output = found["output"]
    assert output is not None
    assert normalized is not None
    return Forward(output.reshape(x.shape), found["mean"], found["stored"], Saved(normalized, *rest))


def backward(
    grad: Tensor, saved: Saved, scheme: Scheme, reduction: Reduction, ar: Arithmetic, needs: Needs
) -> Gradients | None:
    """Return what `op_by_op.backward` returns; None, and nothing is done, where the layer has no program."""
    outline = Outline(scheme, reduction, ar.precision, has_gamma=saved.gamma is not None)
    plan = None if saved.centred is None else backward_plan(outline, needs)
    if plan is None:
        return None
    found = run(plan, {"grad": grad.reshape(reduction.view), **saved._asdict()}, ar.towards("backward"))
    d_input = found["d_input"]
    return Gradients(None if d_input is None else d_input.reshape(grad.shape), found["d_gamma"], found["d_beta"])


@lru_cache(maxsize=512)
def forward_plan(outline: Outline) -> Plan | None:
    """Return the plan of a forward pass, or None."""
    program = recorded(trace_forward, outline)
    return None if program is None else in_order(plan_of(program, outline, {}))


@lru_cache(maxsize=512)
def backward_plan(outline: Outline, needs: Needs) -> Plan | None:
    """Return the plan of a backward pass, or None; what the forward pass saves has the formats that it has there."""
    before, program = recorded(trace_forward, outline), recorded(trace_backward, outline, needs)
    if before is None or program is None:
        return None
    formats = formats_of(before)
    saved = {name: before.outputs[name] for name in Saved._fields}
    known: dict[str, Known] = {n: formats[v.number] for n, v in saved.items() if v is not None and v.number in formats}
    return in_order(plan_of(program, outline, known))


def recorded(trace: Callable[..., Program], *arguments: Any) -> Program | None:
    """Return a traced program; None where the layer asks its values for numbers, which there are none of."""
    try:
        return trace(*arguments)
    except NO_NUMBERS:
        return None


def in_order(plan: Plan) -> Plan | None:
    """Return a plan that counts its first offences as the readable code does, else None."""
    return plan if plan.runs_in_order else None


def run(plan: Plan, given: Mapping[str, Tensor | None], ar: Arithmetic) -> dict[str, Tensor | None]:
    """Run a program on what comes in by name; return what goes out."""
    program = plan.program
    values = {value.number: x for name, value in program.inputs.items() if (x := given[name]) is not None}
    device = next(iter(values.values())).device
    runner = import_module(RUNNERS[device.type])
    made = make_calls(program, ar)
    run_steps(plan.parts.before, values, made, ar, plan.views)
    for index, segment in enumerate(plan.segments):
        runner.run_segment(plan, index, values, made, ar)
        run_steps(segment.whole, values, made, ar, plan.views)
    outputs = [value for value in program.outputs.values() if value is not None]
    run_steps([plan.views[x.number] for x in outputs if x.number in plan.views], values, made, ar, plan.views)
    return {name: None if value is None else values[value.number] for name, value in program.outputs.items()}
