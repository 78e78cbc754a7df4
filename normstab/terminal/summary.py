"""The verdicts and expectations of one scenario as plain text, for the end of a run on a terminal or in a log."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from tabulate import tabulate

from normstab.assess.assessment import Assessment
from normstab.assess.expected.outcome import Outcome
from normstab.assess.judgement import GroupJudgement
from normstab.assess.points import value_words, varying_axes
from normstab.report.answer import answer
from normstab.report.words import gravity, number

__all__ = ["summary"]

SHOWN = {Outcome.MET: "met", Outcome.NOT_MET: "NOT MET", Outcome.INCONCLUSIVE: "inconclusive"}


MOST_ROWS, MOST_NAMED = 200, 20  # of the table, and of cells without a record; the report and its JSON have the others

# The columns beside the setting and its verdict, by worth: each is shown where there is still room for it.
BY_WORTH = ("first offence", "points lost", "nats lost", "accuracy", "seeds")


def summary(found: Assessment, *, width: int | None = None) -> str:
    """Return the table of verdicts, each expectation, what could not be read, and last the answer.

    The table never wraps at `width` columns, by default the terminal's: columns for which there is no room are left
    out, those of least worth first.
    """
    parts = []
    if found.judged:
        shown = gravest_of(found.judged, MOST_ROWS)
        parts.append(_table(shown, width or shutil.get_terminal_size((80, 24)).columns))
        parts += _more(len(found.judged) - len(shown), "settings, none graver,")
    parts += ["\n".join(_expectations(found))] if found.expectations else []
    parts += [f"unreadable: {problem}" for problem in found.problems]
    parts += [f"warning: {warning}" for warning in found.warnings]
    parts += [f"no record: {cell.id}" for cell in found.missing[:MOST_NAMED]]
    parts += _more(len(found.missing) - MOST_NAMED, "cells without a record")
    parts += [answer(found).replace("`", "")] if found.judged else []
    return "\n\n".join(parts)


def gravest_of(judged: Sequence[GroupJudgement], most: int) -> list[GroupJudgement]:
    """Return at most so many of the groups, the gravest kept, in their own order."""
    kept = sorted(range(len(judged)), key=lambda index: -gravity(judged[index].verdict))[:most]
    return [judged[index] for index in sorted(kept)]


def _more(left: int, what: str) -> list[str]:
    """Return a sentence on what is left out; nothing where nothing is."""
    return [f"{left:,} more {what} are left out"] if left > 0 else []


def _table(judged: Sequence[GroupJudgement], width: int) -> str:
    """Return a row for each setting, named by what differs, without the columns for which there is no room."""
    axes = varying_axes(group.coordinates for group in judged) or list(judged[0].coordinates)[:1]
    rows = [_row(group, axes) for group in judged]
    shown = [name for name in rows[0] if name not in BY_WORTH]
    table = _of_columns(rows, shown)
    for name in [name for name in BY_WORTH if name in rows[0]]:
        wider = _of_columns(rows, [*shown, name])
        if max(map(len, wider.splitlines())) <= width:
            shown, table = [*shown, name], wider
    return table


def _of_columns(rows: Sequence[dict[str, str]], shown: Sequence[str]) -> str:
    """Return the table of some of the columns, in the order of the rows."""
    kept = [{name: text for name, text in row.items() if name in shown} for row in rows]
    return str(tabulate(kept, headers="keys", tablefmt="simple", missingval="", disable_numparse=True))


def _row(group: GroupJudgement, axes: Sequence[str]) -> dict[str, str]:
    """Return where in the grid, the verdict, how accurate beside the reference, and the first offence."""
    worst = group.worst
    first = "" if worst.first_site is None else worst.first_site
    if worst.first_step is not None:
        first += f", step {worst.first_step}"
    return {
        **{axis: value_words(axis, value) for axis, value in group.coordinates.items() if axis in axes},
        "seeds": str(len(group.cells)),
        "verdict": str(group.verdict),
        "accuracy": number(group.accuracy),
        **_lost(group),
        "first offence": first,
    }


def _lost(group: GroupJudgement) -> dict[str, str]:
    """Return what was lost beside the reference: points of accuracy, or nats of token loss."""
    if group.worst.run.is_of_tokens:
        return {"nats lost": "-" if group.gap is None else f"{group.gap.estimate:.3f}"}
    return {"points lost": "-" if group.gap is None else f"{100 * group.gap.estimate:.1f}"}


def _expectations(found: Assessment) -> list[str]:
    """Return a line for each expectation: its outcome, what it says, and why where it is not met."""
    return [
        f"{SHOWN.get(result.outcome, str(result.outcome))}: {result.statement}"
        + ("" if result.outcome is Outcome.MET else f" ({result.finding.reason})")
        for result in found.expectations
    ]
