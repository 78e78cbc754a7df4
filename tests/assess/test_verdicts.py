"""Every rule of the verdicts and its boundaries, on synthetic runs."""

from dataclasses import replace

import numpy as np
import pytest

from normstab.assess.judgement import judge_runs
from normstab.assess.verdicts import RULES, Verdict, gravest
from normstab.experiment.records.cell_record import Nonfinite, Predictions
from tests.assess.synthetic import FP16, STEPS, falling, make_cell, make_run, predictions

IMAGES = 2000
SEEDS = (0, 1, 2)


def labelled(correct, images=IMAGES):
    """Predictions of which exactly the first `correct` images are right."""
    labels = np.arange(images) % 10
    return Predictions.of(labels, np.where(np.arange(images) < correct, labels, (labels + 1) % 10))


def pair(cell_run, reference_run=None, seed=0):
    reference = make_run(make_cell(seed=seed)) if reference_run is None else reference_run
    return [reference, cell_run]


def verdict(runs, **keywords):
    judged = judge_runs(runs, **keywords)
    return next(group for group in judged.groups if not group.is_reference).worst


def half_cell(seed=0, **record):
    return make_run(make_cell(precision=FP16, seed=seed), **record)


def test_equal_runs_are_stable():
    found = verdict(pair(half_cell()))
    assert (found.verdict, found.blame) == (Verdict.STABLE, None)


@pytest.mark.parametrize("what", ["loss", "parameter", "logit"])
def test_a_run_that_says_it_died_is_nonfinite(what):
    found = verdict(pair(half_cell(nonfinite=Nonfinite(12, what, "fc.addmm[forward]"))))
    assert found.verdict is Verdict.NONFINITE
    assert what in found.reason and "step 12" in found.reason


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_one_loss_that_is_not_finite_is_nonfinite_whatever_the_status_says(bad):
    losses = falling()
    losses[5] = bad
    assert verdict(pair(half_cell(losses=losses))).verdict is Verdict.NONFINITE


def test_a_loss_of_an_epoch_that_is_not_finite_is_nonfinite():
    run = half_cell()
    epochs = (replace(run.record.epochs[0], test_loss=float("inf")), run.record.epochs[1])
    assert verdict(pair(replace(run, record=replace(run.record, epochs=epochs)))).verdict is Verdict.NONFINITE


# Three standard errors of chance: 0.1 + 3 sqrt(0.1 * 0.9 / 2000) = 0.12012, that is 240.2 images.
@pytest.mark.parametrize(("correct", "expected"), [(0, "COLLAPSED"), (240, "COLLAPSED"), (241, "DEGRADED")])
def test_collapse_ends_three_standard_errors_above_chance(correct, expected):
    assert str(verdict(pair(half_cell(predicted=labelled(correct)))).verdict) == expected


@pytest.mark.parametrize("losses", [falling(), np.full(STEPS, 2.302), falling(end=5.0)], ids=["fell", "flat", "rose"])
def test_collapse_is_judged_by_accuracy_whatever_the_loss(losses):
    assert verdict(pair(half_cell(predicted=labelled(200), losses=losses))).verdict is Verdict.COLLAPSED


def test_chance_beside_a_reference_at_chance_is_no_collapse_and_no_success():
    reference = make_run(make_cell(), predicted=labelled(200))
    found = verdict(pair(half_cell(predicted=labelled(200)), reference))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "reference stays at chance" in found.reason


def test_a_loss_that_ends_above_its_start_diverged():
    found = verdict(pair(half_cell(losses=falling(start=0.5, end=0.6, noise=0.0))))
    assert found.verdict is Verdict.DIVERGED
    assert "above its start" in found.reason


@pytest.mark.parametrize(("share", "expected"), [(0.51, "STABLE"), (0.49, "DIVERGED"), (0.09, "DIVERGED")])
def test_one_seed_diverges_below_half_of_the_references_progress(share, expected):
    # Both fall fast and then stay, so that the smoothed end is the end.
    reference = np.concatenate([np.full(30, 3.0), np.full(STEPS - 30, 1.0)])
    losses = np.concatenate([np.full(30, 3.0), np.full(STEPS - 30, 3.0 - 2.0 * share)])
    found = verdict(pair(half_cell(losses=losses), make_run(make_cell(), losses=reference)))
    assert str(found.verdict) == expected


def test_a_loss_above_twice_the_references_is_no_divergence_where_most_of_the_progress_was_made():
    reference = np.concatenate([np.full(30, 0.172), np.full(STEPS - 30, 0.017)])
    losses = np.concatenate([np.full(30, 0.172), np.full(STEPS - 30, 0.043)])
    found = verdict(pair(half_cell(losses=losses), make_run(make_cell(), losses=reference)))
    assert found.verdict is Verdict.STABLE


