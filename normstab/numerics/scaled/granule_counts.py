"""What scaled formats lost at one site, beside the ledger's counters: granules, scales, and squares on request.

Live counts and their sums; nothing here judges, and nothing here needs torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["GranuleCounts", "Squares"]


@dataclass(frozen=True)
class Squares:
    """Sums over finite elements: of the squared error of quantizing, and of the squared values; and how many."""

    error: float = 0.0
    signal: float = 0.0
    count: int = 0

    def __add__(self, other: Squares) -> Squares:
        return Squares(self.error + other.error, self.signal + other.signal, self.count + other.count)

    @property
    def mse(self) -> float:
        """The mean squared error; 0 of nothing."""
        return self.error / self.count if self.count else 0.0

    @property
    def sqnr(self) -> float:
        """Signal over quantization noise, in decibels; infinite without noise."""
        if self.error == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.error) if self.signal > 0 else -math.inf


@dataclass(frozen=True)
class GranuleCounts:
    """Granules of zeros, granules whose every element was flushed, the extreme scales of the others, and squares.

    Scales of granules that are neither zero nor broken; with none, `largest_scale` is 0 and `smallest_scale`
    infinite, so that counts add.
    """

    zero_granules: int = 0
    dead_granules: int = 0
    largest_scale: float = 0.0
    smallest_scale: float = math.inf
    squares: Squares | None = None

    def __add__(self, other: GranuleCounts) -> GranuleCounts:
        squares = self.squares
        if other.squares is not None:
            squares = other.squares if squares is None else squares + other.squares
        return GranuleCounts(
            self.zero_granules + other.zero_granules,
            self.dead_granules + other.dead_granules,
            max(self.largest_scale, other.largest_scale),
            min(self.smallest_scale, other.smallest_scale),
            squares,
        )

    @property
    def scale_spread(self) -> float:
        """The log2 of the largest scale over the smallest; 0 without two of them."""
        if not 0 < self.smallest_scale <= self.largest_scale:
            return 0.0
        return math.log2(self.largest_scale) - math.log2(self.smallest_scale)
