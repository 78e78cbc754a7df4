"""Run the passes of a program on a CUDA device: walks by one kernel, sums by those of all sums.

    pass     walk over the values   [ sub, mul ]        one launch; what a sum or a later pass reads is written
             sums of groups         [ . . . ] -> .      one family of kernels for every order
             walk over the groups   [ div, add, sqrt ]  one launch

Steps that float32 does not carry run one by one, each by the kernel of its operation.
Nothing here waits for the device, or knows a norm by name. Importing this needs Triton; under its interpreter it serves
CPU tensors too.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.norms.cuda.walk_kernel import EXTENTS, STEP_CODES, walk_kernel
from normstab.norms.fused.plan_of_layer import groups_of
from normstab.norms.passes import VIEWS, Extent, scalars_of
from normstab.norms.program.segments import Plan
from normstab.norms.program.whole_steps import Made, Values, run_steps
from normstab.norms.reduction import Reduction
from normstab.norms.trace import Step, Value
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.formats import AnyFormat
from normstab.numerics.kernels.cuda.device_log import log_of
from normstab.numerics.kernels.cuda.float32_tensors import (
    DTYPES32,
    MOST_ELEMENTS,
    programs32,
    serves32,
    table_of_results32,
)
from normstab.numerics.kernels.cuda.launches import add_found, drawn_from
from normstab.numerics.philox import field_width
from normstab.numerics.precision import Rounding
from normstab.numerics.tallies.repeats import Repeats

__all__ = ["run_segment"]

# Elements of a program's tile, and the warps that share it: two elements for each thread, for in its registers are the
# counters of every step too.
BLOCK, WARPS = 512, 8
REGISTERS = 128  # of a thread, so that two programs fit a multiprocessor: no walk spills any


class WalkPlan(NamedTuple):
    """What a walk does: see `walk_kernel`. Values are known by their numbers, and on the way by their places.

    `reads` are (number, extent); `constants` the bits of float32, of which -0 has its own; `steps` are given with the
    places of three operands; `writes` are (place, number). `rest` is what comes after, and no walk does.
    """

    reads: tuple[tuple[int, int], ...]
    constants: tuple[int, ...]
    steps: tuple[tuple[Step, tuple[int, ...]], ...]
    writes: tuple[tuple[int, int], ...]
    rest: tuple[Step, ...]


def run_segment(plan: Plan, index: int, values: Values, made: Made, ar: Arithmetic) -> None:
    """Run a segment, whose inputs are in `values`, and put there what it writes."""
    for number, part in enumerate(plan.segments[index].passes):
        walk(plan, (index, number, False), values, made, ar)
        run_steps([step for step in part.elements if step.kind == "accumulate"], values, made, ar, plan.views)
        walk(plan, (index, number, True), values, made, ar)
        spent = spent_after(plan, index, number)
        for value in [value for value in values if plan.parts.viewed.get(value) in spent]:
            del values[value]


def walk(plan: Plan, place: tuple[int, int, bool], values: Values, made: Made, ar: Arithmetic) -> None:
    """Do the steps of one pass for every element, or every group."""
    told = walk_plan(plan, *place)
    if told.steps:
        walk_steps(plan, told, place[2], values, made, ar)
    run_steps(told.rest, values, made, ar, plan.views)


def walk_steps(plan: Plan, told: WalkPlan, is_between: bool, values: Values, made: Made, ar: Arithmetic) -> None:
    """Do the steps of a walk: in one launch where float32 carries them."""
    calls = [made[id(step)][0] if step.calls else None for step, _ in told.steps]
    n = math.prod(plan.reduction.view) if not is_between else groups_of(plan.reduction)
    kinds = [step.kind for step, _ in told.steps]
    is_served = all(call is None or serves32(kind, call) for kind, call in zip(kinds, calls, strict=True))
    steps = {call.draw.step for call in calls if call is not None and call.draw is not None}
    # Forward passes of one step of training whose backward passes run in another draw what they drew then.
    if not is_served or n > MOST_ELEMENTS or len(steps) > 1:
        run_steps([step for step, _ in told.steps], values, made, ar, plan.views)
        return
    sources = [memory_of(values[number]) for number, _ in told.reads]
    for _, number in told.writes:
        values[number] = torch.empty(plan.shapes[number], dtype=torch.float32, device=sources[0].device)
    launch(told, sources, [values[number] for _, number in told.writes], calls, n, plan.reduction)


def launch(
    told: WalkPlan, sources: list[Tensor], targets: list[Tensor], calls: list[Call | None], n: int, reduction: Reduction
) -> None:
    """Launch a walk, and have what it counts added to the rows of the calls before those are read."""
    device = sources[0].device
    options, tables = compiled_in(told, calls, [x.dtype for x in sources], device)
    counting = [call for call in calls if call is not None and call.row is not None]
    cells = log_of(device).borrow(len(counting)) if counting else None
    with torch.cuda.device_of(sources[0]):
        walk_kernel[programs32(n, device, tile=BLOCK)](
            tuple(x.view(DTYPES32[x.dtype][2]) for x in sources),
            tuple(y.view(torch.int32) for y in targets),
            numbers_of(told.constants, device),
            tables,
            *drawn_from([None if call is None else call.draw for call in calls], device),
            None if cells is None else cells.counts,
            n,
            periods(reduction),
            **options,
            num_warps=WARPS,
            maxnreg=REGISTERS,
            enable_fp_fusion=False,  # a fused multiply-add would merge two roundings into one
        )

    def take(found: NDArray[np.int64], repeats: Repeats) -> None:
        for i, call in enumerate(counting):
            found[:, i, 0] = n  # how many results there are is known here
            add_found(call, found[:, i], repeats)

    if cells is not None:
        log_of(device).take_back(cells, take, [call.row for call in counting if call.row is not None])


def compiled_in(
    told: WalkPlan, calls: list[Call | None], dtypes: list[torch.dtype], device: torch.device
) -> tuple[dict[str, Any], Tensor | None]:
    """Return what is compiled into the kernel of a walk, by name, and the tables of its formats."""
    formats = tuple(dict.fromkeys(call.format for call in calls if call is not None))
    rounding = next((call.rounding for call in calls if call is not None), Rounding())
    tables, styles = tables32(formats, rounding, device)
    steps, sites = [], 0
    for (step, operands), call in zip(told.steps, calls, strict=True):
        table = 0 if call is None else formats.index(call.format)
        counts = call is not None and call.row is not None
        steps.append((STEP_CODES[step.kind], *operands, table, styles[table], sites if counts else -1))
        sites += counts
    reads = [(extent, DTYPES32[dtype][0]) for (_, extent), dtype in zip(told.reads, dtypes, strict=True)]
    reads += [(-1, i) for i in range(len(told.constants))]
    found: dict[str, Any] = {"READS": tuple(reads), "STEPS": tuple(steps)}
    found |= {"WRITES": tuple(place for place, _ in told.writes), "TABLES": len(formats), "SITES": sites}
    found |= {"ROUNDS_DOWN": rounding.mode == "down", "BLOCK": BLOCK}
    return found | {"WIDTH": field_width(rounding.bits) if rounding.is_stochastic else 0}, tables


@lru_cache(maxsize=1024)
def walk_plan(plan: Plan, index: int, number: int, is_between: bool) -> WalkPlan:
    """Return what a walk over values, or over groups, reads, does and writes."""
    part = plan.segments[index].passes[number]
    every = list(part.between) if is_between else [step for step in part.elements if step.kind != "accumulate"]
    steps = list(takewhile(lambda step: step.kind in STEP_CODES, every))
    own = {id(step) for step in steps}
    made = [step.results[0].number for step in steps]
    read: dict[int, int] = {}
    constants: list[int] = []
    for step in steps:
        for x in operands_of(step):
            if isinstance(x, Value) and plan.origin(x) not in made:
                read.setdefault(plan.origin(x), extent_of(plan, x, is_between))
    places = {number: i for i, number in enumerate(read)}
    first = len(places) + sum(not isinstance(x, Value) for step in steps for x in operands_of(step))
    places |= {number: first + i for i, number in enumerate(made)}
    filled: list[tuple[int, ...]] = []
    for step in steps:
        found = []
        for x in operands_of(step):
            if isinstance(x, Value):
                found.append(places[plan.origin(x)])
            else:
                found.append(len(read) + len(constants))
                constants.append(int(np.float32(x).view(np.int32)))
        filled.append((*found, found[0], found[0])[:3])
    wanted = read_elsewhere(plan, own)
    writes = tuple((places[x], x) for x in made if x in wanted)
    return WalkPlan(
        tuple(read.items()),
        tuple(constants),
        tuple(zip(steps, filled, strict=True)),
        writes,
        tuple(every[len(steps) :]),
    )


def operands_of(step: Step) -> list[Value | float]:
    """Return the operands of a step and the numbers that torch's function is given beside them."""
    return [x for x in (*step.operands, *scalars_of(step)) if x is not None]


