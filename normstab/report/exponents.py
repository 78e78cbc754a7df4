"""Plots of exponent histograms: what arrived at the first offending operation and at its neighbours.

From histograms in the records; a record without them has no such plot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normstab.assess.causes.headroom import precision_at, site_format
from normstab.assess.causes.sites import in_order, place_of
from normstab.assess.judgement import GroupJudgement
from normstab.assess.runs import Run
from normstab.numerics.formats import AnyFormat, Format
from normstab.numerics.ledger import Histogram, Tally
from normstab.report.svg import draw

__all__ = ["exponent_plot"]


def exponent_plot(judged: GroupJudgement) -> str | None:
    """Return the exponents at the group's first offence and at the sites before and after it, or None without any.

    Grey is the reference, coloured the cell; lines mark the format's least quantum, least normal and largest value.
    """
    cell = judged.worst
    if cell.blame is None or not any(tally.histogram for tally in cell.run.totals.values()):
        return None
    reference = judged.group.pairs.get(cell.id)
    wide: Mapping[str, Tally] = reference.totals if reference is not None else {}
    sites = _around(cell.run, cell.blame.site)

    def fill(figure: Figure) -> None:
        places = figure.subplots(1, len(sites), squeeze=False)[0]
        for place, site in zip(places, sites, strict=True):
            _bars(place, wide.get(site, Tally()).histogram, "#8c959f", "reference", 1.0)
            _bars(place, cell.run.totals[site].histogram, "#cf222e", "this cell", 0.55)
            _limits(place, _format_of(cell.run, site))
            is_first = cell.blame is not None and site == cell.blame.site
            place.set_title(_broken(site) + ("\n(first offence)" if is_first else "\n"), loc="left", fontsize=8.5)
            place.set_xlabel("exponent (binade)")
            place.grid(visible=False, axis="x")
        places[0].set_ylabel("share of results, %")
        places[-1].legend(loc="upper right")

    return draw(max(4.8, 3.3 * len(sites)), 2.9, fill)


def _around(run: Run, site: str) -> list[str]:
    """Return the sites with a histogram just before, at and after `site`, in the order of the run."""
    direction = site.partition("[")[2]
    names = [name for name, tally in run.totals.items() if tally.histogram and name.endswith(direction)]
    listed = in_order(names, list(run.record.norm_layers))
    if site not in listed:
        return listed[:3]
    at = listed.index(site)
    return listed[max(0, at - 1) : at + 2]


def _broken(site: str, most: int = 34) -> str:
    """Return a site's name in lines short enough for its panel."""
    lines = [""]
    for part in site.replace(".", ".\0").split("\0"):
        is_full = len(lines[-1]) + len(part) > most and lines[-1]
        lines = [*lines, part] if is_full else [*lines[:-1], lines[-1] + part]
    return "\n".join(lines)


def _bars(axes: Axes, histogram: Histogram | None, colour: str, label: str, alpha: float) -> None:
    """Draw a histogram as shares of all its results; zeros, infinities and NaN have no exponent."""
    if histogram is None or not histogram.finite_nonzero:
        return
    exponents = np.array(sorted(histogram.binades))
    total = histogram.finite_nonzero + histogram.zero + histogram.inf + histogram.nan
    shares = np.array([histogram.binades[int(e)] for e in exponents]) / total * 100
    axes.bar(exponents + 0.5, shares, width=0.95, color=colour, alpha=alpha, label=label, lw=0)


def _limits(axes: Axes, limit: AnyFormat | None) -> None:
    """Mark where the format begins and ends."""
    if limit is None:
        return
    marks = {"least": math.log2(limit.min_subnormal), "max": math.log2(limit.max)}
    if isinstance(limit, Format) and limit.has_subnormals:
        marks["normal"] = float(limit.emin)
    low, high = axes.get_xlim()
    for name, place in marks.items():
        if low - 12 <= place <= high + 12:
            axes.axvline(place, color="#1f2328", lw=0.9, ls="-" if name == "max" else ":")
            axes.annotate(f" {name}", (place, 0.99), xycoords=("data", "axes fraction"), va="top", fontsize=7)


def _format_of(run: Run, site: str) -> AnyFormat | None:
    """Return the format a site rounds to: by its role in a norm layer, else the compute format; None where wide."""
    module, operation = place_of(site, run.record.norm_layers)
    precision = precision_at(run, module, operation)
    if precision is None:
        return None
    is_of_norm = module in run.record.norm_layers and site.endswith("[forward]")
    return site_format(precision, operation) if is_of_norm else precision.format()
