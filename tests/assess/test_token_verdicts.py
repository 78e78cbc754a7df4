"""Networks for tokens: chance is the most frequent token, verdicts compare token losses seed by seed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from normstab.assess.judgement import judge_runs
from normstab.assess.runs import Run, contrast_of
from normstab.assess.statistics import seed_gap, t_quantile
from normstab.assess.verdicts import Verdict
from normstab.experiment.records.cell_record import LanguageRecord, Predictions
from normstab.report.sections import tokens_table
from tests.assess.synthetic import FP16, STEPS, falling, make_cell, make_run

TOKENS, CHANCE = 2000, 0.2


def spoken(accuracy: float) -> Predictions:
    """Predictions of tokens, a fifth of which are token 0; the wrong ones are one too high."""
    labels = np.where(np.arange(TOKENS) % 5 == 0, 0, 1 + np.arange(TOKENS) % 8)
    return Predictions.of(labels, labels + (np.arange(TOKENS) >= round(accuracy * TOKENS)))


def run_of(loss: float, *, seed: int = 0, precision: str = FP16, accuracy: float = 0.8, **record: object) -> Run:
    """A run for tokens that ends with this test loss."""
    run = make_run(
        make_cell(precision=precision, seed=seed), predicted=spoken(accuracy), losses=falling(end=loss, seed=seed)
    )
    epochs = (*run.record.epochs[:-1], replace(run.record.epochs[-1], test_loss=loss))
    language = LanguageRecord("pairs", CHANCE, 0.4, 0.6)
    return Run(replace(run.record, epochs=epochs, **{"language": language, **record}), run.steps)  # type: ignore[arg-type]


def judged(losses: list[float], wide: list[float], *, tolerance: float = 0.05):  # type: ignore[no-untyped-def]
    references = [run_of(loss, seed=seed, precision="native") for seed, loss in enumerate(wide)]
    cells = [run_of(loss, seed=seed) for seed, loss in enumerate(losses)]
    return judge_runs([*references, *cells], tolerance=tolerance).groups[-1]


WIDE = [0.50, 0.52, 0.47]


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([0.01, 0.012, 0.011], Verdict.STABLE),
        ([-0.2, -0.21, -0.19], Verdict.STABLE),
        ([0.0, 0.0, 0.0], Verdict.STABLE),
        ([0.09, 0.10, 0.095], Verdict.DEGRADED),
        ([0.00, 0.10, 0.05], Verdict.INCONCLUSIVE),
        ([0.01], Verdict.INCONCLUSIVE),
    ],
)
def test_the_verdict_is_that_of_students_interval_of_the_loss_gap_of_each_seed(
    gaps: list[float], verdict: Verdict
) -> None:
    found = judged([wide + gap for wide, gap in zip(WIDE, gaps, strict=False)], WIDE[: len(gaps)])
    assert found.verdict is verdict
    assert len(gaps) == 1 or ("token loss" in found.worst.reason and "nats" in found.worst.reason)


def test_one_seed_asks_for_another() -> None:
    assert "at least 1 more seed is needed" in judged([0.51], [0.5]).worst.reason


def test_the_interval_is_students_over_the_paired_seeds() -> None:
    gap = judged([0.52, 0.54, 0.52], WIDE).gap
    assert gap is not None and gap.quantity == "token loss"
    differences = np.array([0.02, 0.02, 0.05])
    reach = t_quantile(0.95, 2) * differences.std(ddof=1) / math.sqrt(3)
    interval = gap.interval(0.95)
    assert interval.estimate == pytest.approx(0.03)
    assert (interval.low, interval.high) == pytest.approx((0.03 - reach, 0.03 + reach))
    assert seed_gap([0.1], images=5, quantity="token loss") is None


def test_a_network_that_says_the_most_frequent_token_alone_has_collapsed() -> None:
    labels = spoken(1.0).label_array
    always = Predictions.of(labels, np.zeros_like(labels))
    wide, cell = run_of(0.5, precision="native"), run_of(0.5, predictions=always)
    assert cell.accuracy == cell.chance == CHANCE and cell.is_at_chance and not wide.is_at_chance
    assert judge_runs([wide, cell]).groups[-1].verdict is Verdict.COLLAPSED
    of_images = Run(replace(cell.record, language=None), cell.steps)
    assert of_images.chance == 0.1


def test_a_loss_that_made_little_progress_is_diverged_before_it_is_degraded() -> None:
    wide = [run_of(0.4, seed=seed, precision="native") for seed in range(2)]
    stuck = [Run(run_of(1.9, seed=s).record, make_run(losses=np.linspace(2.3, 1.9, STEPS)).steps) for s in range(2)]
    assert judge_runs([*wide, *stuck]).groups[-1].verdict is Verdict.DIVERGED


def test_tokens_of_a_sequence_are_no_independent_tests_so_accuracies_are_compared_by_seed() -> None:
    pairs = [(run_of(0.5, seed=s, accuracy=0.8 + 0.01 * s), run_of(0.5, seed=s, accuracy=0.75)) for s in range(3)]
    gap = contrast_of([((1.0, a), (-1.0, b)) for a, b in pairs], [])
    assert gap is not None and gap.image_variance == 0.0 and gap.quantity == "token accuracy"
    assert gap.estimate == pytest.approx(0.06)
    assert gap.standard_error == pytest.approx(np.std([0.05, 0.06, 0.07], ddof=1) / math.sqrt(3))
    assert contrast_of([((1.0, pairs[0][0]), (-1.0, pairs[0][1]))], []) is None


def test_token_metrics_are_of_tokens_alone_and_word_scores_of_the_end() -> None:
    run, image = run_of(0.5), make_run(make_cell(precision=FP16))
    found = judge_runs([run]).groups[0].cells[0].metrics
    assert (found["token_loss"], found["token_accuracy"]) == (0.5, 0.8)
    assert (found["word_accuracy"], found["chrf"]) == (0.4, 0.6)
    names = ("token_loss", "token_accuracy", "word_accuracy", "chrf")
    assert all(judge_runs([image]).groups[0].cells[0].metrics[name] is None for name in names)
    earlier = judge_runs([run.until(0.5)]).groups[0].cells[0].metrics
    assert earlier["word_accuracy"] is None and earlier["token_accuracy"] == pytest.approx(0.72)


def test_a_report_has_a_table_of_token_and_word_scores_and_one_of_images_has_none() -> None:
    groups = judge_runs([run_of(0.5, seed=s) for s in range(2)]).groups
    assert "40.00 %" in tokens_table(groups) and "token loss" in tokens_table(groups)
    assert tokens_table(judge_runs([make_run()]).groups) == ""
