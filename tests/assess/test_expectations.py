"""Every form of an expectation: met, not met, inconclusive, not evaluated."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from normstab.assess.expected.expectations import FORMS, Findings, judge_expectation
from normstab.assess.expected.group_selection import contexts
from normstab.assess.expected.outcome import Finding, Outcome, all_of, any_of
from normstab.assess.judgement import judge_runs
from normstab.assess.runs import group_runs
from normstab.experiment.records.cell_record import EpochRecord, SweepPoint
from normstab.experiment.scenario.expectation import ExpectationField
from normstab.experiment.scenario.spec import SweepSpec
from normstab.numerics.ledger import Tally
from tests.assess.synthetic import FP16, make_cell, make_run, nonfinite_run, predictions, story

ADAPTER = TypeAdapter(ExpectationField)
GROUPS = judge_runs(story()).groups
BROKEN = {"norm": "l2", "precision": "fp16", "input_scale": 256}


def judged(plain, groups=GROUPS, **keywords):
    found = groups if isinstance(groups, Findings) else Findings(groups)
    return judge_expectation(ADAPTER.validate_json(json.dumps(plain)), found, **keywords)


def outcome(plain, groups=GROUPS):
    return str(judged(plain, groups).outcome)


L1, L2, LINF, TOP10, WIDE = {"norm": "l1"}, {"norm": "l2"}, {"norm": "linf"}, {"norm": "top10"}, {"precision": "native"}
HALF_L1, WIDE_L1, WIDE_LINF, AT_256 = {**L1, "precision": "fp16"}, {**L1, **WIDE}, {**LINF, **WIDE}, {**BROKEN}
del AT_256["norm"]
RECOVERED = {"recovered": L1, "low": LINF, "high": L2, "where": WIDE}

CASES = [
    ("met", {"where": BROKEN, "verdict": ["COLLAPSED", "NONFINITE"]}),
    ("not met", {"where": BROKEN, "verdict": "STABLE"}),
    ("not met", {"where": L2, "verdict": "STABLE"}),
    ("not met", {"where": TOP10, "verdict": "STABLE"}),
    ("met", {"metric": "overflow_rate", "where": BROKEN, "at_least": 0.01}),
    ("not met", {"metric": "overflow_rate", "where": BROKEN, "at_most": 0.01}),
    ("met", {"metric": "accuracy", "where": L1, "at_least": 0.8, "at_most": 0.9}),
    ("inconclusive", {"metric": "accuracy", "where": HALF_L1, "at_least": 0.84}),
    ("met", {"metric": "error", "where": L1, "at_most": 0.2}),
    ("met", {"metric": "accuracy", "better": L1, "worse": L2, "where": AT_256, "by": "20pp"}),
    ("not met", {"metric": "accuracy", "better": L2, "worse": L1, "where": AT_256}),
    ("not met", {"metric": "accuracy", "better": L1, "worse": L2, "by": "20pp"}),
    ("met", {"metric": "error", "better": L1, "worse": L2, "where": AT_256, "by": "80%"}),
    ("not met", {"metric": "error", "better": L1, "worse": L2, "where": AT_256, "by": "90%"}),
    ("met", {"metric": "overflow_rate", "better": L1, "worse": L2, "where": AT_256, "by": "90%"}),
    ("met", {"metric": "accuracy", "within": "1pp", "where": L1}),
    ("not met", {"metric": "accuracy", "within": "1pp", "where": L2}),
    ("not met", {"metric": "accuracy", "within": "1pp", "where": WIDE_LINF, "of": L2}),
    ("inconclusive", {"metric": "accuracy", "within": "1pp", "where": WIDE_L1, "of": L2}),
    ("met", {"metric": "accuracy", "within": "5%", "where": WIDE_LINF, "of": L2}),
    ("met", {"metric": "accuracy", **RECOVERED, "at_least": 0.5}),
    ("not met", {"metric": "accuracy", **RECOVERED, "at_least": 0.95}),
    ("inconclusive", {"metric": "accuracy", "recovered": L1, "low": L2, "high": LINF, "where": WIDE, "at_least": 0.5}),
    ("not met", {"identical": [{"precision": "fp16"}, WIDE], "where": L1}),
    ("met", {"any": [{"where": BROKEN, "verdict": "STABLE"}, {"where": BROKEN, "verdict": "COLLAPSED"}]}),
    ("not met", {"any": [{"where": BROKEN, "verdict": "STABLE"}, {"where": BROKEN, "verdict": "DIVERGED"}]}),
    ("not met", {"any": [{"where": BROKEN, "verdict": "STABLE"}, {"where": TOP10, "verdict": "STABLE"}]}),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "plain"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_an_expectation_is_met_missed_or_left_open(expected, plain):
    found = judged(plain)
    assert str(found.outcome) == expected, found.finding.reason
    assert found.statement and found.finding.reason


def test_every_form_is_tried_above():
    assert {type(judged(plain).expectation) for _, plain in CASES} == set(FORMS)


def test_under_smoke_only_what_is_marked_is_judged():
    plain = {"where": BROKEN, "verdict": "COLLAPSED"}
    assert judged(plain, only_smoke=True).outcome is Outcome.NOT_EVALUATED
    assert judged({**plain, "smoke": True}, only_smoke=True).outcome is Outcome.MET


@pytest.mark.parametrize(("precisions", "wanted"), [((("native", FP16),) * 2, 2), ((("native",), (FP16,)), 1)])
def test_variants_are_compared_at_one_precision_unless_each_has_its_own(precisions, wanted):
    runs = [
        make_run(make_cell(precision=precision, variant=name), predicted=predictions(0.8))
        for name, own in zip(("plain", "scaled"), precisions, strict=True)
        for precision in own
    ]
    groups = judge_runs(runs).groups
    pairs = contexts([each.group for each in groups], None, [{"variant": "plain"}, {"variant": "scaled"}])
    assert len(pairs) == wanted


def test_equal_runs_are_identical_and_a_changed_norm_is_not():
    def runs(norm):
        made = [make_run(make_cell(variant=name), predicted=predictions(0.8)) for name in ("plain", "scaled")]
        epochs = [(EpochRecord(0.8, 1.0, 1.0, weight_norms={"conv": (value,)}),) for value in (1.0, norm)]
        return [replace(run, record=replace(run.record, epochs=e)) for run, e in zip(made, epochs, strict=True)]

    plain = {"identical": [{"variant": "plain"}, {"variant": "scaled"}]}
    assert outcome(plain, judge_runs(runs(1.0)).groups) == "met"
    assert outcome(plain, judge_runs(runs(1.0000001)).groups) == "not met"


@pytest.mark.parametrize(("other", "wanted"), [("a1", "met"), ("b2", "not met"), (None, "met")])
def test_equal_runs_have_equal_weights_where_both_records_have_their_hash(other, wanted):
    made = [make_run(make_cell(variant=name), predicted=predictions(0.8)) for name in ("plain", "scaled")]
    runs = [
        replace(run, record=replace(run.record, weights_sha256=digest))
        for run, digest in zip(made, ("a1", other), strict=True)
    ]
    assert outcome({"identical": [{"variant": "plain"}, {"variant": "scaled"}]}, judge_runs(runs).groups) == wanted


def test_a_run_that_died_loses_any_ordering_whatever_the_amount():
    runs = [make_run(make_cell(norm, seed=s)) for norm in ("l2", "l1") for s in (0, 1)]
    runs += [nonfinite_run(make_cell("l2", FP16, s)) for s in (0, 1)]
    runs += [make_run(make_cell("l1", FP16, s), accuracy=0.85) for s in (0, 1)]
    groups = judge_runs(runs).groups
    plain = {
        "metric": "accuracy",
        "better": {"norm": "l1"},
        "worse": {"norm": "l2"},
        "where": {"precision": "fp16"},
        "by": "70pp",
    }
    assert outcome(plain, groups) == "met"
    assert outcome({**plain, "by": "95pp"}, groups) == "met"
    turned = {**plain, "better": plain["worse"], "worse": plain["better"], "by": 0}
    assert outcome(turned, groups) == "not met"
    within = {"metric": "accuracy", "within": "99pp", "where": {"norm": "l2", "precision": "fp16"}}
    assert outcome(within, groups) == "not met"
    assert outcome({**within, "where": {"norm": "l1", "precision": "fp16"}}, groups) == "met"
    bound = {"metric": "accuracy", "where": {"norm": "l2", "precision": "fp16"}}
    assert outcome({**bound, "at_least": 0.0}, groups) == "not met"


def test_one_seed_leaves_a_difference_of_losses_open_and_says_so():
    groups = judge_runs(story(seeds=(0,))).groups
    found = judged(
        {"metric": "test_loss", "better": {"norm": "l1"}, "worse": {"norm": "l2"}, "where": {"precision": "native"}},
        groups,
    )
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "1 more seed is needed" in found.finding.reason


def test_counted_metrics_are_judged_seed_by_seed():
    def groups(rates):
        runs = [make_run(make_cell(seed=s)) for s in range(len(rates))]
        runs += [
            make_run(make_cell(precision=FP16, seed=s), sites={"a.x[forward]": Tally(100, underflow=n)})
            for s, n in enumerate(rates)
        ]
        return judge_runs(runs).groups

    plain = {"metric": "underflow_rate", "where": {"precision": "fp16"}, "at_most": 0.1}
    assert [outcome(plain, groups(rates)) for rates in ([9, 10], [9, 11], [11, 12])] == [
        "met",
        "inconclusive",
        "not met",
    ]


def test_a_step_that_never_came_is_later_than_any():
    plain = {"metric": "nonfinite_step", "where": {"precision": "fp16"}, "at_least": 1000}
    assert outcome(plain) == "met"


def test_an_earlier_epoch_is_looked_at_when_asked():
    # The first of two epochs has 90 % of the final accuracy.
    plain = {"metric": "accuracy", "where": {"norm": "l1", "precision": "native"}, "at_most": 0.77}
    assert outcome({**plain, "at": 0.1}) == "met"
    assert outcome(plain) == "not met"


def swept(norm, errors, low=-2):
    cell = replace(make_cell(norm, FP16), sweep=SweepSpec(exponents=(low, low + len(errors) - 1)), reference_id=None)
    points = tuple(SweepPoint(low + i, error, 0) for i, error in enumerate(errors))
    return make_run(cell, sweep={"bn1": points}, epochs=(), norm_layers={})


def test_a_sweep_is_the_contiguous_scales_around_one_within_one_percent():
    runs = [swept("l2", [0.5, 0.01, 0.0, 0.011, 0.0]), swept("l1", [0.0, 0.0, 0.0, 0.0, np.inf])]
    found = Findings((), group_runs(runs, tolerance=0.01))
    plain = {"metric": "sweep_binades", "better": {"norm": "l1"}, "worse": {"norm": "l2"}, "by": 2}
    assert outcome(plain, found) == "met"
    assert outcome({**plain, "by": 3}, found) == "not met"
    assert outcome({"metric": "sweep_low", "where": {"norm": "l2"}, "at_least": -1, "at_most": -1}, found) == "met"
    assert outcome({"metric": "sweep_high", "where": {"norm": "l2"}, "at_least": 0, "at_most": 0}, found) == "met"


def test_findings_combine_by_the_worst_or_by_the_best():
    met, missed, left_open = (Finding(o, str(o)) for o in (Outcome.MET, Outcome.NOT_MET, Outcome.INCONCLUSIVE))
    assert [all_of(f).outcome for f in ([met], [met, left_open], [met, left_open, missed], [])] == [
        Outcome.MET, Outcome.INCONCLUSIVE, Outcome.NOT_MET, Outcome.NOT_MET
    ]  # fmt: skip
    assert [any_of(f).outcome for f in ([missed], [missed, left_open], [missed, left_open, met])] == [
        Outcome.NOT_MET, Outcome.INCONCLUSIVE, Outcome.MET
    ]  # fmt: skip


def scattered(seed, luck, **changes):
    return make_run(make_cell(seed=seed, **changes), predicted=predictions(0.85 + luck, seed=seed, changed=0.05))


@pytest.mark.parametrize(("of_cell", "of_reference"), [(0.0, 0.02), (0.02, 0.0), (0.01, 0.01)])
def test_an_expectation_and_a_verdict_have_one_interval_of_one_gap(of_cell, of_reference):
    """Whoever scatters: how much luck is in a gap is what the reference's seeds show, in both."""
    runs = [scattered(s, of_reference * (s - 1)) for s in range(3)]
    runs += [scattered(s, of_cell * (s - 1), precision=FP16) for s in range(3)]
    groups = judge_runs(runs).groups
    gap = next(group.gap for group in groups if not group.is_reference)
    found = judged({"metric": "accuracy", "within": "1pp", "where": {"precision": "fp16"}}, groups).finding
    at_90 = gap.interval(0.9)
    assert (found.interval.low, found.interval.high) == pytest.approx((-at_90.high, -at_90.low), abs=1e-15)


