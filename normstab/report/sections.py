"""The sections of a Markdown report as text: headline, matrix, failures, tables; each one function.

The template puts them in order; nothing here judges or draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from statistics import fmean

from normstab.assess.assessment import Assessment
from normstab.assess.causes.blame import rate
from normstab.assess.causes.headroom import headroom
from normstab.assess.causes.whatif import WHATIF_FORMATS, forecast
from normstab.assess.expected.contrast import worded
from normstab.assess.expected.outcome import Outcome
from normstab.assess.judgement import GroupJudgement, Judgement
from normstab.assess.points import point_words, value_words, varying_axes
from normstab.assess.runs import Run
from normstab.assess.verdicts import Verdict
from normstab.experiment.scenario.metric_names import TOKEN_METRICS
from normstab.report.answer import answer
from normstab.report.words import (
    OUTCOME_MARKS,
    aligned,
    number,
)

__all__ = [
    "alert",
    "alert_word",
    "cells_table",
    "expectations_table",
    "headline",
    "headroom_table",
    "matrices",
    "remedies_table",
    "sites_table",
    "tokens_table",
    "undecided_table",
    "whatif_table",
]

MOST_MATRICES, MOST_ROWS, MOST_SITE_ROWS = 12, 200, 15
WIDEST_HEADING = 80  # characters of all column names of a matrix


def alert(found: Assessment) -> str:
    """Return GitHub's alert word of a report: a WARNING too where a record was lost."""
    word = alert_word([result.outcome for result in found.expectations])
    return "WARNING" if word in ("TIP", "NOTE") and (found.problems or found.missing) else word


def alert_word(outcomes: Sequence[Outcome]) -> str:
    """Return CAUTION for an outcome not met, WARNING for an open one, TIP where all are met, NOTE without any."""
    words = {Outcome.NOT_MET: "CAUTION", Outcome.INCONCLUSIVE: "WARNING", Outcome.MET: "TIP"}
    return next((word for outcome, word in words.items() if outcome in outcomes), "NOTE")


def headline(found: Assessment) -> list[str]:
    """Return the sentences that a hurried reader needs: the answer, the verdicts, the expectations."""
    if not found.groups:
        return ["**No finished cell.** Run the scenario to make its records."]
    shown = [f"{count} {verdict}" for verdict, count in sorted(found.tally().items(), key=lambda v: -v[0].value)]
    cells = sum(len(group.cells) for group in found.judged)
    lines = [f"**{answer(found)}**"] if shown else ["**References only.**"]
    lines += [f"{', '.join(shown)} of {cells} cells at {len(found.judged)} grid points."] if shown else []
    counted = [f"{found.count(outcome)} {outcome}" for outcome in Outcome if found.count(outcome)]
    lines += [f"Expectations: {', '.join(counted)}."] if counted else ["The scenario expects nothing."]
    return lines


def expectations_table(found: Assessment) -> str:
    """Return one row per expectation: outcome, what was expected, what was found and why."""
    rows = [
        (f"{OUTCOME_MARKS[result.outcome]} {result.outcome}", result.statement, result.finding.reason)
        for result in found.expectations
    ]
    return aligned(("outcome", "expected", "found"), rows)


def matrices(found: Assessment) -> list[tuple[str, str]]:
    """Return the verdict tables: norm by precision, one table per setting of the other axes, with its title.

    Without those axes the first two that vary are taken, or a list of one column.
    """
    varying = varying_axes([group.coordinates for group in found.groups])
    rows_axis = "norm" if "norm" in varying else next((a for a in varying if a != "precision"), "")
    columns_axis = "precision" if "precision" in varying else next((a for a in varying if a != rows_axis), "")
    others = [axis for axis in varying if axis not in (rows_axis, columns_axis)]
    tables: dict[str, list[GroupJudgement]] = {}
    for group in found.groups:
        point = {axis: group.coordinates.get(axis) for axis in others}
        tables.setdefault(point_words(point) if others else "", []).append(group)
    wide = {run.id: group for group in found.groups if group.is_reference for run in group.group.runs}
    shown = list(tables.items())[:MOST_MATRICES]
    return [(title, _matrix(groups, wide, rows_axis, columns_axis)) for title, groups in shown]