def extent_of(plan: Plan, x: Value, is_between: bool) -> int:
    """Return how a walk reads a value: of groups each number is an element."""
    extent = plan.parts.extents[x.number]
    return EXTENTS.index(Extent.ELEMENT.value if is_between and extent == Extent.GROUP else extent.value)


def read_elsewhere(plan: Plan, own: set[int]) -> set[int]:
    """Return the numbers that others than the steps of these ids read, or that come out; a view reads nothing yet."""
    others = [step for step in plan.program.steps if id(step) not in own and step.kind not in VIEWS]
    read = {plan.origin(x) for step in others for x in step.operands if isinstance(x, Value)}
    return read | {plan.origin(x) for x in plan.program.outputs.values() if x is not None}


@lru_cache(maxsize=1024)
def spent_after(plan: Plan, index: int, number: int) -> frozenset[int]:
    """Return the numbers of what a pass makes or reads, and nothing after it does: their memory is given back."""
    passes = [(i, j) for i, segment in enumerate(plan.segments) for j in range(len(segment.passes))]
    done = [plan.segments[i].passes[j] for i, j in passes if (i, j) <= (index, number)]
    own = {id(step) for part in done for step in (*part.elements, *part.between)} | {id(s) for s in plan.parts.before}
    own |= {id(step) for segment in plan.segments[:index] for step in segment.whole}
    last = done[-1]
    known = {plan.origin(x) for step in last.elements for x in (*step.operands, *step.results) if isinstance(x, Value)}
    return frozenset(known - read_elsewhere(plan, own))


