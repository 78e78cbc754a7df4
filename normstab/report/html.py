"""The HTML report: one self-contained file with a sortable table of cells and curves to hover over.

Everything is in the file: data as JSON, plots as images, a little plain script; nothing is fetched.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normstab.assess.assessment import Assessment
from normstab.assess.judgement import GroupJudgement, Judgement
from normstab.assess.points import point_words, value_words
from normstab.assess.runs import SEED_AXES
from normstab.assess.verdicts import Verdict
from normstab.experiment.records.files import jsonable, write_atomically
from normstab.report import sections
from normstab.report.glossary import GLOSSARY
from normstab.report.markdown import fill_template
from normstab.report.pictures.exponents import exponent_plot
from normstab.report.pictures.plots import Panel, gravest_of, panels_of
from normstab.report.pictures.site_maps import site_maps
from normstab.report.pictures.svg import COLOURS, thinned
from normstab.report.words import OUTCOME_MARKS, command_for, number

__all__ = ["render_html", "write_html"]

MOST_PANELS, MOST_ROWS, MOST_EXPONENTS, MOST_TOLD, MOST_LOST = 24, 10_000, 8, 60, 1000


def render_html(found: Assessment) -> str:
    """Return the page."""
    axes = list(dict.fromkeys(axis for cell in found.cells for axis in cell.coordinates))
    failing = sorted((g for g in found.judged if g.verdict.fails), key=lambda g: -g.verdict.value)
    undecided = [g for g in found.judged if g.verdict is Verdict.INCONCLUSIVE]
    images: list[tuple[str, str | None]] = [
        (f"Results lost to {name}, by site", svg) for name, svg in site_maps(found.judged).items()
    ]
    images += [(f"Exponents: {point_words(g.coordinates)}", exponent_plot(g)) for g in failing[:MOST_EXPONENTS]]
    panels = [_panel(panel) for panel in gravest_of(panels_of(found.judged), MOST_PANELS)]
    values = {
        "scenario": found.scenario,
        "verdicts": list(Verdict),
        "tone": sections.alert(found).lower(),
        "headline": [_plain(line) for line in sections.headline(found)],
        "expectations": [
            (str(r.outcome), f"{OUTCOME_MARKS[r.outcome]} {r.outcome}", r.statement, r.finding.reason)
            for r in found.expectations
        ],
        "problems": found.problems,
        "warnings": found.warnings,
        "missing": [cell.id for cell in found.missing[:MOST_LOST]],
        "missing_left": max(0, len(found.missing) - MOST_LOST),
        "axes": axes,
        "rows": [_row(found, cell, axes) for cell in found.cells[:MOST_ROWS]],
        "rows_left": max(0, len(found.cells) - MOST_ROWS),
        "told": {
            "What failed, and where": [_failure(found, group) for group in failing[:MOST_TOLD]],
            "Not decided": [_failure(found, group) for group in undecided[:MOST_TOLD]],
        },
        "images": [(title, _embedded(svg)) for title, svg in images if svg],
        "curves": _script_safe({"panels": panels, "colours": COLOURS}),
        "has_curves": bool(panels),
        "glossary": GLOSSARY,
    }
    return fill_template("report.html.j2", values)


def write_html(found: Assessment, directory: Path) -> Path:
    """Write `report.html` into `directory` and return its path."""
    write_atomically(directory / "report.html", render_html(found))
    return directory / "report.html"


def _plain(line: str) -> str:
    """Return a line of Markdown without its marks."""
    return line.replace("**", "").replace("`", "")


def _row(found: Assessment, cell: Judgement, axes: Sequence[str]) -> dict[str, Any]:
    """Return one cell's row: its point, and the columns as (text, sort key) pairs."""
    metrics = cell.metrics
    shares = [metrics[name] for name in ("overflow_rate", "underflow_rate")]
    numbers = [
        ("-" if metrics["accuracy"] is None else f"{100 * metrics['accuracy']:.1f} %", metrics["accuracy"]),
        (number(metrics["accuracy_gap_sd"], 2), metrics["accuracy_gap_sd"]),
        (cell.first_site or "-", cell.first_site or ""),
        ("-" if cell.first_step is None else str(cell.first_step), cell.first_step),
        *((number(share, 2), share) for share in shares),
        (number(metrics["headroom_up"], 2), metrics["headroom_up"]),
    ]
    return {
        "verdict": str(cell.verdict),
        "mark": cell.verdict.mark,
        "gravity": cell.verdict.value,
        "is_reference": cell.run.is_reference,
        "point": [value_words(axis, cell.coordinates[axis]) if axis in cell.coordinates else "" for axis in axes],
        "numbers": [(text, "" if key is None else key) for text, key in numbers],
        "reason": cell.sentence,
        "command": command_for(found.scenario, cell.coordinates),
    }


def _failure(found: Assessment, group: GroupJudgement) -> dict[str, Any]:
    """Return what is shown of one grid point that is not stable."""
    return {
        "title": point_words(group.coordinates),
        "verdict": str(group.verdict),
        "mark": group.verdict.mark,
        "sentence": _plain(group.worst.sentence),
        "remedies": [(r.advice, _plain(r.evidence), _plain(r.outcome)) for r in group.remedies],
        "command": command_for(found.scenario, group.worst.coordinates),
    }


def _panel(panel: Panel) -> dict[str, Any]:
    """Return one panel's curves: the reference's band, and the smoothed loss and epoch accuracies of every seed."""
    band = next((group.group.band for group in panel.members if not group.is_reference), None)
    shown: dict[str, Any] = {"title": panel.title, "band": None, "lines": []}
    if band is not None:
        steps, mean = thinned(band.mean)
        shown["band"] = {"x": steps.tolist(), "mean": _rounded(mean), "limit": _rounded(band.limit[steps])}
    for index, group in enumerate(panel.members):
        for cell in group.cells:
            if not len(cell.run.smoothed):
                continue
            steps, losses = thinned(cell.run.smoothed)
            seed = next((str(cell.coordinates[axis]) for axis in SEED_AXES if axis in cell.coordinates), "")
            accuracies = [round(100 * epoch.accuracy, 2) for epoch in cell.run.record.epochs]
            shown["lines"].append(
                {
                    "label": f"{panel.label(group)}{f', seed {seed}' if seed else ''}",
                    "colour": index,
                    "x": steps.tolist(),
                    "loss": _rounded(losses),
                    "accuracy": accuracies,
                }
            )
    return shown


def _rounded(values: Any) -> list[float | None]:
    """Return the values with four digits; None for one that is not finite."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]


def _embedded(svg: str) -> str:
    """Return an SVG as the address of an image that holds it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _script_safe(document: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    return json.dumps(jsonable(document), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
