"""Which float64 carries the result of an operation to its one rounding, for every format and every operand.

Operands of 24 bits: as numerics section 8 defines it. Wider ones, formats beyond 51 bits and ranges that wrap need
more of the exact result than float64's own operation keeps.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.formats import AnyFormat, FixedFormat
from normstab.numerics.readable.operations import Carried, Operand, carry, widened
from normstab.numerics.readable.wide_operands import carry_wide, exactly, is_wide_scalar, nearest_of, to_odd

__all__ = ["WIDEST_FOLDED", "are_wide", "carried_for", "is_ieee", "wraps"]

WIDEST_FOLDED = 51  # beyond, a carrier rounded to odd at 53 bits does not tell a tie


def are_wide(operands: tuple[Operand, ...]) -> bool:
    """Whether an operand may have more than 24 bits."""
    return any(x.dtype == torch.float64 if isinstance(x, Tensor) else is_wide_scalar(x) for x in operands)


def is_ieee(operation: str, call: Call) -> bool:
    """Whether float64's own operation is the one rounding: to nearest, in a format with all of its numbers."""
    format = call.format
    is_whole = not isinstance(format, FixedFormat) and format.precision == 53 and format.emin == -1022
    return is_whole and call.rounding.mode == "nearest" and operation != "fma"


def wraps(format: AnyFormat) -> bool:
    """Whether results beyond the range are taken modulo it, so that their last bits count."""
    return isinstance(format, FixedFormat) and format.overflow == "wrap"


def carried_for(operation: str, operands: tuple[Operand, ...], call: Call) -> tuple[Carried, Tensor | None]:
    """Return the carrier of `operation`, and, where it was reduced modulo a range, the magnitudes that it had."""
    rounds_down = call.rounding.mode == "down"
    is_narrow = call.format.precision <= WIDEST_FOLDED
    carried = carry(operation, operands, rounds_down=rounds_down, is_rounded=is_narrow)
    is_enough = is_narrow and not are_wide(operands) and not wraps(call.format)
    if is_enough or carried.value.is_meta:  # a tensor of that device has a shape and no numbers
        return carried, None
    wide = torch.broadcast_tensors(*_float64(operands, carried.value))  # type: ignore[no-untyped-call]
    if not is_narrow:
        if is_ieee(operation, call) or call.rounding.is_stochastic:
            return carried, None
        return carried._replace(value=_each(operation, wide, carried.value, call.rounding.mode)), None
    if are_wide(operands):
        value = carry_wide(operation, wide)
        value = torch.where(carried.value == 0, torch.where(value == 0, carried.value, value), value)  # -0 downwards
        carried = carried._replace(value=value)
    if isinstance(call.format, FixedFormat) and wraps(call.format):
        reduced = _reduced(operation, wide, carried.value, call.format)
        if reduced is not None:
            return carried._replace(value=reduced), carried.value
    return carried, None


def _float64(operands: tuple[Operand, ...], like: Tensor) -> list[Tensor]:
    """Return operands as float64 tensors."""
    return [
        widened(x) if isinstance(x, Tensor) else torch.full((), x, dtype=torch.float64, device=like.device)
        for x in operands
    ]


def _each(operation: str, operands: tuple[Tensor, ...], value: Tensor, mode: str) -> Tensor:
    """Return results rounded to float64 in `mode` from whole numbers, element by element."""
    finish, result = nearest_of(mode), value.flatten().clone()
    rows = [x.flatten().tolist() for x in operands]
    for i, numbers in enumerate(zip(*rows, strict=True)):
        if all(abs(x) < torch.inf for x in numbers):
            found = exactly(operation, list(numbers), finish)
            result[i] = result[i] if found is None else found
    return result.view(value.shape)


def _reduced(operation: str, operands: tuple[Tensor, ...], value: Tensor, format: FixedFormat) -> Tensor | None:
    """Return results far beyond the range moved nearer by a whole number of ranges; None where there are none."""
    span = Fraction(2) ** (format.integer_bits + int(format.is_signed))
    where = (value.isfinite() & (value.abs() > float(8 * span))).flatten().nonzero().flatten().tolist()
    if not where:
        return None
    result, rows = value.flatten().clone(), [x.flatten() for x in operands]

    def nearer(x: Fraction) -> float:
        size = 8 * span + abs(x) % span
        return to_odd(-size if x < 0 else size)

    for i in where:
        found = exactly(operation, [float(row[i]) for row in rows], nearer)
        result[i] = result[i] if found is None else found
    return result.view(value.shape)