def memory_of(x: Tensor) -> Tensor:
    """Return a tensor as the kernel reads it: dense, in 16 bits or float32; a mask as 0 and 1."""
    return (x.detach() if x.dtype in DTYPES32 else x.detach().to(torch.float32)).contiguous()


@lru_cache(maxsize=256)
def periods(reduction: Reduction) -> tuple[int, int, int, int]:
    """Return steps and counts: element i is of group (i // step) % count, and so of its parameter."""
    view, sizes = reduction.view, reduction.parameters
    group = reduction.kept[-1]
    parameter = max((axis for axis, size in enumerate(sizes) if size > 1), default=0)
    steps = [math.prod(view[axis + 1 :]) for axis in (group, parameter)]
    return steps[0], groups_of(reduction), steps[1], math.prod(sizes)


@cache
def tables32(
    formats: tuple[AnyFormat, ...], rounding: Rounding, device: torch.device
) -> tuple[Tensor | None, tuple[int, ...]]:
    """Return the plans of lane 32 of formats, one behind another, and their shortcuts."""
    found = [table_of_results32(format, rounding, device) for format in formats]
    return (torch.cat([table for table, _ in found]), tuple(style for _, style in found)) if found else (None, (0,))


@cache
def numbers_of(constants: tuple[int, ...], device: torch.device) -> Tensor | None:
    """Return the bits of constants on a device."""
    return torch.tensor(constants, dtype=torch.int32, device=device) if constants else None
