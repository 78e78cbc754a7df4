"""What if: predicted overflow and underflow of every site in every format, from the reference run alone.

From the exponent histograms of a plain float32 run; nothing is trained again. A prediction holds while the
values stay as the reference had them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from normstab.assess.constants import constant
from normstab.assess.runs import Run
from normstab.numerics.formats import FORMATS
from normstab.numerics.ledger import Histogram
from normstab.simulation.forecast import predicted

__all__ = ["WHATIF_FORMATS", "forecast", "smallest_range"]

WHATIF_FORMATS = ("fp16", "bf16", "e5m2", "e4m3fn", "e5m2fnuz", "e4m3fnuz")
"""The presets that a what-if table shows: those in hardware with a range of their own."""


@dataclass(frozen=True)
class Range:
    """The smallest run of binades that covers the wanted share, and the exponent bits whose normals span it."""

    low: int
    high: int
    exponent_bits: int


@dataclass(frozen=True)
class SiteForecast:
    """One site: its range, and per format the share of its finite nonzero results that would over- and underflow."""

    site: str
    count: int
    range: Range
    overflow: Mapping[str, float]
    underflow: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The worst share over all formats, overflow before underflow."""
        return max(self.overflow.values()) * 10 + max(self.underflow.values())


def forecast(run: Run) -> list[SiteForecast]:
    """Return a forecast for every site with a histogram, the worst first; empty where none was recorded."""
    sites = []
    for site, tally in run.totals.items():
        if tally.histogram is None or not tally.histogram.finite_nonzero:
            continue
        shares = {name: predicted(tally.histogram, FORMATS[name]) for name in WHATIF_FORMATS}
        over, under = ({name: pair[i] for name, pair in shares.items()} for i in (0, 1))
        sites.append(SiteForecast(site, tally.count, smallest_range(tally.histogram), over, under))
    return sorted(sites, key=lambda found: (-found.worst, found.site))


def smallest_range(histogram: Histogram) -> Range:
    """Return the narrowest run of binades that holds `headroom_share` of the finite nonzero values.

    Of equally narrow ones, the highest. X exponent bits have 2^X - 2 normal binades (IEEE 754 layout).
    """
    binades = sorted(histogram.binades.items())
    needed = math.ceil(constant("headroom_share") * histogram.finite_nonzero)
    best, start, held = (math.inf, 0, 0), 0, 0
    for end, (high, n) in enumerate(binades):
        held += n
        while held - binades[start][1] >= needed and start < end:
            held -= binades[start][1]
            start += 1
        if held >= needed:
            best = min(best, (high - binades[start][0], -high, binades[start][0]))
    width, high, low = int(best[0]) + 1, -int(best[1]), int(best[2])
    return Range(low, high, max(2, math.ceil(math.log2(width + 2))))
