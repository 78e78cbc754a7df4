"""Worsening a record never improves its verdict, for any run and any way to make it worse."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from normstab.assess.judgement import judge_runs
from normstab.assess.verdicts import Verdict
from normstab.experiment.records.cell_record import Nonfinite, Predictions
from tests.assess.synthetic import FP16, falling, make_cell, make_run

IMAGES, STEPS, CLASSES = 300, 80, 10
LABELS = np.arange(IMAGES) % CLASSES


def predicted(correct):
    return Predictions.of(LABELS, np.where(correct, LABELS, (LABELS + 1) % CLASSES))


def right(run):
    return run.record.predictions.correct


@st.composite
def groups(draw):
    """Reference and cell runs of one to three seeds, of any accuracy and any end of the loss."""
    seeds = draw(st.integers(1, 3))
    luck = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    accuracies = [draw(st.sampled_from([0.1, 0.13, 0.5, 0.84, 0.85, 0.86, 1.0])) for _ in range(2)]
    ends = [draw(st.sampled_from([0.3, 0.4, 0.6, 0.8, 2.5])) for _ in range(2)]
    runs = []
    shared = luck.random(IMAGES)
    for seed in range(seeds):
        for precision, accuracy, end in zip(("native", FP16), accuracies, ends, strict=True):
            churn = luck.random(IMAGES) < 0.1
            correct = np.where(churn, luck.random(IMAGES), shared) < accuracy
            losses = falling(end=end, steps=STEPS, seed=int(luck.integers(1000)))
            runs.append(
                make_run(make_cell(precision=precision, seed=seed), predicted=predicted(correct), losses=losses)
            )
    return runs


def lose_images(run, luck, amount):
    correct = right(run).copy()
    chosen = luck.permutation(np.flatnonzero(correct))[:amount]
    correct[chosen] = False
    return replace(run, record=replace(run.record, predictions=predicted(correct)))


def raise_losses(run, luck, amount):
    """Add to the second half: raising the start as well would make an end above it less likely."""
    steps = [replace(s, loss=s.loss + (0.05 * amount if s.step >= STEPS // 2 else 0.0)) for s in run.steps]
    return replace(run, steps=tuple(steps))


def die(run, luck, amount):
    return replace(run, record=replace(run.record, status="nonfinite", nonfinite=Nonfinite(amount, "logit")))


def lose_a_loss(run, luck, amount):
    step = int(luck.integers(len(run.steps)))
    return replace(run, steps=tuple(replace(s, loss=np.inf) if s.step == step else s for s in run.steps))


WORSENINGS = (lose_images, raise_losses, die, lose_a_loss)
# An open gap lies between STABLE and DEGRADED.
ORDER = [Verdict.STABLE, Verdict.INCONCLUSIVE, Verdict.DEGRADED, Verdict.DIVERGED, Verdict.COLLAPSED, Verdict.NONFINITE]


def verdicts_of(runs, run_id):
    judged = judge_runs(runs)
    group = next(group for group in judged.groups if not group.is_reference)
    return next(cell.verdict for cell in group.cells if cell.id == run_id), group.verdict


@given(groups(), st.sampled_from(WORSENINGS), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_worsening_a_record_never_improves_its_verdict(runs, worsening, amount, seed):
    worse = worsening(runs[1], np.random.default_rng(seed), amount)
    before, group_before = verdicts_of(runs, worse.id)
    after, group_after = verdicts_of([runs[0], worse, *runs[2:]], worse.id)
    assert ORDER.index(after) >= ORDER.index(before) or _only_the_reason_changed(runs, before, after)
    assert ORDER.index(group_after) >= ORDER.index(group_before) or _only_the_reason_changed(runs, before, after)


def _only_the_reason_changed(runs, before, after):
    """Below three standard errors of chance beside a reference at chance nothing can be said, and that is said."""
    return after is Verdict.INCONCLUSIVE and judge_runs(runs[:1]).groups[0].cells[0].run.is_at_chance
