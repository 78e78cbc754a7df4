"""Verdicts: STABLE to NONFINITE, each a rule that fires with a reason, the gravest first.

A hard rule (NONFINITE, DIVERGED, COLLAPSED) needs one run; the others judge the gap pooled over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from normstab.assess.constants import constant
from normstab.assess.curves import end_steps, first_divergence, is_above, start_step
from normstab.assess.runs import Group, Run
from normstab.assess.statistics import PairedGap
from normstab.experiment.scenario.verdict_table import Verdict

__all__ = ["HARD", "RULES", "Rule", "Verdict", "gravest", "percent", "points", "verdict_of"]


@dataclass(frozen=True)
class Rule:
    """When a verdict holds: `fires` returns the reason, or None; `statement` says it in the report.

    `is_hard`: one run suffices, and no other is asked.
    """

    fires: Callable[[Run, Group, PairedGap | None], str | None]
    statement: str
    is_hard: bool


def nonfinite(run: Run, group: Group, gap: PairedGap | None) -> str | None:
    """Return why the run counts as NONFINITE: a loss, parameter or logit is inf or NaN."""
    failure = run.record.nonfinite
    if failure is not None:
        return f"a {failure.what} became inf or NaN in step {failure.step}" + (
            f" (seen at `{failure.site}`)" if failure.site else ""
        )
    for step in run.steps:
        if not math.isfinite(step.loss):
            return f"the loss became {step.loss} in step {step.step}"
    for number, epoch in enumerate(run.record.epochs, 1):
        if not (math.isfinite(epoch.test_loss) and math.isfinite(epoch.train_loss)):
            return f"a loss is inf or NaN in epoch {number}"
    return "the run ended early, with inf or NaN" if run.record.status == "nonfinite" else None


def collapsed(run: Run, group: Group, gap: PairedGap | None) -> str | None:
    """Return why the run counts as COLLAPSED: at chance while its reference is above it, whatever the loss."""
    reference = group.pairs.get(run.id)
    if reference is None or reference.accuracy is None or reference.is_at_chance or not run.is_at_chance:
        return None
    loss = f", with a finite loss of {run.smoothed[-1]:.3g}" if len(run.smoothed) else ""
    return (
        f"accuracy {percent(run.accuracy)} is chance ({percent(run.chance)}){loss}, "
        f"while its reference reaches {percent(reference.accuracy)}"
    )


def diverged(run: Run, group: Group, gap: PairedGap | None) -> str | None:
    """Return why the run counts as DIVERGED: above chance, but its loss rose or made too little of the progress."""
    reason = None if run.is_at_chance or not len(run.smoothed) else _too_little_progress(run, group)
    if reason is None:
        return None
    spike = next((spike for spike in run.spikes if not spike.is_recovered), None)
    return reason if spike is None else f"{reason}; a loss spike from step {spike.step} on did not recover"


def _too_little_progress(run: Run, group: Group) -> str | None:
    """Return how the loss rose, or stayed behind half of the reference's progress; None where it did neither."""
    start, end = run.smoothed[start_step(len(run.losses))], run.smoothed[-1]
    if end > start:
        return f"the smoothed loss ends at {end:.3g}, above its start of {start:.3g}"
    band = group.band
    if band is None or len(band.limit) < len(run.smoothed):
        return None
    last = end_steps(len(run.smoothed))
    if not is_above(run.smoothed, band)[-last:].all():
        return None
    step = first_divergence(run.smoothed, band)
    since = "" if step is None else f"; it left the band in step {step}"
    wide = band.mean[len(run.smoothed) - 1]
    return (
        f"over the last {last} steps its loss made less than half of the reference's progress "
        f"(from {start:.3g} to {end:.3g}, the reference to {wide:.3g}){since}"
    )


def degraded(run: Run, group: Group, gap: PairedGap | None) -> str | None:
    """Return why the group counts as DEGRADED: the gap's interval lies wholly beyond the tolerance."""
    if gap is None or gap.interval(constant("verdict_confidence")).low <= group.tolerance:
        return None
    return f"{gap_sentence(gap)}, a loss beyond the tolerance of {amount(gap, group.tolerance)}"


def stable(run: Run, group: Group, gap: PairedGap | None) -> str | None:
    """Return why the group counts as STABLE: the gap's interval lies wholly inside the tolerance."""
    if group.is_reference and not run.is_at_chance:
        return "the reference itself: finite, above chance, and its loss fell"
    if gap is None or run.is_at_chance or gap.interval(constant("verdict_confidence")).high > group.tolerance:
        return None
    return f"{gap_sentence(gap)}, no loss beyond the tolerance of {amount(gap, group.tolerance)}"


