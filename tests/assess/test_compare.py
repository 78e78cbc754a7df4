"""Comparing two runs: pairing, gates and their limits, what does not pair."""

from dataclasses import replace

import pytest

from normstab.assess.compare import compare_judged, parse_gate
from normstab.assess.judgement import judge_runs
from normstab.errors import NormstabError
from normstab.experiment.records.cell_record import Nonfinite
from normstab.numerics.ledger import Tally
from tests.assess.synthetic import FP16, make_cell, make_run
from tests.assess.test_verdicts import labelled


def runs(correct=1700, *, overflow=0, seeds=(0,), **record):
    sites = {"a.square[forward]": Tally(10_000, overflow=overflow)}
    cells = [(make_cell(seed=s), 1700) for s in seeds] + [(make_cell(precision=FP16, seed=s), correct) for s in seeds]
    return judge_runs([make_run(cell, predicted=labelled(n), sites=sites, **record) for cell, n in cells]).groups


def failures(gate, before, after):
    return compare_judged(before, after, [parse_gate(gate)]).failures


@pytest.mark.parametrize(
    ("gate", "after", "fails"),
    [
        ("accuracy:-1pp", {"correct": 1681}, False),
        ("accuracy:-1pp", {"correct": 1679}, True),
        ("accuracy:-0.01", {"correct": 1679}, True),
        ("accuracy:-1%", {"correct": 1684}, False),
        ("accuracy:-1%", {"correct": 1682}, True),
        ("accuracy:1pp", {"correct": 1679}, False),
        ("accuracy:1pp", {"correct": 1721}, True),
        ("overflow_rate:1e-4", {"overflow": 1}, False),
        ("overflow_rate:1e-4", {"overflow": 2}, True),
        ("overflow_rate:0", {"overflow": 1}, True),
        ("overflow_rate:0", {"overflow": 0}, False),
    ],
)
def test_a_negative_limit_fails_below_it_and_a_positive_one_above(gate, after, fails):
    assert bool(failures(gate, runs(), runs(**after))) is fails


def test_a_failure_says_which_cell_and_both_values():
    (sentence,) = failures("accuracy:-1pp", runs(), runs(1500))
    assert "precision fp16" in sentence and "85.00 % -> 75.00 %" in sentence


def test_a_run_that_died_has_the_accuracy_of_chance():
    assert len(failures("accuracy:-50pp", runs(), runs(nonfinite=Nonfinite(3, "loss")))) == 2


def test_a_step_that_came_is_earlier_than_never():
    assert failures("nonfinite_step:-1", runs(), runs(nonfinite=Nonfinite(3, "loss")))
    assert not failures("nonfinite_step:-1", runs(nonfinite=Nonfinite(3, "loss")), runs())


def test_a_metric_that_one_side_lost_fails():
    assert failures("scale_high:1", runs(), runs(norm_layers={}))


def test_a_gate_on_a_metric_that_no_cell_has_is_an_error():
    with pytest.raises(NormstabError, match="no cell has the metric 'gradient_cosine'"):
        failures("gradient_cosine:-0.1", runs(), runs())


def test_the_change_of_accuracy_has_an_interval_over_images_and_seeds():
    found = compare_judged(runs(1600, seeds=(0, 1)), runs(1650, seeds=(0, 1)))
    change = next(change for point, change in found.changes.items() if "fp16" in point)
    assert change.estimate == pytest.approx(0.025)
    assert 0 < change.low < 0.025 < change.high


def test_cells_pair_by_coordinates_whatever_their_ids():
    after = runs(1500)
    renamed = [
        replace(
            group,
            cells=tuple(replace(c, run=replace(c.run, record=replace(c.run.record, id="x"))) for c in group.cells),
        )
        for group in after
    ]
    assert len(compare_judged(runs(), renamed).cells) == 2


def test_cells_of_one_side_alone_are_listed():
    found = compare_judged(runs(seeds=(0, 1)), runs(seeds=(1, 2)))
    assert len(found.cells) == 2
    assert [point.rpartition(" ")[2] for point in found.only_before] == ["0", "0"]
    assert [point.rpartition(" ")[2] for point in found.only_after] == ["2", "2"]


def test_runs_without_a_common_cell_are_an_error():
    with pytest.raises(NormstabError, match="no cell is in both"):
        compare_judged(runs(seeds=(0,)), runs(seeds=(1,)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy", "expected METRIC:LIMIT"),
        ("acuracy:-1pp", "did you mean 'accuracy'"),
        ("accuracy:low", "expected a number"),
    ],
)
def test_a_gate_that_does_not_parse_says_what_is_allowed(text, message):
    with pytest.raises(NormstabError, match=message):
        parse_gate(text)


def test_a_gate_prints_as_it_was_written():
    assert str(parse_gate("accuracy:-1pp")) == "accuracy:-1pp"
