"""What a sum loses without overflow: operands that are absorbed, and leading bits that cancel.

Counted on the rounded result of every add, sub and fma, and on every addition inside a sum, where the ledger asked
for `losses`. The kernels count the same with the sums: `lost_bits` of the CPU, `losses_bits` of CUDA.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.formats import AnyFormat
from normstab.numerics.precision import NEAREST
from normstab.numerics.readable.operations import Operand, widened
from normstab.numerics.readable.reference import round_reference
from normstab.numerics.tallies.repeats import ONCE, Repeats

__all__ = ["SUMMING", "count_losses", "count_losses_of_sum", "counts_losses", "half_of_precision", "lose"]

SUMMING = ("add", "sub", "fma")
"""The operations that absorb and cancel."""
LOSSES_OF_SUMS = ("absorbed", "cancelled")
BELOW_ALL = -(2**15)  # an exponent for zero, which has none


def counts_losses(call: Call) -> bool:
    """Whether what each addition loses is counted."""
    return call.row is not None and call.row.counts_losses


def lose(call: Call, counts: NDArray[np.int64], repeats: Repeats = ONCE) -> None:
    """Add how many additions of a call absorbed and cancelled: a row for each time that it ran."""
    if call.row is not None:
        firsts = zip(*repeats.first(counts > 0, call.stamp, call.step), strict=True)
        for counter, count, (stamp, step) in zip(LOSSES_OF_SUMS, counts.sum(axis=0).tolist(), firsts, strict=True):
            call.row.lose(counter, count, stamp=int(stamp), step=int(step))


def count_losses(operation: str, operands: tuple[Operand, ...], result: Tensor, call: Call) -> None:
    """Count what `operation` (add, sub or fma) of `operands` lost on the way to its rounded `result`.

    x - x of one tensor is no cancellation. The operands of a fma are its product, rounded to the format, and its
    addend.
    """
    if operation == "sub" and operands[0] is operands[1]:
        return
    wide = [_wide(x, result) for x in operands]
    if operation == "fma":
        product = round_reference(wide[0] * wide[1], call.format, NEAREST).value
        wide = [product, wide[2]]
    count_losses_of_sum(wide[0], -wide[1] if operation == "sub" else wide[1], widened(result), call)


def count_losses_of_sum(a: Tensor, b: Tensor, result: Tensor, call: Call) -> None:
    """Count, of `result` = a + b rounded (float64 tensors that broadcast), the elements absorbed and cancelled.

    Absorbed: the result equals one operand, and the other is finite and not zero. Cancelled: of two operands that are
    finite and not zero, the result is zero, or its exponent at least p/2 binades below the larger operand's.
    """
    row = call.row
    if row is None or not row.counts_losses or result.numel() == 0:
        return
    is_term = a.isfinite() & (a != 0), b.isfinite() & (b != 0)
    absorbed = ((result == a) & is_term[1]) | ((result == b) & is_term[0])
    larger = torch.maximum(_exponent(a), _exponent(b))
    is_far = _exponent(result) <= larger - half_of_precision(call.format)
    cancelled = is_term[0] & is_term[1] & result.isfinite() & is_far
    lose(call, np.array([[int(absorbed.sum()), int(cancelled.sum())]]))


def _wide(x: Operand, like: Tensor) -> Tensor:
    """Return an operand as a float64 tensor."""
    return widened(x) if isinstance(x, Tensor) else torch.full((), x, dtype=torch.float64, device=like.device)


def _exponent(x: Tensor) -> Tensor:
    """Return floor(log2 |x|) and one; BELOW_ALL of zero."""
    return torch.where(x == 0, BELOW_ALL, torch.frexp(x).exponent)


def half_of_precision(format: AnyFormat) -> int:
    """Return ceil(p / 2)."""
    return -(-format.precision // 2)
