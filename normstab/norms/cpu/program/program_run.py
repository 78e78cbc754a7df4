"""Run the segments of a program with the interpreter: where its tensors lie, its calls, its threads.

What is the same in every run is looked up once, at each site. Importing this needs numba.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.norms.cpu.cpu_run import Counting, Room, Told, pieces_of, run_pieces, slots_of
from normstab.norms.cpu.environment import SLOTS
from normstab.norms.cpu.program.instructions import Instructions, Place, compiled
from normstab.norms.cpu.program.interpreter import run_groups
from normstab.norms.fused.coverage import is_fast
from normstab.norms.fused.layer_table import BLOCK
from normstab.norms.fused.plan_of_layer import fields_of, groups_of
from normstab.norms.program.calls_in_order import Calls
from normstab.norms.program.segments import Plan
from normstab.norms.program.whole_steps import Made, Values
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.kernels.cpu.openmp import flushes_subnormals
from normstab.numerics.kernels.cpu.sums.steps import ROW, contexts, rows_of
from normstab.numerics.kernels.cpu.workspace import address_of
from normstab.numerics.kernels.format_table import plan as format_plan
from normstab.numerics.kernels.huge_pages import in_huge_pages
from normstab.numerics.kernels.shortcut_table import LANE32

__all__ = ["run_segment"]

# The kinds of places that are tensors; see `instructions.Place`.
IN_MEMORY = ("tensor", "direct")
AT_BLOCK, AT_VALUES, AT_PLACES = (SLOTS.index(name) for name in ("block", "values", "places"))
STAMP, STEP = 1, 2  # columns of what `rows_of` returns


@lru_cache(maxsize=512)
def instructions_of(plan: Plan, index: int) -> tuple[Instructions, NDArray[np.int64]]:
    """Return the instructions of a segment, and their rows as the interpreter reads them."""
    found = compiled(plan, plan.segments[index])
    return found, np.array(found.rows, np.int64)


class Setting(NamedTuple):
    """What runs of a segment in one arithmetic have in common: what threads are told, but for addresses and numbers.

    `memory` says which places are tensors: the index of the place, the number of the value. `arrays` are those whose
    addresses are in `told`.
    """

    told: Told
    places: NDArray[np.int64]
    memory: tuple[tuple[int, int], ...]
    numbers: NDArray[np.float64]
    scalars: tuple[tuple[int, int], ...]
    pieces_of: tuple[int, int]
    arrays: tuple[NDArray[np.int64], ...]


class Sites(NamedTuple):
    """Contexts and rows of the sites of a segment; stamps are counted from a run's first, and the step is left out.

    `nobody` has a call for each site, whose losses nobody counts.
    """

    contexts: NDArray[np.int64]
    rows: NDArray[np.int64]
    nobody: tuple[None, ...]


def run_segment(plan: Plan, index: int, values: Values, made: Made, ar: Arithmetic) -> None:
    """Run a segment, whose inputs are in `values`, and put there what it writes."""
    for number in plan.segments[index].written:
        values[number] = in_huge_pages(torch.empty(plan.shapes[number], dtype=torch.float32, device="cpu"))
    setting = setting_of(plan, index, ar)
    places, numbers = setting.places.copy(), setting.numbers.copy()
    tensors = [memory_of(values[number]) for _, number in setting.memory]  # which live until the kernel is done
    for (at, _), x in zip(setting.memory, tensors, strict=True):
        places[at, 0] = x.data_ptr()
    for number, at in setting.scalars:
        numbers[at] = float(values[number])
    slots = setting.told.slots.copy()
    slots[AT_PLACES] = address_of(places)
    pieces = pieces_of(*setting.pieces_of)
    told = setting.told._replace(slots=slots, numbers=numbers.view(np.int64))
    run_pieces(run_groups, pieces, told, counting_of(plan, index, made, len(pieces)))


def setting_of(plan: Plan, index: int, ar: Arithmetic) -> Setting:
    """Return what all runs of a segment in `ar` have in common, kept with it."""
    is_inexact = ar.ledger is not None and ar.ledger.counts_inexact
    key = (id(plan), index, is_inexact, flushes_subnormals())
    found: tuple[Plan, Setting] | None = ar.kept.get(key)
    if found is None:
        found = ar.kept[key] = plan, _set(plan, index, ar)  # a plan that lives keeps its id
    return found[1]


def _set(plan: Plan, index: int, ar: Arithmetic) -> Setting:
    """Look it up."""
    found, rows = instructions_of(plan, index)
    n, precision = plan.reduction.n, ar.precision
    table = format_plan(precision.format(), precision.rounding, LANE32)
    numbers = np.array(found.numbers, np.float64)
    room = Room(
        n, precision.accumulation.width, len(found.sites), found.blocks, found.kept, found.streams, len(numbers)
    )
    fields = fields_of(plan.reduction, ar, is_fast=plan.is_uniform and is_fast(ar))
    slots = slots_of({"rows": rows.ctypes.data, "table": table.ctypes.data})
    return Setting(
        Told(fields, slots, room),
        np.array([place_of(place, n) for place in found.places], np.int64).reshape(-1, 4),
        tuple((i, place.which) for i, place in enumerate(found.places) if place.kind in IN_MEMORY),
        numbers,
        tuple(found.scalars.items()),
        (groups_of(plan.reduction), n),
        (rows, table),
    )


def counting_of(plan: Plan, index: int, made: Made, pieces: int) -> Counting:
    """Return where a run counts."""
    if not isinstance(made, Calls):
        calls = calls_of(plan, index, made)
        return Counting(contexts(calls, pieces), rows_of(calls), calls)
    sites = sites_of(plan, index, made)
    contexts_of, rows = np.empty((pieces, *sites.contexts.shape), np.int64), sites.rows.copy()
    contexts_of[:] = sites.contexts
    rows[:, STAMP] += made.first  # also where nobody counts, and nobody reads it
    rows[:, STEP] = made.step
    return Counting(contexts_of, rows, sites.nobody)


def sites_of(plan: Plan, index: int, made: Calls) -> Sites:
    """Return what is the same in every run, kept with what is known of its calls."""
    key, kept = (id(plan), index, made.inexact), made.listed.kept
    found: tuple[Plan, Sites] | None = kept.get(key)
    if found is None:
        calls = calls_of(plan, index, made.from_zero())
        sites = Sites(contexts(calls, 1)[0], rows_of(calls).reshape(-1, ROW), (None,) * len(calls))
        found = kept[key] = plan, sites
    return found[1]


def memory_of(x: Tensor) -> Tensor:
    """Return a tensor as the interpreter reads it: dense float32, a mask as 0 and 1."""
    if x.dtype == torch.float32 and x.is_contiguous() and not x.requires_grad:
        return x
    return x.detach().to(torch.float32).contiguous()


def place_of(place: Place, n: int) -> tuple[int, ...]:
    """Return the fields of a place, the address of a tensor left out; see `interpreter`."""
    if place.kind == "block":
        return 4 * BLOCK * place.which, AT_BLOCK, 0, 0
    if place.kind == "kept":
        return 4 * n * place.which, AT_VALUES, 4, 0
    is_direct = place.kind == "direct"
    return 0, -1, 4 * is_direct, int(is_direct)


def calls_of(plan: Plan, index: int, made: Made) -> list[Call | None]:
    """Return the calls of the sites of a segment; a sum's are those of its additions and of its loads, and none."""
    found: list[Call | None] = []
    for step in instructions_of(plan, index)[0].sites:
        if step is None:
            continue
        if step.kind != "accumulate":
            found += made[id(step)]
        else:
            add, load = made[id(step)]
            found += [add, None if step.calls[-1].operation in plan.fitting else load, None]
    return found
