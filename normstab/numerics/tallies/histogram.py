"""How many exact results fell into each binade, as plain data; the ledger fills it when asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Histogram"]


@dataclass(frozen=True)
class Histogram:
    """How many exact results fell into each binade [2^e, 2^(e+1)), were zero, infinite or NaN."""

    binades: Mapping[int, int] = field(default_factory=dict)
    zero: int = 0
    inf: int = 0
    nan: int = 0

    def __add__(self, other: Histogram) -> Histogram:
        binades = dict(self.binades)
        for exponent, n in other.binades.items():
            binades[exponent] = binades.get(exponent, 0) + n
        return Histogram(
            dict(sorted(binades.items())), self.zero + other.zero, self.inf + other.inf, self.nan + other.nan
        )

    @property
    def finite_nonzero(self) -> int:
        """How many results were finite and not zero."""
        return sum(self.binades.values())
