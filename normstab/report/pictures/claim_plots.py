"""The plot of a claim: bars or curves of a metric, a sweep's errors over scales, or exponents of gradients.

What is drawn comes from the claim's `plot:`; without one, bars of the accuracy over the first axis that varies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from normstab.assess.assessment import Assessment
from normstab.assess.expected.contrast import EVERY, contrast
from normstab.assess.expected.group_selection import selected
from normstab.assess.points import value_words, varying_axes
from normstab.assess.runs import Group
from normstab.assess.swept import ACCURATE
from normstab.experiment.scenario.document import Claim, Plot
from normstab.numerics.formats import FORMATS
from normstab.numerics.ledger import Histogram
from normstab.report.pictures.exponents import BINADES, drawn_exponents, mark_limits
from normstab.report.pictures.panels import Frame, Sketch, small_multiples
from normstab.report.pictures.svg import COLOURS, INK

__all__ = ["KINDS", "claim_plot"]


MOST_GROUPS = 120  # of grid points in one plot: more can be told apart by nobody, and each is read from its files


def claim_plot(claim: Claim, found: Assessment) -> str | None:
    """Return the SVG of a claim's plot, or None where no record has what it shows."""
    plot = claim.plot or Plot("bars")
    pool = list(found.swept) if plot.kind == "sweep" else [judged.group for judged in found.groups]
    groups = selected(pool, plot.where)
    if not groups:
        return None
    axes = varying_axes([group.coordinates for group in groups])
    x = plot.x or (axes[0] if axes else "precision")
    by = plot.by or next((axis for axis in axes if axis != x), "")
    painted = KINDS[plot.kind](groups[:MOST_GROUPS], plot, x, by)
    if painted is None:
        return None
    sketch, frame = painted
    if (left := len(groups) - MOST_GROUPS) > 0:
        told = f"The first {MOST_GROUPS} settings; {left:,} more are not drawn."
        frame = replace(frame, note=f"{frame.note} {told}".strip())
    return small_multiples([sketch], frame)


Painted = tuple[Sketch, Frame]  # a panel and what surrounds it


def _name(group: Group, axis: str) -> str:
    """Return a group's value on an axis in words."""
    return value_words(axis, group.coordinates[axis]) if axis in group.coordinates else ""


def _series(groups: Sequence[Group], x: str, by: str) -> dict[int, str]:
    """Return a name for each group, by its identity: its value on `by`, then on the other axes that vary but `x`."""
    varying = varying_axes([group.coordinates for group in groups])
    axes = [*([by] if by else []), *(axis for axis in varying if axis not in (x, by))]
    return {id(group): ", ".join(name for axis in axes if (name := _name(group, axis))) for group in groups}


def _values(groups: Sequence[Group], axis: str) -> list[str]:
    """Return the values on an axis in order of appearance."""
    return list(dict.fromkeys(_name(group, axis) for group in groups))


def paint_bars(groups: Sequence[Group], plot: Plot, x: str, by: str) -> Painted | None:
    """Return the painter of one bar per group, its seeds as dots, its 90 % interval as a whisker."""
    is_share = EVERY[plot.metric].unit == "share"
    factor = 100.0 if is_share else 1.0
    places, names = _values(groups, x), _series(groups, x, by)
    series = list(dict.fromkeys(names.values()))
    measured = [(group, contrast([group], [1.0], plot.metric, None)) for group in groups]
    if not any(found.values for _, found in measured):
        return None
    width = 0.8 / len(series)

    def fill(axes: Axes) -> None:
        labelled: set[str] = set()
        for group, found in measured:
            if not found.values:
                continue
            name = names[id(group)]
            index = series.index(name)
            place = places.index(_name(group, x)) + (index - (len(series) - 1) / 2) * width
            label = name if name not in labelled else "_hidden"
            labelled.add(name)
            colour = COLOURS[index % len(COLOURS)]
            axes.bar(place, factor * found.estimate, width * 0.92, color=colour, alpha=0.75, label=label, lw=0)
            axes.plot([place] * len(found.values), [factor * v for v in found.values], ".", color=INK, ms=3)
            interval = found.interval
            if interval is not None:
                ends = np.clip([interval.low, interval.high], *_possible(plot.metric))
                axes.plot([place] * 2, factor * ends, color=INK, lw=1)

    note = "Dots: seeds. Whisker: the 90 % interval of their mean."
    return Sketch("", fill, places), _frame(x, _worded(plot.metric, is_share), by if len(series) > 1 else "", note)


def _possible(metric: str) -> tuple[float, float]:
    """Return the least and the greatest value that a metric can have: an interval does not leave them."""
    if EVERY[metric].unit != "share":
        return -np.inf, np.inf
    return (-1.0, 1.0) if metric.startswith("accuracy_gap") else (0.0, 1.0)