def test_a_loss_near_the_references_that_made_nine_percent_of_its_progress_diverged():
    # The accuracies are alike, so that without the rule on progress the run would only be DEGRADED or STABLE.
    reference = np.concatenate([np.full(30, 2.30), np.full(STEPS - 30, 0.30)])
    losses = np.concatenate([np.full(30, 2.30), np.full(STEPS - 30, 2.12)])
    found = verdict(pair(half_cell(losses=losses), make_run(make_cell(), losses=reference)))
    assert found.verdict is Verdict.DIVERGED
    assert "less than half of the reference's progress (from 2.3 to 2.12, the reference to 0.3)" in found.reason


def seeds_around(mean, deviation):
    """Reference losses of three seeds with exactly this mean and standard deviation at every step."""
    return {seed: np.linspace(5.0, mean, STEPS) + (seed - 1) * deviation for seed in SEEDS}


@pytest.mark.parametrize(("excess", "expected"), [(1.99, "STABLE"), (2.01, "DIVERGED")])
def test_several_seeds_diverge_four_standard_deviations_above(excess, expected):
    # A standard deviation of 0.5 makes 4 sd = 2.0 wider than half of the progress, below 1.5.
    references = [make_run(make_cell(seed=s), losses=curve) for s, curve in seeds_around(2.0, 0.5).items()]
    losses = np.concatenate(
        [np.linspace(5.0, 2.0, STEPS)[: STEPS // 2], np.linspace(5.0, 2.0, STEPS)[STEPS // 2 :] + excess]
    )
    found = verdict([*references, half_cell(losses=losses)])
    assert str(found.verdict) == expected


@pytest.mark.parametrize(("below", "expected"), [(0, "DIVERGED"), (1, "STABLE")])
def test_divergence_needs_every_one_of_the_last_tenth_of_the_steps(below, expected):
    # The loss lies above the band, 2.15 and falling in the last tenth, for the second half; a dip 39 steps before the
    # end pulls the trailing mean of 20 steps below it up to the first of the last 20 steps.
    reference = make_run(make_cell(), losses=np.linspace(3.0, 1.0, STEPS))
    losses = np.linspace(3.0, 1.0, STEPS)
    losses[STEPS // 2 :] = 2.3
    losses[STEPS - 39] -= below * 12.0
    assert str(verdict(pair(half_cell(losses=losses), reference)).verdict) == expected


def test_at_chance_a_bad_loss_is_not_called_divergence():
    reference = make_run(make_cell(), predicted=labelled(200))
    found = verdict(pair(half_cell(predicted=labelled(200), losses=falling(end=9.0)), reference))
    assert found.verdict is not Verdict.DIVERGED


def losing(images, seeds):
    """Seeds that repeat each other, so without luck: 1700 of 2000 right, the cell loses `images` of them."""
    for seed in range(seeds):
        yield make_run(make_cell(seed=seed), predicted=labelled(1700))
        yield half_cell(seed, predicted=labelled(1700 - images))


# Two seeds, adjusted Wald: half width 1.96 sqrt(4 lost + 1 - (2 lost)^2 / 2001) / 4002, around lost / 2000.
@pytest.mark.parametrize(
    ("lost", "expected"), [(0, "STABLE"), (12, "STABLE"), (13, "INCONCLUSIVE"), (30, "INCONCLUSIVE"), (31, "DEGRADED")]
)
def test_the_gap_is_judged_by_its_95_percent_interval_against_one_point(lost, expected):
    half_width = 1.96 * np.sqrt(4 * lost + 1 - (2 * lost) ** 2 / 2001) / 4002
    ends = (lost / 2000 - half_width, lost / 2000 + half_width)
    assert expected == ("STABLE" if ends[1] <= 0.01 else "DEGRADED" if ends[0] > 0.01 else "INCONCLUSIVE")
    assert str(verdict(list(losing(lost, 2))).verdict) == expected


@pytest.mark.parametrize(
    ("lost", "expected"), [(0, "STABLE"), (9, "STABLE"), (10, "INCONCLUSIVE"), (39, "INCONCLUSIVE"), (40, "DEGRADED")]
)
def test_with_one_seed_its_luck_is_assumed_and_less_is_decided(lost, expected):
    """Luck of 1 point on both sides, as far as the predictions disagree: lost / 2000 of 2 * 0.85 * 0.15."""
    luck = 2 * 0.01**2 * (lost / 2000) / (2 * 0.85 * 0.15)
    half_width = 1.96 * np.sqrt((lost + 1 - lost**2 / 2002) / 2002**2 + luck)
    ends = (lost / 2000 - half_width, lost / 2000 + half_width)
    assert expected == ("STABLE" if ends[1] <= 0.01 else "DEGRADED" if ends[0] > 0.01 else "INCONCLUSIVE")
    assert str(verdict(list(losing(lost, 1))).verdict) == expected


def test_a_wider_tolerance_of_the_scenario_is_used():
    reference = make_run(make_cell(), predicted=labelled(1700))
    runs = pair(half_cell(predicted=labelled(1660)), reference)
    assert verdict(runs).verdict is Verdict.DEGRADED
    found = verdict(runs, tolerance=0.05)
    assert found.verdict is Verdict.STABLE
    assert "5 points" in found.reason


def test_more_accurate_than_the_reference_is_stable():
    reference = make_run(make_cell(), predicted=labelled(1500))
    assert verdict(pair(half_cell(predicted=labelled(1700)), reference)).verdict is Verdict.STABLE


def test_the_gap_pools_the_seeds():
    """Twelve images of 2000 lost are open with churn at one seed, and settled by nine seeds."""

    def runs(seeds):
        return [
            run
            for seed in range(seeds)
            for run in (
                make_run(make_cell(seed=seed), predicted=predictions(0.85, seed=seed, changed=0.05)),
                half_cell(seed, predicted=predictions(0.85, seed=100 + seed, changed=0.05)),
            )
        ]

    one, many = judge_runs(runs(1)).groups[1], judge_runs(runs(9)).groups[1]
    assert many.gap.standard_error < one.gap.standard_error / 2


def test_an_open_gap_says_how_many_more_seeds_and_images_would_settle_it():
    found = verdict(list(losing(15, 2)))
    assert found.verdict is Verdict.INCONCLUSIVE
    # 0.0075 +- 1.96 sqrt(4 * 15 + 1 - 30^2 / 2001) / 4002 = 0.0038: (0.0038 / 0.0025)^2 = 2.33 times the runs.
    assert "about 3 more seeds would settle it, or 2,6" in found.reason


def test_one_open_seed_asks_for_more_of_them():
    assert "about 6 more seeds would settle it" in verdict(list(losing(15, 1))).reason


def test_a_missing_reference_is_said():
    found = verdict([half_cell()])
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "record of its reference is missing" in found.reason


def test_a_reference_that_died_is_said():
    reference = make_run(make_cell(), nonfinite=Nonfinite(3, "loss"))
    assert "its reference is itself not finite" in verdict(pair(half_cell(), reference)).reason


def test_predictions_on_other_images_are_not_paired():
    reference = make_run(make_cell(), predicted=labelled(1700))
    found = verdict(pair(half_cell(predicted=labelled(800, images=1000)), reference))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "no per-image predictions" in found.reason


def test_a_hard_failure_needs_one_seed_and_leaves_the_others_their_own_verdict():
    references = [make_run(make_cell(seed=s), predicted=labelled(1700)) for s in SEEDS]
    cells = [half_cell(s, predicted=labelled(200 if s == 1 else 1700)) for s in SEEDS]
    group = judge_runs([*references, *cells]).groups[1]
    assert [str(cell.verdict) for cell in group.cells] == ["STABLE", "COLLAPSED", "STABLE"]
    assert group.verdict is Verdict.COLLAPSED
    assert group.gap.seeds == 2


def test_references_are_judged_too():
    died = make_run(make_cell(seed=1), nonfinite=Nonfinite(0, "loss"))
    judged = judge_runs([make_run(make_cell()), died])
    assert [str(cell.verdict) for cell in judged.cells] == ["STABLE", "NONFINITE"]


def test_the_gravest_rule_wins():
    run = half_cell(predicted=labelled(200), losses=falling(end=9.0), nonfinite=Nonfinite(1, "loss"))
    assert verdict(pair(run)).verdict is Verdict.NONFINITE
    assert list(RULES)[:-1] == sorted(list(RULES)[:-1], key=lambda v: -v.value)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["STABLE", "STABLE"], "STABLE"),
        (["STABLE", "INCONCLUSIVE"], "INCONCLUSIVE"),
        (["INCONCLUSIVE", "COLLAPSED"], "COLLAPSED"),
        (["DIVERGED", "NONFINITE"], "NONFINITE"),
    ],
)
def test_a_group_has_the_gravest_verdict_of_its_seeds(verdicts, expected):
    assert str(gravest([Verdict[name] for name in verdicts])) == expected


def test_swept_runs_have_no_verdict():
    run = half_cell()
    swept = replace(run, record=replace(run.record, cell={**run.record.cell, "sweep": {"exponents": [-1, 1]}}))
    assert judge_runs([swept]).groups == ()
