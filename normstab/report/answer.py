"""The answer of a report in one sentence or two: which settings fail, how and where first, and which train.

The same words head the Markdown, the HTML and the job's summary, and end the terminal's.
"""

from __future__ import annotations

from collections.abc import Sequence

from normstab.assess.assessment import Assessment
from normstab.assess.judgement import GroupJudgement
from normstab.assess.points import point_words, varying_axes
from normstab.assess.verdicts import Verdict

__all__ = ["answer"]

MOST_NAMED = 3  # of each kind of setting; the matrix has the others


def answer(found: Assessment) -> str:
    """Return the answer: settings that fail with verdict, site and step, those that train, those not decided, remedies.

    A remedy is named where a setting of the grid that differs in it alone was run and is STABLE.
    """
    judged = found.judged
    if not judged:
        return ""
    axes = set(varying_axes(group.coordinates for group in judged))
    failing = sorted((g for g in judged if g.verdict.fails), key=lambda g: -g.verdict.value)
    kinds = (
        ("Fails", [f"{_named(g, axes)} ({_how(g)})" for g in failing]),
        ("Trains", [_named(g, axes) for g in judged if g.verdict is Verdict.STABLE]),
        ("Not decided", [_named(g, axes) for g in judged if g.verdict is Verdict.INCONCLUSIVE]),
    )
    told = [f"{kind} in {len(names)} of {len(judged)} settings: {_listed(names)}." for kind, names in kinds if names]
    helped = dict.fromkeys(r.advice for group in failing for r in group.remedies if r.tested == "STABLE")
    told += [f"Tried here, and stable: {_listed(list(helped))}."] if helped else []
    return " ".join(told)


def _named(group: GroupJudgement, axes: set[str]) -> str:
    """Return what tells a setting from the others."""
    return point_words({axis: value for axis, value in group.coordinates.items() if axis in axes})


def _how(group: GroupJudgement) -> str:
    """Return the verdict with its first site and step."""
    worst = group.worst
    at = "" if worst.first_site is None else f", first at `{worst.first_site}`"
    return f"{group.verdict}{at}" + ("" if not at or worst.first_step is None else f" in step {worst.first_step}")


def _listed(names: Sequence[str]) -> str:
    """Return the first few names, and how many are left."""
    left = len(names) - MOST_NAMED
    return "; ".join(names[:MOST_NAMED]) + (f"; and {left} more" if left > 0 else "")
