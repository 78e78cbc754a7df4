"""Where rounding destroyed values: one map of overflow and one of underflow, operations by grid points.

A square says the share of an operation's results that was lost; its colour has few steps, so that a thousandth is
not as red as a third. Columns have letters, since names of grid points are long; the list below says which is which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normstab.assess.causes.blame import rate
from normstab.assess.causes.sites import in_order
from normstab.assess.judgement import GroupJudgement
from normstab.assess.points import point_words
from normstab.report.pictures.panels import LEGEND, PAD, PAGE, inches, letters, wrapped
from normstab.report.pictures.svg import BAND, draw
from normstab.report.words import gravity

__all__ = ["MOST_SITES", "site_maps", "worst_sites"]

MOST_SITES, MOST_COLUMNS = 24, 12
"""Rows and columns that still read at the width of a page."""
SITE, NUMBER, TITLE = 7.5, 7.0, 8.5  # sizes of texts in points
SQUARE, WIDEST_SQUARE, ROW, LINE = 0.37, 0.6, 0.2, 1.25 / 72
# From which share a square has which colour, and that of the number in it.
STEPS = ((0.0, "#fff8c5"), (1e-5, "#ffe08a"), (1e-3, "#fdb462"), (1e-2, "#f2803d"), (0.1, "#cf222e"), (0.5, "#82071e"))
DARK_INK, LIGHT_INK, LIGHT_FROM = "#1f2328", "#ffffff", 0.1
MEANING = {"overflow": "overflowed", "underflow": "became zero"}


def site_maps(groups: Sequence[GroupJudgement]) -> dict[str, str]:
    """Return the maps by counter, without those in which nothing was lost.

    Rows are the sites with the worst rates of either, in the network's order; columns the gravest grid points.
    """
    kept = sorted(range(len(groups)), key=lambda index: -gravity(groups[index].verdict))[:MOST_COLUMNS]
    columns = [groups[index] for index in sorted(kept)]
    tables = {counter: _rates(columns, counter) for counter in MEANING}
    sites = worst_sites(**tables)
    names = [f"{point_words(group.coordinates)}: {group.verdict}" for group in columns]
    found = {}
    for counter, table in tables.items():
        shown = [site for site in sites if any(table[site])]
        if shown:
            found[counter] = _map(counter, shown, np.array([table[site] for site in shown]), names)
    return found


def _map(counter: str, sites: Sequence[str], rates: Any, names: Sequence[str]) -> str:
    """Return one map: squares, letters above them, and the list of the letters below."""
    rows, columns = rates.shape
    left = min(max(inches(site, SITE) for site in sites) + 0.15, PAGE - 2 * PAD - SQUARE * columns)
    square = min(WIDEST_SQUARE, (PAGE - PAD - left) / columns)
    listed = zip(letters(columns), names, strict=True)
    keys = [wrapped(f"{letter}: {name}", PAGE - 2 * PAD, LEGEND) for letter, name in listed]
    title, top = f"{counter}: share of the results that {MEANING[counter]}, by operation", 0.62
    below = sum(key.count("\n") + 1 for key in keys) * LEGEND * LINE
    height = top + rows * ROW + 0.12 + below + PAD

    def fill(figure: Figure) -> None:
        figure.set_size_inches(PAGE, height)
        place = (left / PAGE, 1 - (top + rows * ROW) / height, square * columns / PAGE, rows * ROW / height)
        axes = figure.add_axes(place)
        _squares(axes, rates)
        axes.set_xticks(np.arange(columns) + 0.5, letters(columns), fontsize=SITE)
        axes.set_yticks(np.arange(rows) + 0.5, [_fitted(site, left - 0.12) for site in sites], fontsize=SITE)
        axes.tick_params(length=0, pad=3, top=False, labeltop=True, bottom=False, labelbottom=False)
        figure.text(PAD / PAGE, 1 - PAD / height, title, va="top", fontsize=TITLE)
        figure.text(PAD / PAGE, PAD / height, "\n".join(keys), va="bottom", fontsize=LEGEND, linespacing=1.2)

    return draw(PAGE, height, fill)


def _squares(axes: Axes, rates: Any) -> None:
    """Fill the squares where something was lost, and write the share into each."""
    rows, columns = rates.shape
    for row, column in np.argwhere(rates > 0):
        value = float(rates[row, column])
        colour = [found for least, found in STEPS if value >= least][-1]
        axes.fill([column, column + 1, column + 1, column], [row, row, row + 1, row + 1], color=colour, ec="none")
        text = f"{100 * value:.0f} %" if value >= 0.01 else f"1e{math.floor(math.log10(value))}"
        ink = LIGHT_INK if value >= LIGHT_FROM else DARK_INK
        axes.text(column + 0.5, row + 0.52, text, ha="center", va="center", fontsize=NUMBER, color=ink)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.grid(visible=False)
    for line in range(rows + 1):
        axes.axhline(line, color=BAND, lw=0.4, alpha=0.5)
    for line in range(columns + 1):
        axes.axvline(line, color=BAND, lw=0.4, alpha=0.5)
    axes.spines[:].set_visible(False)


def _fitted(site: str, width: float) -> str:
    """Return a site's name with as much of its middle left out as its place asks for."""
    half = len(site) // 2
    while inches(site, SITE) > width and half > 4:
        half -= 1
        site = f"{site[:half]}…{site[-half:]}"
    return site


def worst_sites(overflow: dict[str, list[float]], underflow: dict[str, list[float]]) -> list[str]:
    """Return at most MOST_SITES sites with the highest rates, in the network's order; casts of constants last.

    An overflow in few of the results does more harm than underflow in many: it has half of the rows to itself.
    """
    ranked = []
    for table in (overflow, underflow):
        highest = {site: max(rates) for site, rates in table.items()}
        lost = (site for site in highest if highest[site] > 0)
        ranked.append(sorted(lost, key=lambda s: (".const[" in s, -highest[s], s)))
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