def inconclusive(run: Run, group: Group, gap: PairedGap | None) -> str | None:
    """Return why nothing can be said, and what would settle it."""
    if group.is_reference:
        return f"the reference itself stays at chance ({percent(run.accuracy)}): nothing can be judged against it"
    reference = group.pairs.get(run.id)
    if reference is None:
        return "the record of its reference is missing; run the scenario again to make it"
    if reference.is_nonfinite:
        return "its reference is itself not finite: there is nothing to compare with"
    if reference.is_at_chance:
        return f"its reference stays at chance ({percent(reference.accuracy)}): there is nothing to lose"
    if gap is None and run.is_of_tokens:
        return "one seed gives no interval of the token loss; at least 1 more seed is needed"
    if gap is None:
        return "no per-image predictions that pair with the reference's; run the scenario again with --fresh"
    settles = missing_sentence(gap, group.tolerance)
    return f"{gap_sentence(gap)} spans the tolerance of {amount(gap, group.tolerance)}; {settles}"


RULES: dict[Verdict, Rule] = {
    Verdict.NONFINITE: Rule(nonfinite, "a loss, parameter or logit is inf or NaN", True),
    Verdict.COLLAPSED: Rule(
        collapsed, "final accuracy within 3 standard errors of chance while the reference is above it", True
    ),
    Verdict.DIVERGED: Rule(
        diverged,
        "accuracy above chance, and the smoothed loss ends above its start, or over the last 10 % of the steps "
        "has made less than half of the reference's progress (start minus end), by more than 4 sd of its seeds",
        True,
    ),
    Verdict.DEGRADED: Rule(degraded, "the paired gap's 95 % interval lies wholly beyond the tolerance", False),
    Verdict.STABLE: Rule(
        stable,
        "the paired gap's 95 % interval lies wholly inside the tolerance; more accurate than the reference is inside; "
        "of networks for tokens the gap is that of the token loss",
        False,
    ),
    Verdict.INCONCLUSIVE: Rule(
        inconclusive, "anything else; says how many more seeds or images would settle it", False
    ),
}
"""The rules, the gravest first: the first that fires is the verdict."""
HARD = frozenset(verdict for verdict, rule in RULES.items() if rule.is_hard)
"""The verdicts for which one run suffices."""


def verdict_of(run: Run, group: Group, gap: PairedGap | None, *, only_hard: bool = False) -> tuple[Verdict, str] | None:
    """Return the gravest verdict whose rule fires, with its reason; None only with `only_hard`."""
    for verdict, rule in RULES.items():
        if rule.is_hard or not only_hard:
            reason = rule.fires(run, group, gap)
            if reason is not None:
                return verdict, reason
    assert only_hard, "INCONCLUSIVE always has a reason"
    return None


def gravest(verdicts: list[Verdict]) -> Verdict:
    """Return the verdict of a group: the gravest of a hard rule, else INCONCLUSIVE where one is, else the gravest."""
    worst = max(verdicts, key=lambda verdict: verdict.value)
    return Verdict.INCONCLUSIVE if worst.value <= 1 and Verdict.INCONCLUSIVE in verdicts else worst


def percent(share: float | None) -> str:
    """Return a share as `85.1 %`, or a dash."""
    return "-" if share is None else f"{100 * share:.1f} %"


def points(share: float) -> str:
    """Return a difference of shares as `1.0 points`."""
    return f"{100 * share:.3g} point{'' if share == 0.01 else 's'}"


def amount(gap: PairedGap, size: float) -> str:
    """Return an amount of what the gap is of, in its unit."""
    return f"{size:.3g} nats" if gap.quantity == "token loss" else points(size)


def gap_sentence(gap: PairedGap) -> str:
    """Return the gap in words, with its interval."""
    interval = gap.interval(constant("verdict_confidence"))
    if gap.quantity == "token loss":
        where = "above" if gap.estimate >= 0 else "below"
        return (
            f"token loss {abs(gap.estimate):.4f} nats {where} the reference's "
            f"({interval.low:.4f} to {interval.high:.4f}, 95 %, {gap.seeds} seeds)"
        )
    where = "below" if gap.estimate >= 0 else "above"
    seeds = "1 seed, whose luck is assumed" if gap.seeds == 1 else f"{gap.seeds} seeds"
    return (
        f"{100 * abs(gap.estimate):.2f} points {where} the reference "
        f"(gap {100 * interval.low:.2f} to {100 * interval.high:.2f}, 95 %, {seeds}, {gap.images:,} images)"
    )


def missing_sentence(gap: PairedGap, bound: float, confidence: float | None = None) -> str:
    """Return how many more seeds or images would tell on which side of `bound` the gap lies."""
    chosen = constant("verdict_confidence") if confidence is None else confidence
    seeds, images = gap.more_seeds(bound, chosen), gap.more_images(bound, chosen)
    if seeds is None:
        return "the gap is too near the tolerance for any practical number of seeds"
    more = f"about {seeds:,} more seed{'' if seeds == 1 else 's'} would settle it"
    return more if images is None else f"{more}, or {images:,} more test images"