def paint_curves(groups: Sequence[Group], plot: Plot, x: str, by: str) -> Painted | None:
    """Return the painter of the metric after each epoch, one line per seed, coloured by `by` (else by `x`)."""
    axis = plot.by or x
    names = _series(groups, "", axis)
    series = list(dict.fromkeys(names.values()))
    is_share = EVERY[plot.metric].unit == "share"
    factor = 100.0 if is_share else 1.0
    drawn = [(group, run) for group in groups for run in group.runs if run.record.epochs]
    if not drawn:
        return None

    def fill(axes: Axes) -> None:
        labelled: set[str] = set()
        for group, run in drawn:
            epochs = len(run.record.epochs)
            found = [EVERY[plot.metric].compute(run.until((e + 1) / epochs), group) for e in range(epochs)]
            name = names[id(group)]
            colour = COLOURS[series.index(name) % len(COLOURS)]
            values = [np.nan if value is None else factor * value for value in found]
            label = name if name not in labelled else "_hidden"
            labelled.add(name)
            axes.plot(range(1, epochs + 1), values, color=colour, lw=1.2, marker="o", ms=2.5, alpha=0.85, label=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return Sketch("", fill), _frame("epoch", _worded(plot.metric, is_share), axis)


def paint_sweep(groups: Sequence[Group], plot: Plot, x: str, by: str) -> Painted | None:
    """Return the painter of the worst layer's error of s against the input's scale 2^k, and of the 1 % it may have."""
    drawn = [(group, run) for group in groups for run in group.runs if run.record.sweep]
    if not drawn:
        return None
    colours, styles = _values(groups, x), _values(groups, by)

    def fill(axes: Axes) -> None:
        for group, run in drawn:
            worst: dict[int, float] = {}
            for points in run.record.sweep.values():
                for point in points:
                    error = 1.0 if point.collapsed_channels or not np.isfinite(point.error) else point.error
                    worst[point.exponent] = max(worst.get(point.exponent, 0.0), min(error, 1.0))
            exponents = sorted(worst)
            style = ("-", "--", ":", "-.")[styles.index(_name(group, by)) % 4]
            colour = COLOURS[colours.index(_name(group, x)) % len(COLOURS)]
            label = ", ".join(name for name in (_name(group, by), _name(group, x)) if name)
            axes.plot(
                exponents, [max(worst[k], 1e-6) for k in exponents], style, color=colour, label=label, marker=".", ms=3
            )
        axes.axhline(ACCURATE, color=INK, lw=0.8, ls=":")
        axes.set_yscale("log")

    return Sketch("", fill), _frame("input scale, binades", "relative error of s (worst layer)", "")


def paint_histogram(groups: Sequence[Group], plot: Plot, x: str, by: str) -> Painted | None:
    """Return the painter of the exponents of all gradients, one line per value of `by`, with fp16's limits."""
    axis = plot.by or x
    sums: dict[str, Histogram] = {}
    for group in groups:
        for site, tally in group.runs[0].totals.items():
            if tally.histogram is not None and site.endswith("[backward]"):
                name = (
                    f"{_name(group, axis)} {_name(group, 'precision')}" if axis != "precision" else _name(group, axis)
                )
                sums[name] = sums.get(name, Histogram()) + tally.histogram
    if not sums:
        return None

    def fill(axes: Axes) -> None:
        for index, (name, histogram) in enumerate(sums.items()):
            exponents = drawn_exponents(histogram)
            shares = [100 * histogram.binades[e] / max(1, histogram.finite_nonzero) for e in exponents]
            axes.plot(exponents, shares, color=COLOURS[index % len(COLOURS)], label=name, lw=1.3)
        mark_limits(axes, {"fp16 least": -24, "fp16 normal": FORMATS["fp16"].emin, "fp16 max": 16})

    return Sketch("", fill), _frame(f"exponent of the gradients ({BINADES})", "share, %", axis)


def _worded(metric: str, is_share: bool) -> str:
    """Return a metric's name with its unit."""
    return metric.replace("_", " ") + (", %" if is_share else "")


def _frame(x: str, y: str, by: str, note: str = "") -> Frame:
    """Return what surrounds a claim's panel; the legend's axis is named above it."""
    told = f"Colours: {by}." if by else ""
    return Frame(x, y, note=" ".join(filter(None, (told, note))), columns=1, height=2.2)


KINDS: dict[str, Callable[[Sequence[Group], Plot, str, str], Painted | None]] = {
    "bars": paint_bars,
    "curves": paint_curves,
    "sweep": paint_sweep,
    "histogram": paint_histogram,
}
"""How each kind of a claim's plot is painted."""
