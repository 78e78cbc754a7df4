"""What to do with an operation of torch, found out once per overload from its name and schema.

In-place and out= forms are run as their functional form and then written; a foreach form, tensor by tensor.
Nothing here computes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from normstab.simulation.aten.norm_ops import NORM_OPERATIONS
from normstab.simulation.aten.operation import Handler
from normstab.simulation.aten.operation_table import EXACT, HANDLERS, MADE, MOVING, PASSING
from normstab.simulation.aten.parts.fused_optimizers import FUSED
from normstab.simulation.aten.parts.grouped_products import GROUPED
from normstab.simulation.aten.pointwise import REPLACED
from normstab.simulation.aten.selections import equal
from normstab.simulation.aten.wide import wide_elements
from normstab.torch_private import is_composite, schema_of

__all__ = ["Kind", "Plan", "plan_of"]

Kind = str  # "pass" | "make" | "exact" | "rounded" | "foreach" | "composite" | "parts" | "unknown"
FOREACH = "_foreach_"
PARTS = {**GROUPED, **FUSED}


class Plan(NamedTuple):
    """`kind` of an overload, its plain name, the functional form that computes it, and what it writes to.

    `written` holds positions and names of arguments; `replaces` says that they are results (out=) rather
    than operands too (in-place). `raw` holds what is given as it is: also running statistics, which a norm
    operation casts by itself, as it does with the parameters at `cast_inside`. The `function` of a composite, which is
    torch's own, and of "parts", which is ours for what torch computes in one kernel, calls smaller operations.
    """

    kind: Kind
    name: str
    function: Any
    handler: Handler | None = None
    written: tuple[int | str, ...] = ()
    replaces: bool = False
    raw: tuple[int | str, ...] = ()
    cast_inside: tuple[int | str, ...] = ()
    is_in_place: bool = False


@lru_cache(maxsize=4096)
def plan_of(func: Any) -> Plan:
    """Return the plan of an OpOverload."""
    namespace, _, base = schema_of(func).name.partition("::")
    written = tuple(_written(func))
    if namespace not in ("aten", "prims"):
        full = f"{namespace}.{base}"
        passes = namespace in ("profiler", "prim", "normstab") or full in MOVING
        return Plan("pass", full, func, None, written) if passes else _composite_or_unknown(func, full, written)
    if base.startswith(FOREACH):
        name = base.removeprefix(FOREACH).removesuffix("_")
        return Plan("foreach", name, func, None, written)
    name = base.removesuffix("_") if not base.startswith("__") else base.strip("_").removeprefix("i")
    if name in MADE:
        return Plan("make", name, func, None, written)
    if func.is_view or name in PASSING:
        return Plan("pass", name, func, None, written)
    return _of_computation(func, name, written)


def _of_computation(func: Any, name: str, written: tuple[int | str, ...]) -> Plan:
    """Return the plan of an operation that reads numbers."""
    if name in PARTS:
        return Plan("parts", name, PARTS[name], None, written)
    handler = HANDLERS.get(name)
    if handler is None and (name in EXACT or name in REPLACED):
        own = (
            REPLACED.get(schema_of(func).name.removeprefix("aten::"), func)
            if len(schema_of(func).arguments) == 1
            else func
        )
        own = equal if name == "eq" and not written else own
        return Plan("exact", name, own, None, written, raw=written)
    if handler is None and torch.Tag.pointwise in func.tags:
        handler = wide_elements
    if handler is None:
        return _composite_or_unknown(func, name, written)
    if name in NORM_OPERATIONS:
        names = [argument.name for argument in schema_of(func).arguments]
        raw = tuple(i for i, argument in enumerate(names) if argument in ("running_mean", "running_var"))
        inside = tuple(i for i, argument in enumerate(names) if argument in ("weight", "bias", "gamma"))
        return Plan("rounded", name, func, handler, raw=raw, cast_inside=raw + inside)
    if not written:
        return Plan("rounded", name, func, handler)
    functional = _functional_form(func, name)
    if functional is None:
        return Plan("unknown", name, func, None, written)
    replaces = all(isinstance(where, str) for where in written)
    return Plan("rounded", name, functional, handler, written, replaces, written, is_in_place=written == (0,))


def _written(func: Any) -> list[int | str]:
    """Return the arguments that the schema says are written: positions, or names of keyword-only ones."""
    found: list[int | str] = []
    for i, argument in enumerate(schema_of(func).arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(argument.name if argument.kwarg_only else i)
    return found


def _functional_form(func: Any, name: str) -> Any | None:
    """Return the overload of `name` that takes the same arguments and writes to none."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return None
    wanted = _signature(func)
    for overload in packet.overloads():
        candidate = getattr(packet, overload)
        if not _written(candidate) and _signature(candidate) == wanted:
            return candidate
    return None


def _signature(func: Any) -> list[tuple[str, str]]:
    """Return names and types of the arguments, but for the keyword-only ones that are written."""
    return [
        (argument.name, str(argument.type))
        for argument in schema_of(func).arguments
        if not (argument.kwarg_only and argument.alias_info is not None and argument.alias_info.is_write)
    ]


def _composite_or_unknown(func: Any, name: str, written: tuple[int | str, ...]) -> Plan:
    """Return the plan "composite" where torch itself is made of smaller operations, else "unknown"."""
    if is_composite(func):
        return Plan("composite", name, func.decompose, None, written)
    return Plan("unknown", name, func, None, written)
