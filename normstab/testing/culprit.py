"""Who made the error: the operation whose own rounding moved its result furthest from the wide run's.

Compares two runs of one module, operation by operation; it knows nothing of tolerances. What float32 does as well, such
as a logarithm of zero, is no fault of a narrower format.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch import Tensor

from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger, Site
from normstab.simulation.loss_scale import LossScaler
from normstab.simulation.run import Run

__all__ = ["Culprit", "Own", "Trace", "find_culprit", "own_offences"]

# A distance from which a forward result is spoilt: what a backward one shows after that is a symptom.
SPOILT = 0.1

# Gravest first: what makes a value that is not a number comes before what loses one.
OFFENCES = {
    "nan_produced": "produced NaN",
    "overflow": "overflowed",
    "divide_by_zero": "divided by zero",
    "saturated": "saturated",
}


Own = frozenset[tuple[str, Site]]
"""Offences of the network itself: those that its float32 run has too, at the same site."""
SHARED = ("overflow", "divide_by_zero", "nan_produced")


def own_offences(ledger: Ledger, run_in_float32: Callable[[Ledger], object]) -> Own:
    """Return the counters and sites whose offences a run in float32, made only where there are any, has too."""
    if ledger.first(*SHARED) is None:
        return frozenset()
    wide = Ledger()
    run_in_float32(wide)
    return frozenset(
        (counter, site)
        for site, tally in wide.items()
        for counter in SHARED
        if getattr(tally, counter) and site in ledger and getattr(ledger[site], counter)
    )


@dataclass
class Trace:
    """The results of one run in order of execution; with `most`, evenly spaced elements of each, at least so many."""

    most: int = 0
    results: list[tuple[Site, Tensor]] = field(default_factory=list)
    run: Run = field(default_factory=lambda: Run(Arithmetic("fp64", ledger=Ledger()), LossScaler()))

    def see(self, site: Site, result: Tensor) -> None:
        """Keep a copy of an operation's result."""
        kept = result.detach()
        if self.most and kept.numel() >= 2 * self.most:
            kept = kept.reshape(-1)[:: kept.numel() // self.most]
        self.results.append((site, kept.double().cpu()))


@dataclass(frozen=True)
class Culprit:
    """The site that made the error, the site that laid it bare where that is another, and a sentence."""

    site: Site | None
    sentence: str
    seen: Site | None = None


def find_culprit(narrow: Trace, wide: Trace, ledger: Ledger, own: Collection[tuple[str, Site]] = ()) -> Culprit:
    """Return the site where the error was made; `own` are offences that float32 has too, which explain nothing.

    The first site that produced a NaN, overflowed or divided by zero, if any did; else the operation at
    which the relative distance between the runs grew most, or, if that only laid bare an error that was
    there before (cancellation), the one that made it. A backward site is named only where the forward pass is sound.
    """
    distances = _distances(narrow, wide)
    forward = [i for i, distance in enumerate(distances) if distance.site.direction == "forward"]
    is_spoilt = any(distances[i].relative >= SPOILT for i in forward)
    first = ledger.first(*OFFENCES, besides=own)
    if first is not None and not (is_spoilt and first.site.direction == "backward"):
        tally = ledger[first.site]
        found = (
            text for counter, text in OFFENCES.items() if getattr(tally, counter) and (counter, first.site) not in own
        )
        text = next(found)
        sentence = f"Made at: {first.site} {text} first (largest exact result there {tally.largest:.6g})"
        return Culprit(first.site, sentence)
    candidates = forward if is_spoilt else range(len(distances))
    if not candidates:
        return Culprit(None, "Made at: no single operation")
    shown = max(candidates, key=lambda i: distances[i].growth)
    made = shown
    while made and distances[made - 1].absolute >= distances[shown].absolute / 2:
        made -= 1
    seen = distances[shown]
    grew = f"the relative distance to the wide run grew from {seen.before:.3g} to {seen.relative:.3g}"
    if made == shown:
        return Culprit(seen.site, f"Made at: {seen.site}, where {grew}")
    sentence = f"Made at: {distances[made].site}, by rounding; seen at {seen.site}, where {grew} by cancellation"
    return Culprit(distances[made].site, sentence, seen.site)


@dataclass(frozen=True)
class _Distance:
    """Of one operation's results in the two runs: the distance, relative (at most 1) too, and the largest before."""

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
        scale, absolute = float(b.norm()), float((a - b).nan_to_num(float("inf")).norm())
        relative = min(1.0, absolute / scale) if scale else float(absolute > 0)
        distances.append(_Distance(site, absolute, relative, reached))
        reached = max(reached, relative)
    return distances