def recovery(dead):
    """The claim that l1 regains what linf lost of l2, where the norms `dead` ended with inf or NaN in one seed."""
    accuracies = {"l1": 0.8, "linf": 0.6, "l2": 0.85}
    runs = [
        nonfinite_run(make_cell(norm, seed=s)) if norm in dead and s == 0 else made_of(norm, accuracy, s)
        for norm, accuracy in accuracies.items()
        for s in range(3)
    ]
    plain = {"recovered": L1, "low": LINF, "high": L2, "metric": "accuracy", "at_least": 0.5}
    return judged(plain, judge_runs(runs).groups).finding


def made_of(norm, accuracy, seed):
    return make_run(make_cell(norm, seed=seed), predicted=predictions(accuracy, seed=seed, changed=0.02))


@pytest.mark.parametrize(("loss", "expected"), [(0.39, "met"), (0.45, "met"), (0.31, "not met")])
def test_low_and_high_are_numbers_whether_more_is_better_or_worse(loss, expected):
    # Decay adds 0.1 to the training loss, and is replaced by what adds as much.
    ends = {"l1": loss, "linf": 0.3, "l2": 0.4}
    runs = [
        make_run(make_cell(norm, seed=s), losses=np.linspace(2.0, end + 0.001 * s, 100))
        for norm, end in ends.items()
        for s in range(3)
    ]
    sides = {"recovered": L1, "low": LINF, "high": L2}
    groups = judge_runs(runs).groups
    assert str(judged({**sides, "metric": "train_loss", "at_least": 0.7}, groups).finding.outcome) == expected
    turned = {**sides, "low": L2, "high": LINF, "metric": "train_loss", "at_least": 0.7}
    assert str(judged(turned, groups).finding.outcome) == "inconclusive"