def _matrix(
    groups: Sequence[GroupJudgement], wide: Mapping[str, GroupJudgement], rows_axis: str, columns_axis: str
) -> str:
    """Return one table of verdicts and accuracies; a row whose reference stands elsewhere shows that one's too."""
    rows = list(dict.fromkeys(_at(group, rows_axis) for group in groups))
    columns = list(dict.fromkeys(_at(group, columns_axis) for group in groups))
    columns.sort(key=lambda name: "native" not in name)
    cells = {(_at(group, rows_axis), _at(group, columns_axis)): _verdict_cell(group) for group in groups}
    for group in groups:
        for reference in (wide[run.id] for run in group.group.references if run.id in wide):
            if (column := _at(reference, columns_axis)) in columns:
                cells.setdefault((_at(group, rows_axis), column), _verdict_cell(reference))
    if len("".join(columns)) > WIDEST_HEADING and len(rows) <= len(columns):
        # Turned, the long names stand below each other, and the page stays as wide as it is.
        rows, columns, rows_axis = columns, rows, columns_axis
        cells = {(column, row): text for (row, column), text in cells.items()}
    table = [[f"**{row}**", *(cells.get((row, column), "") for column in columns)] for row in rows]
    return aligned((rows_axis or " ", *(column or "verdict" for column in columns)), table)


def _at(group: GroupJudgement, axis: str) -> str:
    """Return the group's value on an axis, in words."""
    return value_words(axis, group.coordinates[axis]) if axis in group.coordinates else ""


def _verdict_cell(group: GroupJudgement) -> str:
    """Return a group's mark, verdict and mean accuracy; a reference that holds shows its accuracy alone."""
    accuracy = "" if group.accuracy is None else f" {100 * group.accuracy:.1f} %"
    if group.is_reference and group.verdict is Verdict.STABLE:
        return accuracy.strip() or "-"
    hit = sum(cell.verdict is group.verdict for cell in group.cells)
    share = "" if hit == len(group.cells) else f" ({hit} of {len(group.cells)} seeds)"
    return f"{group.verdict.marked}{accuracy}{share}"


def undecided_table(found: Assessment) -> str:
    """Return the grid points that are neither stable nor failing, and what would decide them; at most MOST_ROWS."""
    groups = [group for group in found.judged if group.verdict is Verdict.INCONCLUSIVE]
    rows = [(point_words(group.coordinates), group.worst.reason) for group in groups[:MOST_ROWS]]
    return aligned(("grid point", "why, and what would decide it"), rows)


def remedies_table(group: GroupJudgement) -> str:
    """Return one row per remedy: what to do, the evidence, and whether a cell of the grid tested it."""
    rows = [
        (
            remedy.advice,
            ", ".join(f"`{axis}: {value_words(axis, value)}`" for axis, value in remedy.change.items()),
            remedy.evidence,
            remedy.outcome,
        )
        for remedy in group.remedies
    ]
    return aligned(("what may help", "change", "evidence", "tested"), rows)


def sites_table(run: Run) -> str:
    """Return the worst sites of a run with their rates."""
    harmed = [
        (site, tally) for site, tally in run.totals.items() if tally.overflow or tally.underflow or tally.nan_produced
    ]
    harmed.sort(key=lambda item: (-rate(item[1], "overflow"), -rate(item[1], "underflow"), item[0]))
    rows = [
        (
            f"`{site}`",
            f"{tally.count:,}",
            *(_rate(rate(tally, c)) for c in ("overflow", "underflow", "subnormal", "nan_produced")),
        )
        for site, tally in harmed[:MOST_SITE_ROWS]
    ]
    return aligned(("site", "results", "overflow", "underflow", "subnormal", "NaN produced"), rows, right=range(1, 6))


def precision_lost(run: Run) -> list[str]:
    """Return what additions lost in the steps that were probed, a sentence for addends and one for digits."""
    said = {"absorbed": "addends changed nothing", "cancelled": "sums lost half of their digits or more"}
    sentences = []
    for counter, words in said.items():
        counts = {site: getattr(tally, counter) for site, tally in run.totals.items() if getattr(tally, counter)}
        if counts:
            site = max(counts, key=lambda each: (counts[each], each))
            most = f", most at `{site}`: {counts[site]:,}" if len(counts) > 1 else f" at `{site}`"
            sentences.append(f"in the steps that were probed {sum(counts.values()):,} {words}{most}")
    return sentences


