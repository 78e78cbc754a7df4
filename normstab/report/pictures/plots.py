"""The curves of a report: loss and accuracy against the reference, a small plot for each setting of the grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from normstab.assess.judgement import GroupJudgement
from normstab.assess.points import point_words, value_words, varying_axes
from normstab.assess.verdicts import Verdict
from normstab.report.pictures.panels import Frame, Sketch, small_multiples
from normstab.report.pictures.svg import BAND, COLOURS, thinned
from normstab.report.words import gravity

__all__ = ["MOST_PANELS", "Panel", "accuracy_plots", "gravest_of", "loss_plots", "panels_of"]

# Panels of a report and of one picture, lines of a panel.
MOST_PANELS, PANELS_OF_PICTURE, MOST_LINES = 12, 4, 6


@dataclass(frozen=True)
class Panel:
    """One small plot: its title, its lines, the axis that tells them apart, and how many lines have no room."""

    title: str
    members: Sequence[GroupJudgement]
    line_axis: str
    left_out: int = 0

    @property
    def heading(self) -> str:
        """The title, with what is not drawn."""
        return f"{self.title} ({self.left_out} more not drawn)".strip() if self.left_out else self.title

    def value(self, group: GroupJudgement) -> str:
        """Return a line's value on the axis in words."""
        return value_words(self.line_axis, group.coordinates.get(self.line_axis, "-"))

    def label(self, group: GroupJudgement) -> str:
        """Return a line's name: its value on the axis, and its verdict."""
        value = self.value(group)
        return f"{value if self.line_axis == 'precision' else f'{self.line_axis} {value}'}: {group.verdict}"

    @property
    def gravity(self) -> float:
        """How grave the gravest line is."""
        return max(gravity(group.verdict) for group in self.members)


def panels_of(judged: Sequence[GroupJudgement]) -> list[Panel]:
    """Return one panel for each setting of all axes but the precision, in the grid's order.

    So the lines of a panel share their reference. Where there are references alone, the last axis that varies tells
    the lines apart.
    """
    varying = varying_axes([group.coordinates for group in judged])
    line_axis = varying[-1] if varying and all(group.is_reference for group in judged) else "precision"
    found: dict[str, list[GroupJudgement]] = {}
    for group in judged:
        found.setdefault(point_words(group.coordinates, without=(line_axis,)), []).append(group)
    chosen = {title: _chosen(members) for title, members in found.items()}
    return [Panel(title, kept, line_axis, len(found[title]) - len(kept)) for title, kept in chosen.items()]


def gravest_of(panels: Sequence[Panel], most: int) -> list[Panel]:
    """Return at most `most` of the panels, the gravest kept, in their own order."""
    kept = sorted(range(len(panels)), key=lambda index: -panels[index].gravity)[:most]
    return [panels[index] for index in sorted(kept)]


def _chosen(members: list[GroupJudgement]) -> list[GroupJudgement]:
    """Return at most MOST_LINES of the members, the gravest kept, in their own order."""
    kept = sorted(members, key=lambda group: -gravity(group.verdict))[:MOST_LINES]
    return [group for group in members if group in kept]


def loss_plots(panels: Sequence[Panel]) -> list[str]:
    """Return pictures of the smoothed training losses against the band of the reference."""
    curves = [curve for panel in panels for group in panel.members for curve in _losses(group)]
    bands = [group.group.band for panel in panels for group in panel.members if group.group.band is not None]
    tops = [*(float(curve.max()) for curve in curves), *(float(band.limit.max()) for band in bands)]
    frame = Frame(
        "step",
        "smoothed loss",
        note="Dashed: the reference, below its band. A cross: became inf or NaN.",
        xlim=(0, max((len(curve) for curve in curves), default=1)),
        ylim=(0, 1.05 * max(tops, default=1.0)),
    )
    return _pictures(panels, _paint_losses, frame)


def _losses(group: GroupJudgement) -> list[np.ndarray]:
    """Return the finite part of each seed's smoothed loss; none for a seed that had no step."""
    curves = [cell.run.smoothed[np.isfinite(cell.run.smoothed)] for cell in group.cells]
    return [curve for curve in curves if len(curve)]


def _paint_losses(panel: Panel, colours: Sequence[str], axes: Axes) -> None:
    """Draw every seed of every line, on the reference's band."""
    band = next((group.group.band for group in panel.members if not group.is_reference), None)
    if band is not None:
        steps, mean = thinned(band.mean)
        axes.fill_between(steps, mean, band.limit[steps], color=BAND, alpha=0.25, lw=0)
        axes.plot(steps, mean, color=BAND, lw=1, ls="--")
    for group in panel.members:
        colour = COLOURS[colours.index(panel.value(group)) % len(COLOURS)]
        for number, curve in enumerate(_losses(group)):
            label = panel.label(group) if number == 0 else "_hidden"
            axes.plot(*thinned(curve), color=colour, lw=1.2, alpha=0.85, label=label)
            if group.verdict is Verdict.NONFINITE:
                axes.plot(len(curve) - 1, curve[-1], "x", color=colour, ms=6, mew=1.6)


def accuracy_plots(panels: Sequence[Panel]) -> list[str]:
    """Return pictures of the test accuracy after each epoch against the reference's seeds."""
    epochs = [len(cell.run.record.epochs) for panel in panels for group in panel.members for cell in group.cells]
    frame = Frame(
        "epoch",
        "test accuracy, %",
        note="Grey: the seeds of the reference. Dotted: chance.",
        xlim=(0.8, max([2, *epochs]) + 0.2),
        ylim=(0, 100),
    )
    return _pictures(panels, _paint_accuracies, frame)


def _paint_accuracies(panel: Panel, colours: Sequence[str], axes: Axes) -> None:
    """Draw every seed of every line, over the range of the reference's seeds."""
    references = [run for group in panel.members[:1] for run in group.group.references if run.record.epochs]
    if references:
        epochs = min(len(run.record.epochs) for run in references)
        seen = np.array([[epoch.accuracy for epoch in run.record.epochs[:epochs]] for run in references]) * 100
        steps = np.arange(1, epochs + 1)
        axes.fill_between(steps, seen.min(axis=0) - 0.4, seen.max(axis=0) + 0.4, color=BAND, alpha=0.35, lw=0)
        axes.axhline(100 * references[0].chance, color=BAND, lw=0.8, ls=":")
    for group in panel.members:
        colour = COLOURS[colours.index(panel.value(group)) % len(COLOURS)]
        for number, cell in enumerate(group.cells):
            found = [100 * epoch.accuracy for epoch in cell.run.record.epochs]
            label = panel.label(group) if number == 0 else "_hidden"
            steps = np.arange(1, len(found) + 1)
            axes.plot(steps, found, color=colour, marker="o", ms=3, lw=1, alpha=0.85, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _pictures(panels: Sequence[Panel], paint: Callable[[Panel, Sequence[str], Axes], None], frame: Frame) -> list[str]:
    """Return as many pictures as the panels need; a value has one colour in all of them."""
    colours = list(dict.fromkeys(panel.value(group) for panel in panels for group in panel.members))
    sketches = [Sketch(panel.heading, partial(paint, panel, colours)) for panel in panels]
    starts = range(0, len(sketches), PANELS_OF_PICTURE)
    return [small_multiples(sketches[start : start + PANELS_OF_PICTURE], frame) for start in starts]
