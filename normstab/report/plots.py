"""The plots of a report: loss and accuracy against the reference, rounding by site, exponents at an offence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from normstab.assess.causes.blame import rate
from normstab.assess.causes.sites import in_order
from normstab.assess.judgement import GroupJudgement
from normstab.assess.points import point_words, value_words, varying_axes
from normstab.assess.verdicts import Verdict
from normstab.report.svg import COLOURS, draw, thinned

__all__ = ["MOST_PANELS", "Panel", "accuracy_plot", "loss_plot", "panels_of", "sites_plot"]

# What still reads at the width of a page.
MOST_PANELS, MOST_LINES, MOST_SITES, MOST_COLUMNS = 6, 6, 24, 12
# Of the heat map: the width of a letter at the style's size and of the whole, in inches; the slant of its labels.
CHARACTER, WIDEST, SLANT = 0.075, 14.0, math.radians(60)


@dataclass(frozen=True)
class Panel:
    """One small plot: its title, its lines, and the axis that tells the lines apart."""

    title: str
    members: Sequence[GroupJudgement]
    line_axis: str

    def label(self, group: GroupJudgement) -> str:
        """Return a line's name: its value on the axis, and its verdict."""
        value = value_words(self.line_axis, group.coordinates.get(self.line_axis, "-"))
        return f"{value if self.line_axis == 'precision' else f'{self.line_axis} {value}'}: {group.verdict}"


def panels_of(judged: Sequence[GroupJudgement]) -> list[Panel]:
    """Return one panel for each setting of all axes but the precision, the gravest first.

    So the lines of a panel share their reference. Where there are references alone, the last axis that varies tells
    the lines apart.
    """
    varying = varying_axes([group.coordinates for group in judged])
    line_axis = varying[-1] if varying and all(group.is_reference for group in judged) else "precision"
    found: dict[str, list[GroupJudgement]] = {}
    for group in judged:
        found.setdefault(point_words(group.coordinates, without=(line_axis,)), []).append(group)
    order = sorted(found.items(), key=lambda item: -max(_gravity(group) for group in item[1]))
    return [Panel(title, _chosen(members), line_axis) for title, members in order]


def _gravity(group: GroupJudgement) -> float:
    """Return how grave a verdict is for showing: INCONCLUSIVE lies between STABLE and DEGRADED."""
    return 0.5 if group.verdict is Verdict.INCONCLUSIVE else group.verdict.value


def _chosen(members: list[GroupJudgement]) -> list[GroupJudgement]:
    """Return at most MOST_LINES of the members, the gravest kept, in their own order."""
    kept = sorted(members, key=lambda group: -_gravity(group))[:MOST_LINES]
    return [group for group in members if group in kept]


def loss_plot(panels: Sequence[Panel]) -> str:
    """Return the smoothed training losses against the band of the reference."""

    def paint(axes: Axes, panel: Panel) -> None:
        band = next((group.group.band for group in panel.members if not group.is_reference), None)
        if band is not None:
            steps, mean = thinned(band.mean)
            axes.fill_between(steps, mean, band.limit[steps], color="#d8dee4", lw=0, label="reference band")
            axes.plot(steps, mean, color="#57606a", lw=1, ls="--", label="reference")
        for index, group in enumerate(panel.members):
            for number, cell in enumerate(group.cells):
                curve = cell.run.smoothed[np.isfinite(cell.run.smoothed)]
                if len(curve):
                    axes.plot(
                        *thinned(curve),
                        color=COLOURS[index],
                        lw=1.2,
                        alpha=0.85,
                        label=panel.label(group) if number == 0 else "_hidden",
                    )
                    if group.verdict is Verdict.NONFINITE:
                        axes.plot(len(curve) - 1, curve[-1], "x", color=COLOURS[index], ms=7, mew=2)
        axes.set_ylim(bottom=0)

    return _grid(panels, paint, "step", "smoothed loss")


def accuracy_plot(panels: Sequence[Panel]) -> str:
    """Return the test accuracy after each epoch against the reference's seeds."""

    def paint(axes: Axes, panel: Panel) -> None:
        references = [run for group in panel.members[:1] for run in group.group.references if run.record.epochs]
        if references:
            epochs = min(len(run.record.epochs) for run in references)
            seen = np.array([[epoch.accuracy for epoch in run.record.epochs[:epochs]] for run in references]) * 100
            steps = np.arange(1, epochs + 1)
            axes.fill_between(
                steps, seen.min(axis=0) - 0.2, seen.max(axis=0) + 0.2, color="#d8dee4", lw=0, label="reference"
            )
            axes.axhline(100 * references[0].chance, color="#57606a", lw=0.8, ls=":", label="chance")
        for index, group in enumerate(panel.members):
            for number, cell in enumerate(group.cells):
                found = [100 * epoch.accuracy for epoch in cell.run.record.epochs]
                steps = np.arange(1, len(found) + 1)
                axes.plot(
                    steps,
                    found,
                    color=COLOURS[index],
                    marker="o",
                    ms=3,
                    lw=1,
                    alpha=0.85,
                    label=panel.label(group) if number == 0 else "_hidden",
                )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, 100)

    return _grid(panels, paint, "epoch", "test accuracy, %")


