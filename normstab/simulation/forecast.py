"""What the exponents of a plain run foretell: the shares of its results that a format would overflow and flush.

Nothing is run again: a forecast holds while the values stay as float32 had them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from normstab.numerics.formats import FORMATS, AnyFormat, parse_format
from normstab.numerics.ledger import Histogram, Tally

__all__ = ["NARROW", "Forecast", "forecast_of", "percent", "predicted"]

NARROW = tuple(name for name, format in FORMATS.items() if format.precision < FORMATS["fp32"].precision)
"""The presets that are narrower than float32."""
MOST_SITES = 8


@dataclass(frozen=True)
class Forecast:
    """Of one format: the shares of finite nonzero results that it would overflow and flush, in all and by site.

    `sites` has the sites that would lose anything, those of most loss first, each with its two shares.
    """

    format: str
    overflow: float
    underflow: float
    sites: Mapping[str, tuple[float, float]]

    @property
    def worst_site(self) -> str:
        """The site that would lose the greatest share; empty where none would lose any."""
        return next(iter(self.sites), "")

    @property
    def worst_share(self) -> float:
        """The share that the worst site would lose."""
        return sum(self.sites[self.worst_site]) if self.sites else 0.0

    def __str__(self) -> str:
        if not self.sites:
            return f"{self.format}: nothing would overflow or become zero"
        over, under = percent(self.overflow), percent(self.underflow)
        lines = [f"{self.format}: {over} of the results would overflow, {under} become zero; worst:"]
        names = list(self.sites)[:MOST_SITES]
        width = max(map(len, names))
        for name in names:
            over, under = map(percent, self.sites[name])
            lines.append(f"  {name:{width}}  {over} overflow, {under} to zero")
        left = len(self.sites) - len(names)
        return "\n".join([*lines, *([f"  and {left} more sites"] if left else [])])


def forecast_of(totals: Mapping[Any, Tally], format: str | AnyFormat) -> Forecast:
    """Return what the histograms of a plain run foretell for `format`; keys of `totals` are sites or their names."""
    limit = parse_format(format)
    over = under = total = 0.0
    sites = {}
    for site, tally in totals.items():
        if tally.histogram is None or not tally.histogram.finite_nonzero:
            continue
        n, lost = tally.histogram.finite_nonzero, predicted(tally.histogram, limit)
        over, under, total = over + n * lost[0], under + n * lost[1], total + n
        if any(lost):
            sites[str(site)] = lost
    worst = dict(sorted(sites.items(), key=lambda found: (-sum(found[1]), found[0])))
    return Forecast(str(limit), over / max(total, 1.0), under / max(total, 1.0), worst)


def predicted(histogram: Histogram, limit: AnyFormat) -> tuple[float, float]:
    """Return the shares of finite nonzero values that overflow and that vanish, rounded to nearest.

    A binade counts as overflow when its least value exceeds `max`, and as zero when all of it is below half
    the least quantum: values that a binade's border splits are given to the format.
    """
    total = histogram.finite_nonzero
    greatest, vanishing = math.frexp(limit.max)[1] - 1, math.log2(limit.min_subnormal) - 1
    over = sum(n for e, n in histogram.binades.items() if e > greatest)
    under = sum(n for e, n in histogram.binades.items() if e < vanishing)
    return (over / total, under / total) if total else (0.0, 0.0)


def percent(share: float) -> str:
    """Return a share as a short percentage."""
    value = 100 * share
    return "0 %" if share == 0 else f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"
