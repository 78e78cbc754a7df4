"""What one call adds to a ledger, counted element by element: the oracle of the kernels' counters.

It rounds nothing; `reference` does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.readable.reference import FRACTION_BITS, Decoded, Rounded
from normstab.numerics.tallies.counter_row import BINADES, HISTOGRAM_BINS, INF_BIN, LEAST_BINADE, NAN_BIN, ZERO_BIN
from normstab.numerics.tallies.tally import COUNTERS

__all__ = ["Counts", "count"]


class Counts(NamedTuple):
    """What one call adds to a ledger row: the ten COUNTERS, the two magnitudes, and a histogram."""

    counts: NDArray[np.int64]
    largest: float
    smallest: float
    histogram: NDArray[np.int64]


def count(
    rounded: Rounded, *, operand_nan: Tensor, operand_inf: Tensor, divide_by_zero: Tensor | None = None
) -> Counts:
    """Count the events of one call, given which elements had a NaN or infinite operand."""
    exact, of_finite = rounded.exact, ~(operand_nan | operand_inf)
    is_zero_divided = torch.zeros_like(operand_nan) if divide_by_zero is None else divide_by_zero
    is_nonzero = exact.significand != 0
    # An infinity that float64 itself made of finite operands is an overflow; a division by zero is not.
    carrier_overflow = exact.is_inf & of_finite & ~is_zero_divided
    events = {
        "count": torch.ones_like(operand_nan),
        "overflow": rounded.overflow | carrier_overflow,
        "saturated": rounded.saturated,
        "underflow": is_nonzero & rounded.is_zero,
        "subnormal": rounded.is_subnormal,
        "nan_produced": rounded.is_nan & ~operand_nan,
        "nan_propagated": operand_nan,
        "inf_propagated": rounded.is_inf & operand_inf,
        "divide_by_zero": is_zero_divided,
        "inexact": rounded.is_inexact,
    }
    counts = torch.stack([events[name].sum() for name in COUNTERS]).cpu().numpy().astype(np.int64)
    magnitudes = _truncated_to_float32(exact)[is_nonzero]
    largest, smallest = (magnitudes.max().item(), magnitudes.min().item()) if len(magnitudes) else (0.0, np.inf)
    return Counts(counts, largest, smallest, histogram_of(exact))


def _truncated_to_float32(exact: Decoded) -> Tensor:
    """Return finite |x| rounded to float32 toward zero, by bits."""
    below = (-126 - exact.exponent).clamp(0, 40)
    fraction = exact.significand >> (FRACTION_BITS - 23 + below)
    normal = ((exact.exponent + 127) << 23) | (fraction & 0x7FFFFF)
    bits = torch.where(exact.exponent < -126, fraction, normal)
    bits = torch.where(exact.exponent > 127, 0x7F7FFFFF, bits)
    return bits.to(torch.int32).view(torch.float32)


def histogram_of(exact: Decoded) -> NDArray[np.int64]:
    """Return how many exact results fell into each bin of the ledger's histogram."""
    bins = torch.where(exact.significand == 0, ZERO_BIN, exact.exponent - LEAST_BINADE)
    bins = torch.where(exact.is_inf, INF_BIN, torch.where(exact.is_nan, NAN_BIN, bins))
    assert BINADES == ZERO_BIN
    return torch.bincount(bins.flatten(), minlength=HISTOGRAM_BINS).cpu().numpy().astype(np.int64)
