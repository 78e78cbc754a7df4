"""The answer of `frontier` as text, as JSON, and as a report with its map: the smallest formats that train.

Pure but for `write_frontier`, which writes the report.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from normstab.assess.verdicts import Verdict
from normstab.experiment.records.files import write_atomically
from normstab.report.pictures.svg import DARK_PAGE, INK, WHITE_PAGE, draw
from normstab.report.words import aligned
from normstab.search.format_map import Frontier, Place

__all__ = ["frontier_json", "frontier_text", "write_frontier"]

# How strongly a square is painted whose format was trained, and one of which that only follows.
TRIED, IMPLIED = 0.9, 0.25
# A smallest format is framed in both pages' colours, of which one is seen on each.
FRAME: dict[str, Any] = {"fill": False, "edgecolor": DARK_PAGE, "linewidth": 1.8}
HALO = [withStroke(linewidth=3.6, foreground=WHITE_PAGE)]


def frontier_json(found: Frontier) -> dict[str, Any]:
    """Return the answer as JSON data: the corners, those confirmed, every cell that was trained, and violations."""
    stairs = found.staircase
    return {
        "cell": found.cell,
        "of": "accumulator" if found.grid.is_accumulator else "results",
        "corners": [_name(place) for place in stairs.corners],
        "confirmed": [_name(place) for place in found.confirmed],
        "fresh_seeds": list(found.fresh_seeds),
        "least_significand": {f"e{x}": stairs.least[x] for x in stairs.xs},
        "tried": [{"format": _name(t.place), "verdict": str(t.verdict), "reason": t.reason} for t in found.tried],
        "again": {_name(place): str(tried.verdict) for place, tried in found.again.items()},
        "violations": [{"trains": _name(a), "wider_fails": _name(b)} for a, b in stairs.violations],
        "trainings": found.trainings,
        "predicted": {
            "exponent": found.predicted_exponent,
            "accumulator_significand": found.predicted_significand,
            "longest_sum": found.longest,
        },
    }


def _name(place: Place) -> str:
    return f"e{place[0]}m{place[1]}"


def frontier_text(found: Frontier) -> str:
    """Return the answer for a terminal: the smallest formats, the map, what was met, what was predicted."""
    return "\n\n".join(part for part in [_headline(found), _map(found), *_remarks(found)] if part)


def _headline(found: Frontier) -> str:
    """Return the smallest formats in one sentence."""
    corners, asked = found.staircase.corners, len(found.staircase.asked)
    total = len(found.staircase.xs) * len(found.staircase.ys)
    what = "accumulators" if found.grid.is_accumulator else "results"
    cost = f"{asked} of {total} formats tried, {found.trainings} trainings"
    if not corners:
        found_out = "is known to train" if undecided(found) else "trains, not even the widest"
        return f"No format of the grid {found_out} ({cost})"
    names = [_name(p) + ("" if p in found.confirmed else " (not confirmed on fresh seeds)") for p in corners]
    return f"The smallest formats of {what} that train: {', '.join(names)} ({cost})"


def undecided(found: Frontier) -> list[str]:
    """Return the formats that count as failing because the seeds do not tell."""
    stairs = found.staircase
    tried = [each for each in found.tried if each.verdict == Verdict.INCONCLUSIVE and not stairs.holds(*each.place)]
    return [_name(each.place) for each in tried]


def _map(found: Frontier) -> str:
    """Return the map as text: a row per significand, the widest on top; lower case is implied, not trained."""
    verdicts = {tried.place: tried.verdict for tried in found.tried}
    rows = []
    for y in reversed(found.staircase.ys):
        cells = []
        for x in found.staircase.xs:
            place = (x, y)
            implied = "trains" if found.staircase.holds(x, y) else "fails"
            cells.append(
                f"{verdicts[place]}" + ("*" if place in found.staircase.corners else "")
                if place in verdicts
                else implied
            )
        rows.append((f"m{y}", *cells))
    return aligned(["", *(f"e{x}" for x in found.staircase.xs)], rows)


def _remarks(found: Frontier) -> list[str]:
    """Return what was met on the way and what was predicted."""
    remarks = ["* a smallest format; in capitals: trained; in small letters: implied, if wider is never worse."]
    if left := undecided(found):
        remarks.append(
            f"The seeds do not decide {', '.join(left)}, which count as failing, and what is narrower with them; "
            "more seeds would tell, and --allow INCONCLUSIVE takes them for formats that train"
        )
    for place, tried in found.again.items():
        remarks.append(
            f"{_name(place)} on fresh seeds {', '.join(map(str, found.fresh_seeds))}: {tried.verdict}, {tried.reason}"
        )
    for narrow, wide in found.staircase.violations:
        remarks.append(f"Wider was worse: {_name(narrow)} trains and {_name(wide)} does not")
    if found.predicted_exponent is not None:
        remarks.append(f"predicted from the largest result: {found.predicted_exponent} exponent bits")
    if found.predicted_significand is not None:
        remarks.append(
            f"predicted for an accumulator by the variance retention ratio, for sums of {found.longest}: "
            f"{found.predicted_significand} significand bits"
        )
    return remarks


def write_frontier(found: Frontier, directory: Path) -> Path:
    """Write `report.md`, `frontier.json` and the map to `directory`, and return the report's path."""
    write_atomically(directory / "frontier.json", json.dumps(frontier_json(found), indent=2) + "\n")
    write_atomically(directory / "plots" / "frontier.svg", frontier_plot(found))
    rows = [(_name(tried.place), tried.verdict.marked, tried.reason) for tried in found.tried]
    parts = [
        f"# The smallest format that trains: {found.cell}",
        f"> {_headline(found)}",
        "![map](plots/frontier.svg)",
        _map(found),
        *_remarks(found),
        "## What was trained",
        aligned(["format", "verdict", "why"], rows),
    ]
    write_atomically(directory / "report.md", "\n\n".join(parts) + "\n")
    return directory / "report.md"


