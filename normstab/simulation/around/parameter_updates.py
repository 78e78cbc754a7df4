"""A write to a parameter: done as torch does it, stored as the machine does, and looked at for what it lost.

A master weight stays wide; a parameter without one is rounded as it is stored. Counted always, write by write, for
training that stands still and a parameter that broke are seen nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.ledger import COUNTERS
from normstab.numerics.precision import NEAREST
from normstab.simulation.around.parameters import Held
from normstab.simulation.around.places import Place
from normstab.simulation.aten.overloads import Plan
from normstab.torch_private import modes_off

__all__ = ["update"]

Arguments = tuple[Any, ...]
Named = Mapping[str, Any]
MOVES = ("add", "sub", "addcmul", "addcdiv")  # which add a step that can be told from the sum


def update(
    func: Any, plan: Plan, place: Place, held: Held, args: Arguments, kwargs: Named, *, master_weights: bool
) -> Any:
    """Write to the parameter or buffer `held` and return what torch returns."""
    target = args[plan.written[0]] if plan.written == (0,) and held.is_parameter else None
    before, is_moved = None, None
    if isinstance(target, Tensor) and target.layout == torch.strided:
        with modes_off():
            is_moved = _moved(plan, args, kwargs)
            before = target.detach().clone() if is_moved is not None else None
    result = func(*args, **kwargs)
    held.invalidate()
    if not held.is_parameter:
        return result
    _count_broken(place, held, plan.name, args)
    if not master_weights and plan.kind in ("rounded", "exact"):
        held.round_in_place(place.direction)
    if before is not None and is_moved is not None:
        with modes_off():
            _count_lost(place, plan.name, int((is_moved & (target.detach() == before)).sum()))  # type: ignore[union-attr]
    return result


def _moved(plan: Plan, args: Arguments, kwargs: Named) -> Tensor | None:
    """Return which elements the update means to change; None where that cannot be told."""
    tensors = [x for x in args if isinstance(x, Tensor)]
    if any(x.layout != torch.strided or x.is_complex() or x.is_meta or x.device != tensors[0].device for x in tensors):
        return None
    if plan.name in MOVES:
        return _step(plan.name, args, kwargs) != 0
    if plan.kind == "rounded" or (plan.name == "copy" and tensors[-1].is_floating_point()):
        wide = tuple(x.detach().double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)
        wanted = wide[1] if plan.name == "copy" else plan.function(*wide, **kwargs)
        return wanted != wide[0] if isinstance(wanted, Tensor) else None
    return None


def _step(name: str, args: Arguments, kwargs: Named) -> Tensor:
    """Return what an addition adds, up to its sign, in float64: a step that float32 flushes is one all the same."""
    wide = [x.detach().double() if isinstance(x, Tensor) else x for x in args]
    like = wide[0]
    if name in ("add", "sub"):
        factor = kwargs.get("alpha", wide[2] if len(wide) > 2 else 1)
        whole: Tensor = torch.as_tensor(wide[1], dtype=torch.float64, device=like.device).expand_as(like)
        return whole if factor != 0 else torch.zeros_like(whole)
    step: Tensor = (wide[1] * wide[2] if name == "addcmul" else wide[1] / wide[2]) * float(kwargs.get("value", 1))
    return step


def _call(place: Place, operation: str) -> Call:
    """Return where to count; nothing is rounded, and so no random bits are drawn."""
    return place.arithmetic.call(operation, rounding=NEAREST)


def _count_lost(place: Place, operation: str, count: int) -> None:
    """Count steps that were not zero and left the stored value as it was."""
    if count:
        call = _call(place, operation)
        if call.row is not None:
            call.row.lose("lost_updates", count, stamp=call.stamp, step=call.step)


def _count_broken(place: Place, held: Held, operation: str, operands: Arguments) -> None:
    """Count the NaNs that an update brought into the parameter, at the update's site, once."""
    if held.is_broken or bool(held.tensor.detach().isfinite().all()):
        return
    held.is_broken = True
    with modes_off():
        call, x = _call(place, operation), held.tensor.detach()
        others = [y for y in operands if isinstance(y, Tensor) and y.is_floating_point() and y is not held.tensor]
        is_new = not any(bool((~y.isfinite()).any()) for y in others)
        if call.row is not None:
            names = ("nan_produced", "overflow") if is_new else ("nan_propagated", "inf_propagated")
            counts = np.zeros_like(call.row.counts)
            counts[COUNTERS.index("count")] = x.numel()
            counts[COUNTERS.index(names[0])] = int(x.isnan().sum())
            counts[COUNTERS.index(names[1])] = int(x.isinf().sum())
            call.row.add(counts, 0.0, math.inf, stamp=call.stamp, step=call.step)
