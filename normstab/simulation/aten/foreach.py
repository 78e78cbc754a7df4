"""The foreach forms of torch, which take lists: the operations on single tensors that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from normstab.simulation.aten.overloads import Plan

__all__ = ["calls_of"]

Arguments = tuple[Any, ...]
Named = Mapping[str, Any]


def calls_of(plan: Plan, args: Arguments, kwargs: Named) -> tuple[Any, list[tuple[Arguments, Named]]] | None:
    """Return the operation of single tensors and its arguments for each; None where torch has no such operation."""
    packet = getattr(torch.ops.aten, plan.name + ("_" if plan.written else ""), None)
    lists = [x for x in args if isinstance(x, list | tuple)]
    if packet is None or not lists:
        return None
    if plan.name in ("addcmul", "addcdiv") and len(args) > 3:
        factors = args[3].tolist() if isinstance(args[3], Tensor) else args[3]
        args, kwargs = args[:3], {**kwargs, "value": factors}
    return packet, [
        (tuple(_nth(x, i) for x in args), {name: _nth(x, i) for name, x in kwargs.items()})
        for i in range(len(lists[0]))
    ]


def _nth(x: Any, i: int) -> Any:
    """Return element `i` of a list, or what is meant for every element."""
    return x[i] if isinstance(x, list | tuple) else x