def frontier_plot(found: Frontier) -> str:
    """Return the map: a square per format in the colour of its verdict, paler where it is only implied."""
    stairs = found.staircase
    verdicts = {tried.place: tried.verdict for tried in found.tried}
    good = next((v for p, v in verdicts.items() if stairs.holds(*p)), None)
    bad = next((v for p, v in verdicts.items() if not stairs.holds(*p)), None)

    def paint(figure: Figure) -> None:
        figure.set_layout_engine("constrained")  # which leaves room for the legend
        axes = figure.add_subplot()
        for x in stairs.xs:
            for y in stairs.ys:
                own = verdicts.get((x, y))
                shown = own or (good if stairs.holds(x, y) else bad)
                if shown is not None:
                    alpha = TRIED if own is not None else IMPLIED
                    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=shown.colour, alpha=alpha, linewidth=0))
        for x, y in stairs.corners:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **FRAME, path_effects=HALO))
        if found.predicted_exponent is not None:
            axes.axvline(found.predicted_exponent - 0.5, linestyle="--", color=INK, label="predicted: range of results")
        if found.grid.is_accumulator and found.predicted_significand is not None:
            axes.axhline(
                found.predicted_significand - 0.5, linestyle=":", color=INK, label="predicted: variance retention"
            )
        figure.legend(
            handles=[*keys_of(found), *axes.get_legend_handles_labels()[0]], loc="outside lower left", ncols=2
        )
        axes.set(xlim=(stairs.xs[0] - 0.6, stairs.xs[-1] + 0.6), ylim=(stairs.ys[0] - 0.6, stairs.ys[-1] + 0.6))
        axes.set(xlabel="exponent bits", ylabel="significand bits", xticks=stairs.xs, yticks=stairs.ys)

    return draw(2.2 + 0.45 * len(stairs.xs), 2.4 + 0.35 * len(stairs.ys), paint)


def keys_of(found: Frontier) -> list[Artist]:
    """Return what the squares of the map mean, for its legend: a verdict each, then what is no verdict."""
    seen = dict.fromkeys(sorted((tried.verdict for tried in found.tried), key=str))
    keys: list[Artist] = [Patch(color=verdict.colour, alpha=TRIED, linewidth=0, label=str(verdict)) for verdict in seen]
    keys.append(Patch(color=INK, alpha=IMPLIED, linewidth=0, label="pale: implied, not trained"))
    return [*keys, Patch(**FRAME, path_effects=HALO, label="a smallest format")]