@pytest.mark.parametrize(
    ("dead", "expected", "named"),
    [
        ((), "met", ""),
        (("l1",), "not met", "norm l1"),
        (("linf",), "met", "norm linf"),
        (("l2",), "not met", "norm l2"),
        (("l1", "linf", "l2"), "not met", "norm l1"),
    ],
)
def test_a_recovery_with_a_side_that_died_is_decided_by_that(dead, expected, named):
    found = recovery(dead)
    assert str(found.outcome) == expected, found.reason
    if dead:
        first = found.reason.partition(";")[0]
        assert first.startswith(f"{named},") and "NONFINITE (1 of 3 seeds)" in first
        assert found.found == "NONFINITE" and found.interval is None


@pytest.mark.parametrize("metric", ["accuracy", "error", "train_loss", "test_loss", "accuracy_gap", "loss_gap_end"])
@pytest.mark.parametrize("form", ["at_least", "at_most", "better", "worse", "within"])
def test_a_claim_with_a_run_that_died_says_so_first_whatever_its_form_and_metric(metric, form):
    runs = [make_run(make_cell(norm, seed=s)) for norm in ("l2", "l1") for s in range(3)]
    runs += [make_run(make_cell("l1", FP16, seed=s)) for s in range(3)]
    runs += [nonfinite_run(make_cell("l2", FP16, seed=0))]
    runs += [make_run(make_cell("l2", FP16, seed=s)) for s in (1, 2)]
    of_l2, of_l1 = {"norm": "l2"}, {"norm": "l1"}
    plain = {"metric": metric, "where": {"precision": "fp16"}}
    plain |= {
        "at_least": {"where": {"precision": "fp16", "norm": "l2"}, "at_least": 0.5},
        "at_most": {"where": {"precision": "fp16", "norm": "l2"}, "at_most": 0.5},
        "better": {"better": of_l2, "worse": of_l1},
        "worse": {"better": of_l1, "worse": of_l2},
        "within": {"within": "50%", "where": {"precision": "fp16", "norm": "l2"}, "of": of_l1},
    }[form]
    found = judged(plain, judge_runs(runs).groups).finding
    assert found.outcome is not Outcome.INCONCLUSIVE
    first = found.reason.partition(";")[0]
    assert first.startswith("norm l2, precision fp16") and "NONFINITE (1 of 3 seeds)" in first
    more_is_better = metric == "accuracy"
    dead_holds = form == "worse" or form == ("at_most" if more_is_better else "at_least")
    assert found.outcome is (Outcome.MET if dead_holds else Outcome.NOT_MET)


