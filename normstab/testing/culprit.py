"""Who made the error: the operation whose own rounding moved its result furthest from the wide run's.

Compares two runs of one module, operation by operation; it knows nothing of tolerances.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from normstab.numerics.ledger import Ledger, Site

__all__ = ["Trace", "find_culprit"]

# Gravest first: what makes a value that is not a number comes before what loses one.
OFFENCES = {
    "nan_produced": "produced NaN",
    "overflow": "overflowed",
    "divide_by_zero": "divided by zero",
    "saturated": "saturated",
}


@dataclass
class Trace:
    """The results of one run in order of execution."""

    results: list[tuple[Site, Tensor]] = field(default_factory=list)
    unrecognised: Counter[str] = field(default_factory=Counter)

    def see(self, site: Site, result: Tensor) -> None:
        """Keep a copy of an operation's result."""
        self.results.append((site, result.detach().double().cpu()))


def find_culprit(narrow: Trace, wide: Trace, ledger: Ledger) -> str:
    """Return a sentence that names the site where the error was made.

    The first site that produced a NaN, overflowed or divided by zero, if any did; else the operation at
    which the relative distance between the runs grew most, or, if that only laid bare an error that was
    there before (cancellation), the one that made it.
    """
    first = ledger.first(*OFFENCES)
    if first is not None:
        tally = ledger[first.site]
        text = next(text for counter, text in OFFENCES.items() if getattr(tally, counter))
        return f"Made at: {first.site} {text} first (largest exact result there {tally.largest:.6g})"
    distances = _distances(narrow, wide)
    if not distances:
        return "Made at: no single operation"
    shown = max(range(len(distances)), key=lambda i: distances[i].growth)
    made = shown
    while made and distances[made - 1].absolute >= distances[shown].absolute / 2:
        made -= 1
    seen = distances[shown]
    grew = f"the relative distance to the wide run grew from {seen.before:.3g} to {seen.relative:.3g}"
    if made == shown:
        return f"Made at: {seen.site}, where {grew}"
    return f"Made at: {distances[made].site}, by rounding; seen at {seen.site}, where {grew} by cancellation"


@dataclass(frozen=True)
class _Distance:
    """Of one operation's results in the two runs: the distance, itself and relative, and the largest one before."""

    site: Site
    absolute: float
    relative: float
    before: float

    @property
    def growth(self) -> float:
        """How much further apart the runs are than anywhere before."""
        return self.relative - self.before


def _distances(narrow: Trace, wide: Trace) -> list[_Distance]:
    """Return the distances of the operations that both runs have in common, in order of execution."""
    distances: list[_Distance] = []
    reached = 0.0
    for (site, a), (other, b) in zip(narrow.results, wide.results, strict=False):
        if site != other or a.shape != b.shape:
            break
        scale, absolute = float(b.norm()), float((a - b).norm())
        relative = absolute / scale if scale else absolute
        distances.append(_Distance(site, absolute, relative, reached))
        reached = max(reached, relative)
    return distances
