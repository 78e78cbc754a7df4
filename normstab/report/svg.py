"""Figures as SVG text: one style, no date, fixed ids, so that the same numbers give the same bytes.

Draws nothing itself.
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

__all__ = ["COLOURS", "draw", "thinned"]

COLOURS = ("#0969da", "#bf3989", "#1a7f37", "#9a6700", "#8250df", "#0e8a8a", "#cf222e", "#57606a")
"""Line colours, legible on white and told apart by most kinds of colour blindness when paired with markers."""

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "normstab",
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#57606a",
    "axes.grid": True,
    "grid.color": "#d8dee4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "text.color": "#1f2328",
    "figure.facecolor": "white",
    "path.simplify": True,
}

MOST_POINTS = 150


def draw(width: float, height: float, paint: Callable[[Figure], Any]) -> str:
    """Return the SVG of a figure of `width` by `height` inches that `paint` fills."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.MULTILINE)


def thinned(curve: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return at most MOST_POINTS steps of a curve, the first and the last among them, and its values there."""
    steps = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), MOST_POINTS)).round().astype(np.int64))
    return steps, curve[steps]
