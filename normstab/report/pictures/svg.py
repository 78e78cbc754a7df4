"""Figures as SVG text: one style, no date, fixed ids, so that the same numbers give the same bytes.

Backgrounds are transparent, and every colour is told from a white page and from a dark one. Draws nothing itself.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["BAND", "COLOURS", "DARK_PAGE", "INK", "WHITE_PAGE", "draw", "thinned"]

COLOURS = ("#2f81f7", "#d2519d", "#2c974b", "#b87b00", "#986ee2", "#12918f", "#e5534b", "#808892")
"""Line colours: a contrast of at least 3 with either page; told apart by most kinds of colour blindness."""
INK = "#717a84"
"""The colour of texts and axes: a contrast of 4.3 with either page, the most that one colour can have with both."""
BAND = "#8c959f"
"""The colour of a reference's band, drawn at a quarter of its strength."""
WHITE_PAGE, DARK_PAGE = "#ffffff", "#0d1117"
"""The pages of GitHub's two themes."""

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "normstab",
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": BAND,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "text.color": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "path.simplify": True,
}

MOST_POINTS = 150


def draw(width: float, height: float, paint: Callable[[Figure], Any]) -> str:
    """Return the SVG of a figure of `width` by `height` inches that `paint` fills, and may resize."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        with rc_context({"text.parse_math": False}):  # names are strangers': a dollar sign would begin a formula
            paint(figure)
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            if axis.get_scale() == "log":
                axis.reset_ticks()  # their powers of ten are formulas, and ours
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # Where the font is not there, one of its width and kind serves.
    text = buffer.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def thinned(curve: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return at most MOST_POINTS steps of a curve, the first and the last among them, and its values there."""
    steps = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), MOST_POINTS)).round().astype(np.int64))
    return steps, curve[steps]
