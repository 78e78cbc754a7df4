"""Remedies come from evidence in the record alone, with its number, and say whether the grid tested them."""

from dataclasses import replace

import pytest

from normstab.assess.causes.remedies import REMEDIES, changed_settings
from normstab.assess.judgement import judge_runs
from normstab.experiment.records.cell_record import NormLayerRecord
from normstab.numerics.ledger import Histogram, Tally
from normstab.numerics.precision import Precision
from tests.assess.synthetic import FP16, make_cell, make_run, predictions, story

LAYERS = {"bn1": NormLayerRecord("l2", 64, 16, 0, 0.5, 2.0, 1e-12)}


def offered(sites, *, precision="fp16", norm="l2", **record):
    """The remedies, by name, for a collapsed cell with these sites."""
    precision = str(Precision.parse(precision))
    layers = {"bn1": replace(LAYERS["bn1"], norm=norm)}
    cell = make_cell(norm, precision)
    run = make_run(cell, predicted=predictions(0.1), sites=sites, norm_layers=layers, **record)
    judged = judge_runs([make_run(make_cell(norm)), run]).groups[1]
    return {remedy.name: remedy for remedy in judged.remedies}


SQUARES = {"bn1.square[forward]": Tally(1000, overflow=250, largest=2.0**20)}
VARIANCES = {"bn1.dispersion.div[forward]": Tally(16, overflow=3, largest=2.0**17)}
DEVIATIONS = {"bn1.centre[forward]": Tally(1000, largest=2.0**9)}
SUMS = {"bn1.dispersion.sum[forward]": Tally(16, overflow=4, largest=2.0**18)}
EPS = {"bn1.eps.const[forward]": Tally(1, underflow=1, smallest=1e-12, largest=1e-12)}
GRADIENTS = Histogram({-30: 100, -26: 100, -10: 800})
FLUSHED = {"bn1.grad[backward]": Tally(1000, underflow=200, largest=2.0**-9, histogram=GRADIENTS)}

EVIDENCE = {
    "wide squares": (SQUARES, ["250 of 1,000 squares overflowed", "`bn1.square[forward]`", "2^20.0"]),
    "wide variances": (VARIANCES, ["3 of 16 variances overflowed", "`bn1.dispersion.div[forward]`", "2^17.0"]),
    "blocked means": (SUMS, ["4 sums overflowed", "`bn1.dispersion.sum[forward]`", "2^18.0"]),
    "L1 norm": (SQUARES, ["2^20.0", "1024"]),
    "larger eps": (EPS, ["eps = 1e-12 is zero in fp16", "6.1e-05"]),
    "loss scale": (FLUSHED, ["200 of 1,000", "leaves 23 binades", "saves 100.0 %"]),
    "bf16": (SQUARES, ["250 results overflowed", "bf16"]),
    "wide accumulator": (SUMS, ["4 sums overflowed", "`bn1.dispersion.sum[forward]`", "accumulators of fp16"]),
    "Linf norm": ({**SUMS, **DEVIATIONS}, ["4 sums of deviations overflowed", "the largest deviation is 2^9.0"]),
    "wide operation": (VARIANCES, ["3 of 16 results of `dispersion.div` overflowed in 1 module", "2^17.0"]),
}
PRECISIONS = {"wide accumulator": "fp16/nearest/fp16"}


@pytest.mark.parametrize("name", EVIDENCE)
def test_a_remedy_is_offered_with_the_number_that_supports_it(name):
    sites, words = EVIDENCE[name]
    evidence = offered(sites, precision=PRECISIONS.get(name, "fp16"))[name].evidence
    assert [word for word in words if word not in evidence] == []


def test_an_operation_that_overflows_in_several_modules_is_kept_wide_in_all_and_in_one_by_name():
    one = offered(VARIANCES)["wide operation"]
    assert one.change == {"numerics.rules.bn1::dispersion.div": str(Precision.parse("fp32"))}
    several = {f"block{i}.fc.addmm[forward]": Tally(10, overflow=i, largest=2.0**20) for i in (1, 2)}
    assert list(offered(several)["wide operation"].change) == ["numerics.rules.op:addmm"]
    assert "wide operation" not in offered({"fc.weight[forward]": Tally(10, overflow=1, largest=2.0**20)})


def test_a_change_deep_in_the_settings_leaves_the_cell_as_it_was():
    cell = make_cell(precision=FP16).to_json()
    changed = changed_settings(cell, {"train.optimizer.kahan": True, "numerics.rules.op:addmm": "fp32"})
    assert changed["train"]["optimizer"]["kahan"] and not cell["train"]["optimizer"]["kahan"]
    assert changed["numerics"]["rules"] == {"op:addmm": "fp32"} and not cell["numerics"]["rules"]


