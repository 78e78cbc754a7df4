"""Plots of exponent histograms: what arrived at the first offending operation and at its neighbours.

From histograms in the records; a record without them has no such plot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from normstab.assess.causes.headroom import precision_at, site_format
from normstab.assess.causes.sites import in_order, place_of
from normstab.assess.judgement import GroupJudgement
from normstab.assess.runs import Run
from normstab.numerics.formats import AnyFormat, Format
from normstab.numerics.ledger import Histogram, Tally
from normstab.report.pictures.panels import Frame, Sketch, small_multiples
from normstab.report.pictures.svg import BAND, COLOURS, INK

__all__ = ["BINADES", "LEFT_OUT", "drawn_exponents", "exponent_plot", "mark_limits"]

LEFT_OUT = 0.01
"""The share of the results, the least ones, that may lie left of a picture: a few reach hundreds of binades down."""
BINADES = f"binade; the least {100 * LEFT_OUT:g} % left out"
"""What an axis of exponents says."""


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

    def sketch(site: str) -> Sketch:
        def paint(axes: Axes) -> None:
            _bars(axes, wide.get(site, Tally()).histogram, BAND, "reference", 0.9)
            _bars(axes, cell.run.totals[site].histogram, COLOURS[6], "this cell", 0.6)
            mark_limits(axes, _limits(_format_of(cell.run, site)))

        is_first = cell.blame is not None and site == cell.blame.site
        return Sketch(f"{site} (first offence)" if is_first else site, paint)

    frame = Frame(
        f"exponent ({BINADES})",
        "share of results, %",
        columns=len(sites),
        height=1.6,
    )
    return small_multiples([sketch(site) for site in sites], frame)


def _around(run: Run, site: str) -> list[str]:
    """Return the sites with a histogram just before, at and after `site`, in the order of the run."""
    direction = site.partition("[")[2]
    names = [name for name, tally in run.totals.items() if tally.histogram and name.endswith(direction)]
    listed = in_order(names, list(run.record.norm_layers))
    if site not in listed:
        return listed[:3]
    at = listed.index(site)
    return listed[max(0, at - 1) : at + 2]


def _bars(axes: Axes, histogram: Histogram | None, colour: str, label: str, alpha: float) -> None:
    """Draw a histogram as shares of all its results; zeros, infinities and NaN have no exponent."""
    if histogram is None or not histogram.finite_nonzero:
        return
    exponents = np.array(drawn_exponents(histogram))
    total = histogram.finite_nonzero + histogram.zero + histogram.inf + histogram.nan
    shares = np.array([histogram.binades[int(e)] for e in exponents]) / total * 100
    axes.bar(exponents + 0.5, shares, width=0.95, color=colour, alpha=alpha, label=label, lw=0)


def drawn_exponents(histogram: Histogram) -> list[int]:
    """Return the exponents of a histogram in order, but for the least ones that hold no more than LEFT_OUT of it."""
    exponents, left = sorted(histogram.binades), 0
    for index, exponent in enumerate(exponents):
        left += histogram.binades[exponent]
        if left > LEFT_OUT * histogram.finite_nonzero:
            return exponents[index:]
    return []


def _limits(limit: AnyFormat | None) -> dict[str, float]:
    """Return where the format begins and ends, in binades."""
    if limit is None:
        return {}
    marks = {"least": math.log2(limit.min_subnormal), "max": math.log2(limit.max)}
    if isinstance(limit, Format) and limit.has_subnormals:
        marks["normal"] = float(limit.emin)
    return marks


def mark_limits(axes: Axes, marks: Mapping[str, float]) -> None:
    """Draw a line with its name at each binade that is in sight, the names at heights of their own above the bars."""
    low, high = axes.get_xlim()
    seen = {name: place for name, place in marks.items() if low - 12 <= place <= high + 12}
    axes.set_ylim(0, axes.get_ylim()[1] * (1 + 0.16 * len(seen)))
    for name, place in seen.items():
        axes.axvline(place, color=INK, lw=0.9, ls="-" if name.endswith("max") else ":")
    low, high = axes.get_xlim()
    for index, (name, place) in enumerate(seen.items()):
        is_right = place > low + 0.7 * (high - low)
        at = (place, 0.99 - 0.1 * index)
        text = f"{name} " if is_right else f" {name}"
        side = "right" if is_right else "left"
        axes.annotate(text, at, xycoords=("data", "axes fraction"), va="top", ha=side, fontsize=7)


def _format_of(run: Run, site: str) -> AnyFormat | None:
    """Return the format a site rounds to: by its role in a norm layer, else the compute format; None where wide."""
    module, operation = place_of(site, run.record.norm_layers)
    precision = precision_at(run, module, operation)
    if precision is None:
        return None
    is_of_norm = module in run.record.norm_layers and site.endswith("[forward]")
    return site_format(precision, operation) if is_of_norm else precision.format()
