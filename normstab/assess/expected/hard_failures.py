"""Claims with a run that died: inf and NaN are no accuracies, so verdicts decide them, not means.

Nothing here computes an interval.
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


def decided_by_failures(metric: str, good: Sequence[Group], bad: Sequence[Group]) -> Finding | None:
    """Return the finding where a run of `good` or `bad` ended with inf or NaN, or None where all stayed finite.

    `good`: the sides that must end well for the claim to hold; `bad`: those that may end worse. One run that died is
    enough, as for the verdict NONFINITE. Counted metrics tell of dead runs too and are not decided here.
    """
    if metric not in OUTCOMES:
        return None
    dead = [group for group in good if _dead(group)]
    if dead:
        return Finding(Outcome.NOT_MET, "; ".join(map(_sentence, dead)), "NONFINITE")
    dead = [group for group in bad if _dead(group)]
    if not dead:
        return None
    others = " and ".join(point_words(group.coordinates) for group in good)
    beside = f"; {others} stayed finite" if good else ", which is worse than any bound"
    return Finding(Outcome.MET, f"{'; '.join(map(_sentence, dead))}{beside}", "NONFINITE")


def _dead(group: Group) -> int:
    """Return how many runs of a group ended with inf or NaN."""
    return sum(run.is_nonfinite for run in group.runs)


def _sentence(group: Group) -> str:
    """Return that runs of the group died, with the first one's step."""
    count, step = _dead(group), min(run.record.steps for run in group.runs if run.is_nonfinite)
    seeds = f"{count} of {len(group.runs)} seeds"
    return f"{point_words(group.coordinates)}: NONFINITE ({seeds}), the first ended after {step} steps"