def _grid(panels: Sequence[Panel], paint: Any, x: str, y: str) -> str:
    """Return the SVG of one small plot per panel, at most three in a row, on shared axes."""
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)

    def fill(figure: Figure) -> None:
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for place, panel in zip(axes.flat, panels, strict=False):
            paint(place, panel)
            place.set_title(_wrapped(panel.title), loc="left")
            place.legend(loc="best")
        for place in axes.flat[len(panels) :]:
            place.set_axis_off()
        figure.supxlabel(x, fontsize=9)
        figure.supylabel(y, fontsize=9)

    return draw(max(4.8, 3.4 * columns), 2.9 * rows, fill)


def _wrapped(title: str, most: int = 40) -> str:
    """Return a title broken at commas, so that it stays above its panel."""
    lines = [""]
    for part in title.split(", "):
        joined = f"{lines[-1]}, {part}" if lines[-1] else part
        lines = [*lines[:-1], joined] if len(joined) <= most or not lines[-1] else [*lines, part]
    return ",\n".join(lines)


def sites_plot(groups: Sequence[GroupJudgement]) -> str | None:
    """Return the heat map of overflow and underflow by site and grid point, or None where nothing was lost.

    Rows are the sites with the worst rates of either, in the network's order; columns the gravest grid points.
    """
    gravest = sorted(groups, key=lambda g: -_gravity(g))[:MOST_COLUMNS]
    columns = [group for group in groups if group in gravest]
    tables = {counter: _rates(columns, counter) for counter in ("overflow", "underflow")}
    sites = _worst_sites(**tables)
    if not sites:
        return None
    labels = _column_labels(columns)

    def fill(figure: Figure) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for place, (counter, table) in zip(axes, tables.items(), strict=True):
            rates = np.array([table[site] for site in sites])
            shown = np.ma.masked_less_equal(rates, 0.0)
            mesh = place.pcolormesh(shown, cmap="YlOrRd", norm=LogNorm(1e-7, 1.0), edgecolor="white", lw=0.5)
            place.set_title(counter, loc="left")
            slanted = {"rotation": math.degrees(SLANT), "rotation_mode": "anchor", "ha": "right"}
            place.set_xticks(np.arange(len(columns)) + 0.5, labels, **slanted)
            place.set_yticks(np.arange(len(sites)) + 0.5, sites)
            place.tick_params(length=0)
            place.invert_yaxis() if place is axes[0] else None
            place.grid(visible=False)
            _numbers(place, rates)
        figure.colorbar(mesh, ax=axes, label="share of results", fraction=0.03, pad=0.01)

    names, below = (max(map(len, texts)) * CHARACTER for texts in (sites, labels))
    width = 1.4 + names + 2 * max(0.45 * len(columns), below * math.cos(SLANT))
    return draw(min(width, WIDEST), 0.8 + 0.24 * len(sites) + below * math.sin(SLANT), fill)


def _worst_sites(overflow: dict[str, list[float]], underflow: dict[str, list[float]]) -> list[str]:
    """Return at most MOST_SITES sites with the highest rates, in the network's order.

    An overflow in few of the results does more harm than underflow in many: it has half of the rows to itself.
    """
    ranked = []
    for table in (overflow, underflow):
        highest = {site: max(rates) for site, rates in table.items()}
        ranked.append(sorted((site for site in highest if highest[site] > 0), key=lambda s: (-highest[s], s)))
    half = MOST_SITES // 2
    chosen = list(dict.fromkeys([*ranked[0][:half], *ranked[1], *ranked[0][half:]]))[:MOST_SITES]
    return [site for site in overflow if site in chosen]


def _rates(groups: Sequence[GroupJudgement], counter: str) -> dict[str, list[float]]:
    """Return, per site in the network's order, the rate of `counter` in the gravest cell of each group."""
    found: dict[str, list[float]] = {}
    for column, group in enumerate(groups):
        for site, tally in group.worst.run.totals.items():
            found.setdefault(site, [0.0] * len(groups))[column] = rate(tally, counter)
    layers = list(dict.fromkeys(layer for group in groups for layer in group.worst.run.record.norm_layers))
    return {site: found[site] for site in in_order(found, layers)}


def _column_labels(groups: Sequence[GroupJudgement]) -> list[str]:
    """Return short labels: the values of the axes on which the groups differ."""
    points = [{axis: value_words(axis, value) for axis, value in group.coordinates.items()} for group in groups]
    varying = varying_axes(points) or list(points[0])
    return [" · ".join(point.get(axis, "") for axis in varying) for point in points]


def _numbers(axes: Axes, rates: Any) -> None:
    """Write the power of ten of each rate into its square."""
    for row, column in np.argwhere(rates > 0):
        value = float(rates[row, column])
        text = f"{100 * value:.0f} %" if value >= 0.01 else f"1e{math.floor(math.log10(value))}"
        colour = "white" if value > 0.005 else "#1f2328"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6.5, color=colour)
