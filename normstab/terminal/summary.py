"""The verdicts and expectations of one scenario as plain text, for the end of a run on a terminal or in a log."""

from __future__ import annotations

from tabulate import tabulate

from normstab.assess.assessment import Assessment
from normstab.assess.expected.outcome import Outcome
from normstab.assess.judgement import GroupJudgement
from normstab.assess.points import value_words
from normstab.report.words import number

__all__ = ["summary"]

SHOWN = {Outcome.MET: "met", Outcome.NOT_MET: "NOT MET", Outcome.INCONCLUSIVE: "inconclusive"}


def summary(found: Assessment) -> str:
    """Return the table of verdicts, a line for each expectation, and what could not be read."""
    parts = []
    if found.judged:
        rows = [_row(group) for group in found.judged]
        parts.append(tabulate(rows, headers="keys", tablefmt="simple", missingval="", disable_numparse=True))
    parts += ["\n".join(_expectations(found))] if found.expectations else []
    parts += [f"unreadable: {problem}" for problem in found.problems]
    parts += [f"no record: {cell.id}" for cell in found.missing]
    return "\n\n".join(parts)


def _row(group: GroupJudgement) -> dict[str, str]:
    """Return where in the grid, the verdict, how accurate beside the reference, and the first offence."""
    worst = group.worst
    first = "" if worst.first_site is None else worst.first_site
    if worst.first_step is not None:
        first += f", step {worst.first_step}"
    return {
        **{axis: value_words(axis, value) for axis, value in group.coordinates.items()},
        "seeds": str(len(group.cells)),
        "verdict": str(group.verdict),
        "accuracy": number(group.accuracy),
        "points lost": "-" if group.gap is None else f"{100 * group.gap.estimate:.1f}",
        "first offence": first,
    }


def _expectations(found: Assessment) -> list[str]:
    """Return a line for each expectation: its outcome, what it says, and why where it is not met."""
    return [
        f"{SHOWN.get(result.outcome, str(result.outcome))}: {result.statement}"
        + ("" if result.outcome is Outcome.MET else f" ({result.finding.reason})")
        for result in found.expectations
    ]
