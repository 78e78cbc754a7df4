"""Claims with a run that died or never learned: verdicts decide them, not means.

Inf and NaN are no accuracies, and the mean of networks that learned and one that stayed at chance is that of none of
them. Nothing here computes an interval.
"""

from __future__ import annotations

from collections.abc import Sequence

from normstab.assess.expected.outcome import Finding, Outcome
from normstab.assess.points import point_words
from normstab.assess.runs import Group

__all__ = ["decided_by_failures"]

OUTCOMES = frozenset(
    {
        *("accuracy", "error", "best_accuracy", "accuracy_gap", "accuracy_gap_sd"),
        *("test_loss", "train_loss", "loss_gap_area", "loss_gap_end"),
        *("token_loss", "token_accuracy", "word_accuracy", "chrf"),
    }
)
"""The metrics that say how well a network ended; a network that is inf or NaN ended worse than any that is finite."""


def decided_by_failures(
    metric: str, good: Sequence[Group], bad: Sequence[Group], at: float | None = None
) -> Finding | None:
    """Return the finding where a run of `good` or `bad` failed, or None where none did.

    `good`: the sides that must end well for the claim to hold; `bad`: those that may end worse. One run that died is
    enough, as for the verdict NONFINITE; of `good` also one that ended at chance where others learned, where the claim
    is about the end (`at` None). How far a bad side at chance lies behind is a number. Counted metrics tell of dead
    runs too and are not decided here.
    """
    if metric not in OUTCOMES:
        return None
    dead = [group for group in good if _dead(group)]
    if dead:
        return Finding(Outcome.NOT_MET, "; ".join(map(_sentence, dead)), "NONFINITE")
    if at is None and any(
        not run.is_at_chance and not run.is_nonfinite for group in (*good, *bad) for run in group.runs
    ):
        lost = [group for group in good if _at_chance(group)]
        if lost:
            return Finding(Outcome.NOT_MET, "; ".join(map(_stayed, lost)), "COLLAPSED")
    dead = [group for group in bad if _dead(group)]
    if not dead:
        return None
    others = " and ".join(point_words(group.coordinates) for group in good)
    beside = f"; {others} stayed finite" if good else ", which is worse than any bound"
    return Finding(Outcome.MET, f"{'; '.join(map(_sentence, dead))}{beside}", "NONFINITE")


def _dead(group: Group) -> int:
    """Return how many runs of a group ended with inf or NaN."""
    return sum(run.is_nonfinite for run in group.runs)


def _at_chance(group: Group) -> int:
    """Return how many runs of a group ended at chance."""
    return sum(run.is_at_chance for run in group.runs)


def _stayed(group: Group) -> str:
    """Return that runs of the group never learned."""
    seeds = f"{_at_chance(group)} of {len(group.runs)} seeds"
    return f"{point_words(group.coordinates)}: at chance in the end ({seeds}), where others learned"


def _sentence(group: Group) -> str:
    """Return that runs of the group died, with the first one's step."""
    count, step = _dead(group), min(run.record.steps for run in group.runs if run.is_nonfinite)
    seeds = f"{count} of {len(group.runs)} seeds"
    return f"{point_words(group.coordinates)}: NONFINITE ({seeds}), the first ended after {step} steps"
