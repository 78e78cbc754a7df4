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
from normstab.norms.passes import split
from normstab.norms.program.known_formats import Known, formats_of
from normstab.norms.program.layer_outline import Outline
from normstab.norms.program.recomputed import (
    Again,
    SavedAgain,
    again_of,
    draws_of,
    groups_kept,
    joined,
    slimmed,
)
from normstab.norms.program.segments import Plan, plan_of
from normstab.norms.program.whole_steps import Made, make_calls, run_steps
from normstab.norms.reduction import Reduction
from normstab.norms.trace import Program, trace_backward, trace_evaluation, trace_forward
from normstab.numerics.arithmetic import Arithmetic

__all__ = ["RUNNERS", "backward", "evaluate", "forward"]

# Type of a device -> the module that runs segments there.
RUNNERS = {"cpu": "normstab.norms.cpu.program.program_run", "cuda": "normstab.norms.cuda.cuda_walks"}
Needs = tuple[bool, bool, bool]
# What torch raises where a tensor of the device meta, which has no numbers, is asked for one (the first), or to be an
# array of numpy (the second). A fault of the layer's own that looks like either is not hidden: the readable code runs
# the layer next, and raises it at its own line.
NO_NUMBERS = (RuntimeError, TypeError)


def forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, scheme: Scheme, reduction: Reduction, ar: Arithmetic
) -> Forward | None:
    """Return what `op_by_op.forward` returns, but for what is saved; None, and nothing is done, without a program."""
    outline = Outline(scheme, reduction, ar.precision, gamma is not None, beta is not None)
    plan = forward_plan(outline)
    if plan is None:
        return None
    made = make_calls(plan.program, ar)
    found = run(plan, {"x": x.reshape(reduction.view), "gamma": gamma, "beta": beta}, made, ar)
    again = again_in_backward(outline)
    if again is None:
        kept: Saved | SavedAgain = Saved(*(found[name] for name in Saved._fields))
    else:
        groups, draws = groups_kept(again, found), draws_of(again, made, ar)
        kept = SavedAgain(x.detach(), found["scale"], found["gamma"], found["members"], groups, draws)
    return Forward(found["output"].reshape(x.shape), found["mean"], found["scale"], found["stored"], kept)


def evaluate(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    statistics: tuple[Tensor | None, Tensor | None],
    scheme: Scheme,
    reduction: Reduction,
    ar: Arithmetic,
) -> Forward | None:
    """Return what `op_by_op.evaluate` returns; None, and nothing is done, without a program."""
    outline = Outline(scheme, reduction, ar.precision, gamma is not None, beta is not None)
    plan = evaluation_plan(outline, statistics[0] is not None, statistics[1] is not None)
    if plan is None:
        return None
    given = dict(zip(("running_mean", "running_var"), statistics, strict=True))
    given |= {"x": x.reshape(reduction.view), "gamma": gamma, "beta": beta}
    found = run(plan, given, make_calls(plan.program, ar), ar)
    saved = Saved(*(found[name] for name in Saved._fields))
    return Forward(found["output"].reshape(x.shape), found["mean"], saved.scale, found["stored"], saved)


def backward(
    grad: Tensor, saved: Saved | SavedAgain, scheme: Scheme, reduction: Reduction, ar: Arithmetic, needs: Needs
) -> Gradients | None:
    """Return what `op_by_op.backward` returns; None, and nothing is done, where the layer has no program."""
    outline = Outline(scheme, reduction, ar.precision, has_gamma=saved.gamma is not None)
    is_again = isinstance(saved, SavedAgain)
    plan = backward_plan(outline, needs, is_again)
    if plan is None:
        return None
    ar = ar.towards("backward")
    given = {"grad": grad.reshape(reduction.view), **saved._asdict()}
    draws = None
    if isinstance(saved, SavedAgain):
        again = again_in_backward(outline)
        assert again is not None
        shapes = [x.shape for x in again.groups]
        given |= {name: row.reshape(shape) for name, row, shape in zip(again.names, saved.groups, shapes, strict=True)}
        given["x"] = saved.input.reshape(reduction.view)
        draws = saved.draws
    found = run(plan, given, make_calls(plan.program, ar, draws), ar)
    d_input = found["d_input"]
    return Gradients(None if d_input is None else d_input.reshape(grad.shape), found["d_gamma"], found["d_beta"])


@lru_cache(maxsize=512)
def forward_plan(outline: Outline) -> Plan | None:
    """Return the plan of a forward pass, or None; what its backward pass computes once more does not come out of it."""
    program, again = recorded(trace_forward, outline), again_in_backward(outline)
    if program is None:
        return None
    return in_order(plan_of(program if again is None else slimmed(again), outline, {}))


@lru_cache(maxsize=512)
def evaluation_plan(outline: Outline, has_mean: bool, has_stored: bool) -> Plan | None:
    """Return the plan of an evaluation with statistics that are given, or None."""
    program = recorded(trace_evaluation, outline, has_mean, has_stored)
    return None if program is None else in_order(plan_of(program, outline, {}))


@lru_cache(maxsize=512)
def again_in_backward(outline: Outline) -> Again | None:
    """Return what a backward pass does once more; None where it cannot, or where a pass has no program."""
    program, following = recorded(trace_forward, outline), recorded(trace_backward, outline)
    if program is None or following is None:
        return None
    again = again_of(program, split(program, outline.reduction))
    joint = None if again is None else joined(following, again)
    # What is computed for fewer gradients is a part of this, in the same order.
    return None if joint is None or in_order(plan_of(joint, outline, {})) is None else again


@lru_cache(maxsize=512)
def backward_plan(outline: Outline, needs: Needs, is_again: bool) -> Plan | None:
    """Return the plan of a backward pass, or None; what the forward pass saves has the formats that it has there."""
    before, program = recorded(trace_forward, outline), recorded(trace_backward, outline, needs)
    if before is None or program is None:
        return None
    formats = formats_of(before)
    saved = {name: before.outputs[name] for name in Saved._fields}
    if is_again:
        again = again_in_backward(outline)
        joint = None if again is None else joined(program, again)
        if again is None or joint is None:
            return None
        program, saved = joint, saved | dict(zip(again.names, again.groups, strict=True))
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


def run(plan: Plan, given: Mapping[str, Any], made: Made, ar: Arithmetic) -> dict[str, Any]:
    """Run a program, whose calls are made, on what comes in by name; return what goes out."""
    program = plan.program
    values = {value.number: x for name, value in program.inputs.items() if (x := given[name]) is not None}
    device = next(iter(values.values())).device
    runner = import_module(RUNNERS[device.type])
    run_steps(plan.parts.before, values, made, ar, plan.views)
    for index, segment in enumerate(plan.segments):
        runner.run_segment(plan, index, values, made, ar)
        run_steps(segment.whole, values, made, ar, plan.views)
    outputs = [value for value in program.outputs.values() if value is not None]
    run_steps([plan.views[x.number] for x in outputs if x.number in plan.views], values, made, ar, plan.views)
    return {name: None if value is None else values[value.number] for name, value in program.outputs.items()}
