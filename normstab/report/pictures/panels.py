"""Small multiples that read at any grid: panels of a fixed least size, one page wide, each with its legend below it.

title                title          Every place is computed in inches from the width of the texts, so that no
+---------------+    +----------+   text lies over a curve, over another text or beyond the picture. What does
|               |    |          |   not fit becomes another picture, never a smaller panel.
+---------------+    +----------+
- fp16: STABLE       - fp16: ...
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from normstab.report.pictures.svg import INK, draw

__all__ = ["PAGE", "Frame", "Sketch", "inches", "letters", "small_multiples", "wrapped"]

PAGE = 7.6
"""Width of every picture in inches: 730 pixels, which a page shows as they are."""
TITLE, LABEL, LEGEND = 8.5, 8.0, 7.5  # sizes of texts in points; 7 points are 9.3 pixels
LEFT, RIGHT, GAP, TICKS, PAD = 0.68, 0.1, 0.3, 0.26, 0.07
HEIGHT = 1.85  # of a panel
LINE = 1.25 / 72  # height of a line of text, per point of its size
BREAKS = re.compile(r"(?<=[ ,;/=·])")


@dataclass(frozen=True)
class Sketch:
    """One panel: its title, what paints it, and names for the places 0, 1, ... of its x axis, where it has such."""

    title: str
    paint: Callable[[Axes], None]
    places: Sequence[str] = ()


@dataclass(frozen=True)
class Frame:
    """What the panels of a picture share: the names of their axes, a line above them, limits, panels in a row."""

    x: str
    y: str
    note: str = ""
    columns: int = 2
    height: float = HEIGHT
    xlim: tuple[float, float] | None = None
    ylim: tuple[float | None, float | None] | None = None


@lru_cache(maxsize=4096)
def inches(text: str, size: float) -> float:
    """Return the width of a line of text of `size` points."""
    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]) / 72


def wrapped(text: str, width: float, size: float) -> str:
    """Return `text` in lines of at most `width` inches, broken after blanks and signs, else anywhere."""
    lines = [""]
    for word in BREAKS.split(text):
        pieces = [word] if inches(word.rstrip(), size) <= width else _pieces(word, width, size)
        for piece in pieces:
            fits = inches((lines[-1] + piece).rstrip(), size) <= width
            lines = [*lines[:-1], lines[-1] + piece] if fits or not lines[-1] else [*lines, piece]
    return "\n".join(line.rstrip() for line in lines)


def _pieces(word: str, width: float, size: float) -> list[str]:
    """Return a word that is too long cut into pieces that fit."""
    most = max(1, int(len(word) * width / max(inches(word, size), width)) - 1)
    return [word[i : i + most] for i in range(0, len(word), most)]


def letters(count: int) -> list[str]:
    """Return A, B, ... Z, AA, AB, ...: short names for columns."""
    return [(chr(64 + i // 26) if i >= 26 else "") + chr(65 + i % 26) for i in range(count)]


def small_multiples(sketches: Sequence[Sketch], frame: Frame) -> str:
    """Return the SVG of one panel per sketch, `frame.columns` in a row, on shared axes."""
    columns = min(frame.columns, len(sketches))
    rows = [sketches[i : i + columns] for i in range(0, len(sketches), columns)]
    width = (PAGE - LEFT - RIGHT - GAP * (columns - 1)) / columns

    def fill(figure: Figure) -> None:
        top = PAD + (_lines(wrapped(frame.note, PAGE - 2 * PAD, LABEL)) * LABEL * LINE + PAD if frame.note else 0)
        placed: list[tuple[Axes, float, float]] = []
        for row in rows:
            titles = [wrapped(sketch.title, width, TITLE) if sketch.title else "" for sketch in row]
            top += max(_lines(title) if title else 0 for title in titles) * TITLE * LINE + PAD
            below = 0.0
            for column, (sketch, title) in enumerate(zip(row, titles, strict=True)):
                axes = figure.add_axes((0, 0, 1, 1), label=f"{top}-{column}")
                placed.append((axes, LEFT + column * (width + GAP), top))
                ticks = _painted(axes, sketch, title, frame, width, is_first=column == 0)
                below = max(below, ticks + _legend(axes, width, ticks, frame.height))
            top += frame.height + below + PAD
        height = top + LABEL * LINE + PAD
        figure.set_size_inches(PAGE, height)
        for axes, x, y in placed:
            axes.set_position((x / PAGE, 1 - (y + frame.height) / height, width / PAGE, frame.height / height))
        _around(figure, frame, height, (LEFT + PAGE - RIGHT) / 2)

    return draw(PAGE, 1.0, fill)


def _around(figure: Figure, frame: Frame, height: float, middle: float) -> None:
    """Write the note above the panels and the names of the axes beside and below them."""
    if frame.note:
        note = wrapped(frame.note, PAGE - 2 * PAD, LABEL)
        figure.text(PAD / PAGE, 1 - PAD / height, note, va="top", fontsize=LABEL, linespacing=1.25)
    figure.text(middle / PAGE, PAD / 2 / height, frame.x, ha="center", va="bottom", fontsize=LABEL)
    name = wrapped(frame.y, height - 2 * PAD, LABEL)
    figure.text(0.02 / PAGE, 0.5, name, rotation=90, ha="left", va="center", fontsize=LABEL, linespacing=1.0)


def _painted(axes: Axes, sketch: Sketch, title: str, frame: Frame, width: float, *, is_first: bool) -> float:
    """Paint one panel, and return the height that its tick labels need."""
    sketch.paint(axes)
    if frame.xlim is not None:
        axes.set_xlim(*frame.xlim)
    if frame.ylim is not None:
        axes.set_ylim(*frame.ylim)
        axes.tick_params(labelleft=is_first)
    if title:
        axes.set_title(title, loc="left", fontsize=TITLE, pad=4, linespacing=1.25)
    if not sketch.places:
        return TICKS
    slot = width / len(sketch.places)
    names = [wrapped(name, slot - 0.08, LEGEND) for name in sketch.places]
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(visible=False, axis="x")
    if max(inches(word.rstrip(), LEGEND) for name in sketch.places for word in BREAKS.split(name)) <= slot - 0.08:
        axes.set_xticks(range(len(names)), names, fontsize=LEGEND)
        return 0.12 + max(map(_lines, names)) * LEGEND * LINE
    # Names too long for their places: letters there, and below them the list of which is which.
    keys = letters(len(names))
    listed = [wrapped(f"{key}: {name}", width, LEGEND) for key, name in zip(keys, sketch.places, strict=True)]
    axes.set_xticks(range(len(keys)), keys, fontsize=LEGEND)
    place: dict[str, Any] = {"xytext": (0, -72 * TICKS), "textcoords": "offset points", "va": "top", "linespacing": 1.2}
    axes.annotate("\n".join(listed), (0, 0), xycoords="axes fraction", fontsize=LEGEND, color=INK, **place)
    return TICKS + sum(map(_lines, listed)) * LEGEND * LINE + PAD


def _legend(axes: Axes, width: float, ticks: float, height: float) -> float:
    """Put the legend below the tick labels in as many columns as fit, and return its height; 0 without one."""
    handles, names = axes.get_legend_handles_labels()
    if not names:
        return 0.0
    columns = max(1, min(4, len(names), int(width / (max(inches(name, LEGEND) for name in names) + 0.45))))
    names = [wrapped(name, width / columns - 0.42, LEGEND) for name in names]
    axes.legend(
        handles,
        names,
        loc="upper left",
        bbox_to_anchor=(0, -ticks / height),
        borderaxespad=0,
        borderpad=0,
        handlelength=1.8,
        columnspacing=1.0,
        ncols=columns,
        fontsize=LEGEND,
        labelspacing=0.35,
        labelcolor=INK,
    )
    per_column = math.ceil(len(names) / columns)
    lines = [sum(map(_lines, names[i : i + per_column])) for i in range(0, len(names), per_column)]
    return max(lines) * LEGEND * LINE + per_column * 0.35 * LEGEND / 72 + PAD


def _lines(text: str) -> int:
    """Return the number of lines of a text."""
    return text.count("\n") + 1