def _rate(share: float) -> str:
    """Return a rate: a percentage from 0.1 % up, a power of ten below, a dash for none."""
    return "-" if not share else f"{100 * share:.1f} %" if share >= 1e-3 else f"{share:.0e}"


def headroom_table(run: Run) -> str:
    """Return the headroom of every norm layer of a run."""
    rows = [
        (
            f"`{layer.layer}`",
            layer.norm,
            f"{number(layer.low)} .. {number(layer.high)}",
            _binades(layer.up),
            f"`{layer.up_site}`" if layer.up_site else "-",
            _binades(layer.down),
            f"{layer.collapsed_channels}/{layer.channels}",
        )
        for layer in headroom(run)
    ]
    headers = ("layer", "norm", "scale s", "room up, binades", "limited by", "room down", "collapsed channels")
    return aligned(headers, rows, right=(3, 5, 6))


def _binades(value: float | None) -> str:
    """Return a headroom with one decimal and its sign."""
    return "-" if value is None else f"{value:+.1f}"


def whatif_table(run: Run) -> str:
    """Return the forecast of the worst sites in every format, from the reference's exponents."""
    rows = []
    for site in forecast(run)[:MOST_SITE_ROWS]:
        shares = [_forecast(site.overflow[name], site.underflow[name]) for name in WHATIF_FORMATS]
        span = f"2^{site.range.low} .. 2^{site.range.high}"
        rows.append((f"`{site.site}`", span, str(site.range.exponent_bits), *shares))
    return aligned(("site", "99.99 % lie in", "exponent bits", *WHATIF_FORMATS), rows, right=(2,)) if rows else ""


def _forecast(over: float, under: float) -> str:
    """Return predicted shares: an arrow up for overflow, down for underflow, a dot for neither."""
    parts = [f"↑{_rate(over)}"] * (over > 0) + [f"↓{_rate(under)}"] * (under > 0)
    return " ".join(parts) or "·"


def cells_table(cells: Sequence[Judgement]) -> str:
    """Return one row per cell, the gravest first, at most MOST_ROWS."""
    order = sorted(range(len(cells)), key=lambda i: (-cells[i].verdict.value, i))[:MOST_ROWS]
    rows = [_cell_row(cells[i]) for i in order]
    headers = (
        "cell",
        "verdict",
        "accuracy",
        "gap, sd",
        "first site",
        "step",
        "overflow",
        "underflow",
        "cosine",
        "lost updates",
    )
    return aligned(headers, rows, right=(2, 3, 5, 6, 7, 8, 9))


def _cell_row(cell: Judgement) -> Sequence[str]:
    """Return a cell's row."""
    metrics = cell.metrics
    accuracy = "-" if metrics["accuracy"] is None else f"{100 * metrics['accuracy']:.1f} %"
    rates = [_rate(metrics[name] or 0.0) for name in ("overflow_rate", "underflow_rate")]
    site = f"`{cell.first_site}`" if cell.first_site else "-"
    step = "-" if cell.first_step is None else str(cell.first_step)
    rest = (number(metrics["gradient_cosine"]), _rate(metrics["zero_updates"] or 0.0))
    gap = number(metrics["accuracy_gap_sd"], 2)
    name = f"{point_words(cell.coordinates)}{' (reference)' if cell.run.is_reference else ''}"
    return (name, cell.verdict.marked, accuracy, gap, site, step, *rates, *rest)


def tokens_table(groups: Sequence[GroupJudgement]) -> str:
    """Return what networks for tokens reach, a row for each grid point, at most MOST_ROWS; empty without any."""
    rows = [
        (point_words(group.coordinates), *(_mean(group, metric) for metric in TOKEN_METRICS))
        for group in islice((group for group in groups if group.worst.run.is_of_tokens), MOST_ROWS)
    ]
    headers = ("setting", *(name.replace("_", " ") for name in TOKEN_METRICS))
    return aligned(headers, rows, right=(1, 2, 3, 4)) if rows else ""


def _mean(group: GroupJudgement, metric: str) -> str:
    """Return the mean of a metric over the seeds that have it."""
    found = [cell.metrics[metric] for cell in group.cells if cell.metrics[metric] is not None]
    return worded(metric, fmean(found)) if found else "-"  # type: ignore[arg-type]