@pytest.mark.parametrize(("seeds", "expected"), [([0, 1], "not met"), ([2, 3, 4], "met"), (3, "met"), (1, "not met")])
def test_a_statement_about_some_seeds_is_judged_by_those_alone(seeds, expected):
    # Of five seeds the first two lose 40 points, the others none.
    runs = [made_of("l1", 0.8, s) for s in range(5)]
    runs += [
        make_run(make_cell("l1", seed=s, precision=FP16), predicted=predictions(0.4 if s < 2 else 0.8, seed=s))
        for s in range(5)
    ]
    groups = judge_runs(runs).groups
    where = {"precision": "fp16", "seed": seeds}
    sides = {"better": {"precision": "fp16"}, "worse": {"precision": "native"}, "where": {"seed": seeds}}
    for plain in (
        {"metric": "accuracy", "within": "5pp", "where": where},
        {"where": where, "verdict": ["STABLE", "INCONCLUSIVE"]},
        {"metric": "accuracy", "by": "-5pp", **sides},
        {"metric": "accuracy", "at_least": 0.7, "where": where},
    ):
        found = judged(plain, groups).finding
        assert str(found.outcome) == expected, found.reason


@pytest.mark.parametrize("at_chance", [0, 1, 3])
def test_a_side_that_must_end_well_may_not_stay_at_chance_where_others_learn(at_chance):
    runs = [made_of("l2", 0.8, s) for s in range(3)]
    runs += [made_of("l1", 0.1 if s < at_chance else 0.85, s) for s in range(3)]
    groups = judge_runs(runs).groups
    found = judged({"metric": "accuracy", "better": L1, "worse": L2}, groups).finding
    assert str(found.outcome) == ("not met" if at_chance else "met"), found.reason
    if at_chance:
        assert found.found == "COLLAPSED" and f"({at_chance} of 3 seeds)" in found.reason
    # The other way round the distance is a number: of three seeds, one of which stayed at chance, it tells little.
    turned = judged({"metric": "accuracy", "better": L2, "worse": L1, "by": "20pp"}, groups).finding
    assert str(turned.outcome) == {0: "not met", 1: "inconclusive", 3: "met"}[at_chance], turned.reason


def test_chance_in_the_end_says_nothing_of_an_earlier_share_of_the_run():
    runs = [made_of("l2", 0.8, s) for s in range(3)] + [made_of("l1", 0.1 if s == 0 else 0.85, s) for s in range(3)]
    groups = judge_runs(runs).groups
    at_the_end = {"metric": "accuracy", "better": L1, "worse": L2}
    assert judged(at_the_end, groups).finding.found == "COLLAPSED"
    assert judged({**at_the_end, "at": 0.5}, groups).finding.found != "COLLAPSED"
