"""A write to a parameter: done as torch does it, stored as the machine does, and looked at for what it lost.

A master weight stays wide; a parameter without one is rounded as it is stored. Counted always, write by write, for
training that stands still and a parameter that broke are seen nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.dispatch import PLAIN_DISPATCH, later_for
from normstab.numerics.execute import all_finite
from normstab.numerics.ledger import COUNTERS, Ledger, Row, Site
from normstab.numerics.philox import signed_step
from normstab.numerics.sums.kernels_of_sums import kernels_for
from normstab.numerics.tallies.repeats import Repeats
from normstab.simulation.around.parameters import Held
from normstab.simulation.around.places import Place
from normstab.simulation.aten.overloads import Plan
from normstab.torch_private import is_zero_tensor, modes_off

__all__ = ["update"]

Arguments = tuple[Any, ...]
Named = Mapping[str, Any]
PRODUCED, PROPAGATED = ("nan_produced", "overflow"), ("nan_propagated", "inf_propagated")
MOVES = ("add", "sub", "addcmul", "addcdiv")  # which add a step that can be told from the sum


def update(
    func: Any, plan: Plan, place: Place, held: Held, args: Arguments, kwargs: Named, *, master_weights: bool
) -> Any:
    """Write to the parameter or buffer `held` and return what torch returns."""
    target = args[plan.written[0]] if plan.written == (0,) and held.is_parameter else None
    before, step, is_moved = None, None, None
    if isinstance(target, Tensor) and target.layout == torch.strided:
        with modes_off():
            step = _dense_step(plan, args, kwargs)
            is_moved = _moved(plan, args, kwargs) if step is None else None
            before = target.detach().clone() if step is not None or is_moved is not None else None
    result = func(*args, **kwargs)
    held.invalidate()
    if not held.is_parameter:
        return result
    _count_broken(place, held, plan.name, args)
    if not master_weights and plan.kind in ("rounded", "exact"):
        held.round_in_place(place.direction)
    if before is not None:
        assert isinstance(target, Tensor)
        with modes_off():
            if step is not None:
                _lose(place, plan.name, _kernels(target).lost_updates(before, target, step))
            elif is_moved is not None:
                _count_lost(place, plan.name, (is_moved & (target.detach() == before)).sum())
    return result


def _kernels(x: Tensor) -> Any:
    """Return the kernels that count lost updates on the device of a tensor, or None."""
    return kernels_for(x, None, "lost updates")


def _dense_step(plan: Plan, args: Arguments, kwargs: Named) -> Tensor | None:
    """Return what an addition adds, but for a factor that is not zero, where a kernel can look at it; else None."""
    if plan.name not in ("add", "sub") or len(args) != 2 or kwargs.get("alpha", 1) == 0:
        return None
    target, step = args
    if (
        not isinstance(step, Tensor)
        or step.shape != target.shape
        or type(step).__torch_dispatch__ is not PLAIN_DISPATCH
    ):
        return None
    if not all(x.dtype == torch.float32 and x.is_cpu and x.is_contiguous() and x.numel() for x in args):
        return None
    is_apart = step.untyped_storage().data_ptr() != target.untyped_storage().data_ptr()
    is_plain = is_apart and not step.is_neg() and not is_zero_tensor(step)
    return step.detach() if is_plain and _kernels(target) is not None else None


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
        # A number is filled in on the device: a copy from the host would wait for it.
        whole = wide[1].expand_as(like) if isinstance(wide[1], Tensor) else torch.full_like(like, wide[1])
        return whole if factor != 0 else torch.zeros_like(whole)
    step: Tensor = (wide[1] * wide[2] if name == "addcmul" else wide[1] / wide[2]) * float(kwargs.get("value", 1))
    return step


class Moment(NamedTuple):
    """When and where something may have to be counted; the site comes into being only if it is."""

    ledger: Ledger
    site: Site
    stamp: int
    step: int

    @property
    def row(self) -> Row:
        """The row of the site."""
        return self.ledger.row(self.site)


def _moment(place: Place, operation: str) -> Moment | None:
    """Return the moment of an update; None where nobody counts. Nothing is rounded, and no random bits are drawn."""
    ar = place.arithmetic
    if ar.ledger is None:
        return None
    ledger = ar.ledger.recomputed if ar.clock.replay.follow() else ar.ledger
    return Moment(ledger, Site(ar.site, operation, ar.direction), ar.ledger.stamp(), signed_step(ar.clock.step))


def _count_lost(place: Place, operation: str, number: Tensor) -> None:
    """Count steps that were not zero and left the stored value as it was."""
    later = later_for(number)
    if later is None:
        _lose(place, operation, int(number))
        return
    moment = _moment(place, operation)
    if moment is None:
        return

    def take(found: NDArray[np.int64], repeats: Repeats) -> None:
        lost = found[:, 0, 0]
        if lost.any():
            stamp, step = repeats.first(lost > 0, moment.stamp, moment.step)
            moment.row.lose("lost_updates", int(lost.sum()), stamp=int(stamp), step=int(step))

    later.keep(number, take, [moment.ledger])


def _lose(place: Place, operation: str, number: int) -> None:
    """Count so many lost updates now."""
    moment = _moment(place, operation) if number else None
    if moment is not None:
        moment.row.lose("lost_updates", number, stamp=moment.stamp, step=moment.step)


def _count_broken(place: Place, held: Held, operation: str, operands: Arguments) -> None:
    """Count the NaNs that an update brought into the parameter, at the update's site, once."""
    x = held.tensor.detach()
    later = later_for(x)
    if held.is_broken or place.arithmetic.ledger is None or (later is None and all_finite(x)):
        return
    moment = _moment(place, operation)
    assert moment is not None, "there is a ledger"
    others = [y for y in operands if isinstance(y, Tensor) and y.is_floating_point() and y is not held.tensor]
    if later is None:
        with modes_off():
            is_new = not any(bool((~y.isfinite()).any()) for y in others)
            _mark_broken(held, moment, int(x.isnan().sum()), int(x.isinf().sum()), is_new=is_new)
        return

    def take(found: NDArray[np.int64], repeats: Repeats) -> None:
        broken = found[:, 0, [COUNTERS.index(name) for name in PROPAGATED]]
        happened = broken.sum(axis=1) > 0
        if happened.any() and not held.is_broken:
            i = int(happened.argmax())  # the first time that it did
            stamp, step = repeats.first(happened, moment.stamp, moment.step)
            then, (nans, infs) = moment._replace(stamp=int(stamp), step=int(step)), broken[i].tolist()
            _mark_broken(held, then, nans, infs, is_new=not found[i, 0, len(COUNTERS) :].any())

    later.keep_specials(x, others, take, [moment.ledger])


def _mark_broken(held: Held, moment: Moment, nans: int, infs: int, *, is_new: bool) -> None:
    """Count the numbers that are not finite of a parameter that was, and look at it no more."""
    held.is_broken = True
    counts = np.zeros(len(COUNTERS), np.int64)
    counts[COUNTERS.index("count")] = held.tensor.numel()
    for name, n in zip(PRODUCED if is_new else PROPAGATED, (nans, infs), strict=True):
        counts[COUNTERS.index(name)] = n
    moment.row.add(counts, 0.0, math.inf, stamp=moment.stamp, step=moment.step)
