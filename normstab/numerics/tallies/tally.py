"""What rounding destroyed at one site, as plain data: the counters by name, and the Tally that adds them up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from normstab.numerics.scaled.granule_counts import GranuleCounts
from normstab.numerics.tallies.histogram import Histogram

__all__ = ["COUNTERS", "LOSSES", "Tally"]

# The order is the layout of Row.buffer, which the kernels write.
COUNTERS = (
    "count",
    "overflow",
    "saturated",
    "underflow",
    "subnormal",
    "nan_produced",
    "nan_propagated",
    "inf_propagated",
    "divide_by_zero",
    "inexact",
)
# What a sum lost that its rounding alone does not show; see `readable.losses`.
LOSSES = ("absorbed", "cancelled", "lost_updates")


@dataclass(frozen=True)
class Tally:
    """Counts at one site, and the largest and smallest finite nonzero magnitude that arrived there.

    The magnitudes are exact results rounded to float32 toward zero; with none seen, `largest` is 0 and
    `smallest` infinity, so that tallies add. `inexact` and `histogram` are None unless the ledger asked; `absorbed`
    and `cancelled` are counted only where it asked for losses.
    """

    count: int = 0
    overflow: int = 0
    saturated: int = 0
    underflow: int = 0
    subnormal: int = 0
    nan_produced: int = 0
    nan_propagated: int = 0
    inf_propagated: int = 0
    divide_by_zero: int = 0
    absorbed: int = 0
    cancelled: int = 0
    lost_updates: int = 0
    inexact: int | None = None
    largest: float = 0.0
    smallest: float = float("inf")
    histogram: Histogram | None = None
    granules: GranuleCounts | None = None

    @property
    def zero_granules(self) -> int:
        """How many granules of a scaled format were all zeros."""
        return self.granules.zero_granules if self.granules else 0

    @property
    def dead_granules(self) -> int:
        """How many granules of a scaled format had every element flushed."""
        return self.granules.dead_granules if self.granules else 0

    @property
    def scale_spread(self) -> float:
        """The log2 of the largest scale over the smallest."""
        return self.granules.scale_spread if self.granules else 0.0

    @property
    def mse(self) -> float | None:
        """The mean squared error of quantizing; None unless the ledger asked."""
        return self.granules.squares.mse if self.granules and self.granules.squares else None

    @property
    def sqnr(self) -> float | None:
        """Signal over quantization noise in decibels; None unless the ledger asked."""
        return self.granules.squares.sqnr if self.granules and self.granules.squares else None

    def __add__(self, other: Tally) -> Tally:
        sums: dict[str, Any] = {
            name: _total(getattr(self, name), getattr(other, name)) for name in (*COUNTERS, *LOSSES)
        }
        sums["histogram"] = _total(self.histogram, other.histogram)
        sums["granules"] = _total(self.granules, other.granules)
        largest, smallest = max(self.largest, other.largest), min(self.smallest, other.smallest)
        return Tally(**sums, largest=largest, smallest=smallest)


def _total(a: Any, b: Any) -> Any:
    """Return a + b, where None means that it was not counted."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
