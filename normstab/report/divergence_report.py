"""The answer of `diff` as text, as JSON and as Markdown: the sites in order, the first divergence first.

Pure but for `write_divergence`, which writes the report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from normstab.experiment.records.files import write_atomically
from normstab.report.words import aligned, number
from normstab.search.divergence import CellDivergence, Divergence, SiteDifference

__all__ = ["divergence_json", "divergence_text", "runs_json", "runs_text", "write_divergence"]

HEADERS = ["site", "call", "shape", "difference", "came in", "own bound", "ulps", "inf, NaN in A, B", ""]
MOST_ROWS = 25


def divergence_json(found: Divergence) -> dict[str, Any]:
    """Return the answer as JSON data: `diverged`, the first divergence first, and all `sites` in order."""
    return {
        "a": found.label_a,
        "b": found.label_b,
        "first": None if found.first is None else _plain(found.first),
        "diverged": [_plain(site) for site in found.diverged],
        "sites": [_plain(site) for site in found.sites],
        "notes": list(found.notes),
    }


def runs_json(found: Sequence[CellDivergence]) -> dict[str, Any]:
    """Return the answer of two runs: all cells with their first divergence, and the sites of the first that parts."""
    cells = [{"cell": each.cell, "first": divergence_json(each.divergence)["first"]} for each in found]
    shown = _first_to_part(found)
    return {"cell": shown.cell, **divergence_json(shown.divergence), "cells": cells}


def runs_text(found: Sequence[CellDivergence]) -> str:
    """Return the answer of two runs for a terminal: a row per cell, then the sites of the first that parts."""
    rows = [(each.cell, "-" if (at := each.divergence.first) is None else at.site) for each in found]
    shown = _first_to_part(found)
    return "\n\n".join([aligned(["cell", "parts at"], rows), f"{shown.cell}:", divergence_text(shown.divergence)])


def _first_to_part(found: Sequence[CellDivergence]) -> CellDivergence:
    return next((each for each in found if each.divergence.first is not None), found[0])


def _plain(site: SiteDifference) -> dict[str, Any]:
    """Return a site as JSON data; what is infinite is null, since JSON has no infinity."""
    plain = {name: _finite(value) for name, value in asdict(site).items()}
    return {**plain, "diverged": site.has_diverged}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def divergence_text(found: Divergence) -> str:
    """Return the answer for a terminal: the first divergence, then the sites up to there and some after it."""
    rows, left = _shown(found)
    more = [f"{left} more sites: --json, or --out DIR, has them all"] if left else []
    more += [f"note: {note}" for note in found.notes]
    return "\n\n".join([_headline(found), aligned(HEADERS, map(_row, rows), right=range(3, 7)), _key(), *more])


def _headline(found: Divergence) -> str:
    """Return in one sentence where the runs part."""
    pair = f"{found.label_a} (A) and {found.label_b} (B)"
    if all(site.is_equal for site in found.sites):
        return f"{pair}: all {len(found.sites)} results are equal"
    if found.first is None:
        return f"{pair}: none of {len(found.sites)} results differs by more than rounding explains"
    first = found.first
    if first.only:
        return f"{pair} part at {first.site}: only {first.only} has it"
    if not math.isfinite(first.difference):
        a, b = first.nonfinite
        return f"{pair} part at {first.site}: {a} results are inf or NaN in A, {b} in B"
    return (
        f"{pair} part at {first.site}: a relative difference of {number(first.difference)}, of which rounding there "
        f"explains {number(first.bound)} and what came in {number(first.before)}"
    )


def _shown(found: Divergence) -> tuple[Sequence[SiteDifference], int]:
    """Return the rows around the first divergence, and how many are left out."""
    at = next((i for i, site in enumerate(found.sites) if site.has_diverged), 0)
    start = max(0, min(at - MOST_ROWS // 2, len(found.sites) - MOST_ROWS))
    rows = found.sites[start : start + MOST_ROWS]
    return rows, len(found.sites) - len(rows)


def _row(site: SiteDifference) -> tuple[Any, ...]:
    """Return the cells of one site."""
    mark = f"only in {site.only}" if site.only else "parts" if site.has_diverged else "=" if site.is_equal else ""
    broken = "" if site.nonfinite == (0, 0) else f"{site.nonfinite[0]}, {site.nonfinite[1]}"
    shape = "x".join(map(str, site.shape)) or "scalar"
    numbers = (number(site.difference), number(site.before), number(site.bound), number(site.ulps, 2))
    return site.site, site.call, shape, *numbers, broken, mark


def _key() -> str:
    """Return what the columns mean."""
    return (
        "difference: ||a - b|| / ||b|| of a site's results; came in: the largest difference before it; own bound: what "
        "the site's own rounding may add. A site parts where the difference exceeds twice what came in and the bound."
    )


def write_divergence(found: Divergence, directory: Path) -> Path:
    """Write `diff.md` and `diff.html` with every site to `directory`, and return the first one's path."""
    table = aligned(HEADERS, map(_row, found.sites), right=range(3, 7))
    notes = [f"Note: {note}" for note in found.notes]
    markdown = "\n\n".join(["# Where two runs part", f"> {_headline(found)}", table, _key(), *notes]) + "\n"
    write_atomically(directory / "diff.md", markdown)
    write_atomically(directory / "diff.html", _page(found))
    return directory / "diff.md"


def _page(found: Divergence) -> str:
    """Return the table as a page of HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADERS)
    rows = [
        f"<tr{' class=parts' if site.has_diverged else ''}>"
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in _row(site))
        + "</tr>"
        for site in found.sites
    ]
    style = "td,th{padding:.2em .6em;text-align:left}.parts{background:#ffebe9}body{font-family:sans-serif}"
    return (
        f"<!doctype html><meta charset=utf-8><title>Where two runs part</title><style>{style}</style>\n"
        f"<h1>Where two runs part</h1>\n<p>{escape(_headline(found))}</p>\n<table><tr>{head}</tr>\n"
        + "\n".join(rows)
        + f"\n</table>\n<p>{escape(_key())}</p>\n"
        + "".join(f"<p>Note: {escape(note)}</p>\n" for note in found.notes)
    )
