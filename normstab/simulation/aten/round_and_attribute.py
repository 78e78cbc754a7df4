"""Round a result that torch computed, count it, and tell what was produced here from what was only passed on.

The one way from a kernel of torch to the arithmetic. A kernel's result shows its NaNs but not whose they
are: the operands are looked at when there are any.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from normstab.numerics.call import Call, Operands
from normstab.numerics.dispatch import later_for
from normstab.numerics.execute import round_tensor
from normstab.numerics.formats import AnyFormat
from normstab.numerics.ledger import COUNTERS, Row
from normstab.numerics.readable.reference import encode

__all__ = ["FLOATING", "floating_tensors", "narrow", "settle", "settle_elements"]

# The dtypes that carry emulated numbers.
FLOATING = (torch.float32, torch.float64)
LEAST_NORMAL_FLOAT32 = 2.0**-126
OVERFLOW, NAN_PRODUCED = COUNTERS.index("overflow"), COUNTERS.index("nan_produced")
DIVIDE_BY_ZERO = COUNTERS.index("divide_by_zero")
NAN_PROPAGATED, INF_PROPAGATED = COUNTERS.index("nan_propagated"), COUNTERS.index("inf_propagated")


def settle(result: Tensor, call: Call, operands: Iterable[object]) -> Tensor:
    """Round `result`, a fresh tensor, in place.

    A NaN counts as produced when no operand holds one, an infinity as overflow likewise: every element of
    the result may depend on every element of the operands.
    """
    row = call.row
    if row is None:
        return round_tensor(result, call, out=result)
    if later_for(result, call) is not None:  # the device asks, and nobody waits for the answer
        of = Operands(tuple(floating_tensors(operands)))
        return round_tensor(result, call._replace(operands=of), out=result)
    nan_before, inf_before = row.counts[NAN_PROPAGATED], row.counts[INF_PROPAGATED]
    round_tensor(result, call, out=result)
    nan_count = int(row.counts[NAN_PROPAGATED] - nan_before)
    inf_count = int(row.counts[INF_PROPAGATED] - inf_before)
    if nan_count or inf_count:
        tensors = list(floating_tensors(operands))
        if nan_count and not any(bool(x.isnan().any()) for x in tensors):
            _move(row, call, nan_count, NAN_PROPAGATED, NAN_PRODUCED)
        if inf_count and not any(bool(x.isinf().any()) for x in tensors):
            _move(row, call, inf_count, INF_PROPAGATED, OVERFLOW)
    return result


def settle_elements(result: Tensor, call: Call, operands: Iterable[object], *, has_poles: bool = False) -> Tensor:
    """Round `result`, a fresh tensor, in place, each element of which depends on the operands' at its place.

    An infinity of finite operands is an overflow, or, of a function that `has_poles` and grows past float64 nowhere
    else, a division by zero (IEEE 754-2019, 7.3).
    """
    row = call.row
    if row is None:
        return round_tensor(result, call, out=result)
    if later_for(result, call) is not None:
        of = Operands(tuple(floating_tensors(operands)), are_elementwise=True, has_poles=has_poles)
        return round_tensor(result, call._replace(operands=of), out=result)
    nan_before, inf_before = row.counts[NAN_PROPAGATED], row.counts[INF_PROPAGATED]
    round_tensor(result, call, out=result)
    nan_count = int(row.counts[NAN_PROPAGATED] - nan_before)
    inf_count = int(row.counts[INF_PROPAGATED] - inf_before)
    if nan_count:
        passed_on = _any_of([x.isnan() for x in floating_tensors(operands)], result)
        _move(row, call, nan_count - int((result.isnan() & passed_on).sum()), NAN_PROPAGATED, NAN_PRODUCED)
    if inf_count:
        passed_on = _any_of([x.isinf() for x in floating_tensors(operands)], result)
        born = DIVIDE_BY_ZERO if has_poles else OVERFLOW
        _move(row, call, inf_count - int((result.isinf() & passed_on).sum()), INF_PROPAGATED, born)
    return result


def narrow(value: Tensor, dtype: torch.dtype, format: AnyFormat) -> Tensor:
    """Return float64 `value`, already rounded to `format`, as `dtype`, also under flush-to-zero."""
    if value.dtype == dtype:
        return value
    if dtype == torch.float32 and format.fits_float32 and format.min_subnormal < LEAST_NORMAL_FLOAT32:
        return encode(value, dtype).view(value.shape)
    return value.to(dtype)


def floating_tensors(operands: Iterable[object]) -> Iterable[Tensor]:
    """Yield the floating tensors among `operands`, those in lists too."""
    for x in operands:
        if isinstance(x, Tensor):
            if x.is_floating_point() or x.is_complex():
                yield x
        elif isinstance(x, list | tuple):
            yield from floating_tensors(x)


def _any_of(masks: list[Tensor], result: Tensor) -> Tensor:
    """Return where any of the masks holds, in the shape of the result."""
    found = torch.zeros_like(result, dtype=torch.bool)
    for mask in masks:
        found |= mask
    return found


def _move(row: Row, call: Call, count: int, old: int, new: int) -> None:
    """Count `count` events as `new` instead of `old`, first offences included."""
    if count <= 0:
        return
    row.counts[old] -= count
    row.counts[new] += count
    if row.first_stamp[new] < 0:
        row.first_stamp[new], row.first_step[new] = call.stamp, call.step
    if row.first_stamp[old] == call.stamp and row.counts[old] == 0:
        row.first_stamp[old], row.first_step[old] = -1, -1