def test_lost_updates_call_for_stochastic_rounding_or_compensation():
    cell = make_cell(precision=FP16)
    run = make_run(cell, predicted=predictions(0.1))
    epochs = tuple(replace(epoch, updates=1000, updates_zero=960) for epoch in run.record.epochs)
    run = replace(run, record=replace(run.record, epochs=epochs))
    remedies = {r.name: r for r in judge_runs([make_run(make_cell()), run]).groups[1].remedies}
    assert remedies["Kahan updates"].change == {"train.optimizer.kahan": True}
    remedy = remedies["stochastic rounding"]
    assert "1,920 of 2,000 weight updates (96.0 %)" in remedy.evidence
    assert Precision.parse(remedy.change["precision"]).rounding.is_stochastic


def test_every_remedy_of_the_catalogue_is_tried_above():
    assert set(EVIDENCE) | {"stochastic rounding", "Kahan updates"} == set(REMEDIES)


def test_without_evidence_nothing_is_offered():
    assert offered({"bn1.square[forward]": Tally(1000, largest=100.0, smallest=1.0)}) == {}


def test_a_stable_cell_needs_no_remedy():
    run = make_run(make_cell(precision=FP16), sites=SQUARES, norm_layers=LAYERS)
    assert judge_runs([make_run(make_cell()), run]).groups[1].remedies == ()


@pytest.mark.parametrize(
    ("name", "sites", "keywords"),
    [
        ("blocked means", SUMS, {"precision": "fp16;mean=blockwise64"}),
        ("L1 norm", SQUARES, {"norm": "l1"}),
        ("L1 norm", {"bn1.square[forward]": Tally(9, overflow=9, largest=2.0**40)}, {}),
        ("loss scale", {**FLUSHED, "fc.grad[backward]": Tally(9, overflow=1)}, {}),
        ("bf16", SQUARES, {"precision": "bf16"}),
        ("wide squares", {"bn1.square[forward]": Tally(100_000, underflow=99)}, {}),
        ("wide variances", {**SQUARES, **VARIANCES}, {}),
        ("wide variances", VARIANCES, {"norm": "l1"}),
        ("wide operation", SQUARES, {}),
        ("wide accumulator", SUMS, {}),
        ("Linf norm", {**SUMS, **DEVIATIONS}, {"norm": "linf"}),
    ],
)
def test_what_would_not_help_is_not_offered(name, sites, keywords):
    assert name not in offered(sites, **keywords)


def test_a_loss_scale_leaves_the_gradients_a_binade_of_room():
    scale = offered(FLUSHED)["loss scale"].change["train.loss_scale"]
    assert 2.0**-9 * scale <= 65504 / 2 < 2.0**-9 * scale * 2


def test_a_remedy_says_what_became_of_it_where_the_grid_tried_it():
    groups = judge_runs(story()).groups
    broken = next(group for group in groups if str(group.verdict) == "COLLAPSED")
    tested = {remedy.name: remedy.tested for remedy in broken.remedies}
    assert tested == {"wide squares": "STABLE", "bf16": None, "wide operation": None}


def variant_of(cell, **changes):
    """Return the cell as a variant has it: its settings changed, its coordinates silent about them."""
    coordinates = {axis: value for axis, value in cell.coordinates.items() if axis != "norm"} | {"variant": "tried"}
    return replace(cell, coordinates=coordinates, **changes)


def offered_with(verdicts, *, norm="l2"):
    """The remedies of a collapsed fp16 cell, in order, where variants that keep squares wide or use l1 were run."""
    layers = {"bn1": replace(LAYERS["bn1"], norm=norm)}
    cell = make_cell(norm, FP16)
    runs = [make_run(make_cell(norm)), make_run(cell, predicted=predictions(0.1), sites=SQUARES, norm_layers=layers)]
    for change, accuracy in verdicts:
        other = variant_of(cell, **change)
        runs.append(make_run(other, predicted=predictions(accuracy)))
    judged = next(group for group in judge_runs(runs).groups if group.remedies)
    return list(judged.remedies)


def test_a_remedy_that_failed_in_the_same_records_is_never_first():
    wide = str(Precision.parse("fp16;square=fp32"))
    cell = make_cell("l2", FP16)
    assert offered_with([])[0].name == "wide squares"
    found = offered_with([({"numerics": replace(cell.numerics, precision=wide)}, 0.1)])
    assert found[-1].name == "wide squares"
    assert found[-1].tested == "COLLAPSED" and found[-1].has_failed
    assert [remedy.has_failed for remedy in found] == sorted(remedy.has_failed for remedy in found)


def test_a_remedy_that_a_variant_tried_counts_as_tried_and_comes_first_where_it_helped():
    cell = make_cell("l2", FP16)
    found = offered_with([({"model": replace(cell.model, norm="l1")}, 0.85)])
    assert found[0].name == "L1 norm"
    assert found[0].tested == "STABLE" and not found[0].has_failed
