"""Run the segments of a program with the interpreter: where its tensors lie, its calls, its threads.

Importing this needs numba.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.norms.cpu.cpu_run import Room, Told, run_pieces
from normstab.norms.cpu.environment import SLOTS
from normstab.norms.cpu.program.instructions import Instructions, Place, compiled
from normstab.norms.cpu.program.interpreter import run_groups
from normstab.norms.fused.coverage import is_fast
from normstab.norms.fused.layer_table import BLOCK
from normstab.norms.fused.plan_of_layer import fields_of, groups_of
from normstab.norms.program.segments import Plan
from normstab.norms.program.whole_steps import Made, Values
from normstab.norms.trace import Step
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.kernels.format_table import plan as format_plan
from normstab.numerics.kernels.huge_pages import in_huge_pages
from normstab.numerics.kernels.shortcut_table import LANE32

__all__ = ["run_segment"]

# The kinds of places that are tensors; see `instructions.Place`.
IN_MEMORY = ("tensor", "direct")
AT_BLOCK, AT_VALUES = SLOTS.index("block"), SLOTS.index("values")


@lru_cache(maxsize=512)
def instructions_of(plan: Plan, index: int) -> tuple[Instructions, NDArray[np.int64]]:
    """Return the instructions of a segment, and their rows as the interpreter reads them."""
    found = compiled(plan, plan.segments[index])
    return found, np.array(found.rows, np.int64)


def run_segment(plan: Plan, index: int, values: Values, made: Made, ar: Arithmetic) -> None:
    """Run a segment, whose inputs are in `values`, and put there what it writes."""
    told, rows = instructions_of(plan, index)
    groups = groups_of(plan.reduction)
    for number in plan.segments[index].written:
        values[number] = in_huge_pages(torch.empty(plan.shapes[number], dtype=torch.float32, device="cpu"))
    tensors = {place.which: memory_of(values[place.which]) for place in told.places if place.kind in IN_MEMORY}
    n = plan.reduction.n
    places = np.array([place_of(place, tensors, n) for place in told.places], np.int64)
    numbers = list(told.numbers)
    for number, at in told.scalars.items():
        numbers[at] = float(values[number])
    calls = [call for step in told.sites if step is not None for call in calls_of(step, made, plan)]
    precision = ar.precision
    fields = fields_of(plan.reduction, ar, is_fast=plan.is_uniform and is_fast(ar))
    table = format_plan(precision.format(), precision.rounding, LANE32)
    addresses = {"rows": rows.ctypes.data, "places": places.ctypes.data, "table": table.ctypes.data}
    room = Room(n, precision.accumulation.width, len(calls), told.blocks, told.kept, told.streams, len(numbers))
    run_pieces(run_groups, calls, groups, Told(fields, addresses, room, numbers))


def memory_of(x: Tensor) -> Tensor:
    """Return a tensor as the interpreter reads it: dense float32, a mask as 0 and 1."""
    if x.dtype == torch.float32 and x.is_contiguous() and not x.requires_grad:
        return x
    return x.detach().to(torch.float32).contiguous()


def place_of(place: Place, tensors: Mapping[int, Tensor], n: int) -> tuple[int, ...]:
    """Return the fields of a place; see `interpreter`."""
    if place.kind == "block":
        return 4 * BLOCK * place.which, AT_BLOCK, 0, 0
    if place.kind == "kept":
        return 4 * n * place.which, AT_VALUES, 4, 0
    is_direct = place.kind == "direct"
    return tensors[place.which].data_ptr(), -1, 4 * is_direct, int(is_direct)


def calls_of(step: Step, made: Made, plan: Plan) -> tuple[Call | None, ...]:
    """Return the calls of a step at its sites; a sum's are those of its additions and of its loads, and none."""
    if step.kind != "accumulate":
        return made[id(step)]
    add, load = made[id(step)]
    return add, None if step.calls[-1].operation in plan.fitting else load, None
