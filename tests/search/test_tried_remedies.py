"""Remedies are tried: which trainings that takes, what they cost, and what their verdicts say."""

import json
from dataclasses import replace

import pytest

from normstab.__main__ import main
from normstab.assess.causes.tried import TriedRemedy, read_tried, with_tried, write_tried
from normstab.assess.judgement import judge_runs
from normstab.assess.verdicts import Verdict
from normstab.errors import RecordError
from normstab.experiment.records.cell_record import Nonfinite, Offence
from normstab.report.sections import remedies_table
from normstab.search.forks import LEAD_STEPS, fork_step
from normstab.search.tried_remedies import Effort, beside_earlier, fate_of, plan_trials
from tests.assess.synthetic import FP16, make_cell, make_run, story
from tests.report.made import made_assessment

STEPS, CELLS = 200, 6  # of each cell of the story; of the story below


@pytest.fixture
def found(tmp_path):
    """A story of one norm at scale 256: fp16 collapses, and a grid point with wide squares does not."""
    return made_assessment(tmp_path, runs=story(seeds=(0, 1), scales=(256,), norms=("l2",)))


def failing_of(found):
    return next(group for group in found.judged if group.verdict.fails)


def test_what_the_grid_has_not_tested_is_tried_beside_the_failing_cell_and_its_reference(found):
    group = failing_of(found)
    trials, too_much = plan_trials(found, Effort(30, None))
    (trial,) = trials
    untested = [remedy.name for remedy in group.remedies if remedy.tested is None]
    assert untested and list(trial.remedies) == untested and not too_much
    assert (trial.failing, trial.start, trial.stop) == (group.worst.id, 0, 30)
    assert {cell.fork.stop for cell in trial.cells} == {30}
    assert trial.cells[0].is_reference and trial.cells[0].fork.of is None
    assert len({cell.id for cell in trial.cells}) == len(trial.cells)
    assert not {cell.id for cell in trial.cells} & {cell.id for cell in found.cells}


def test_the_cells_of_a_trial_differ_from_the_failing_one_in_the_remedy_alone(found):
    (trial,), _ = plan_trials(found, Effort(30, None))
    for remedy, cell in trial.remedies.values():
        changed = [
            name
            for name in ("dataset", "model", "train", "numerics")
            if getattr(cell, name) != getattr(trial.without, name)
        ]
        assert len(changed) == 1, (remedy.name, changed)
        assert cell.reference_id == trial.cells[0].id


def test_trials_cost_less_than_a_tenth_of_the_run_unless_steps_are_given(found):
    total = CELLS * STEPS
    trials, _ = plan_trials(found, Effort(10, 0.1))
    cost = sum(cell.fork.stop for trial in trials for cell in trial.cells)
    assert 0 < cost <= 0.1 * total
    left_out = plan_trials(found, Effort(20, 0.04))
    assert left_out[0] == [] and {each.fate for each in left_out[1]} == {"costs too much"}
    assert "--try-remedies 20 tries it" in left_out[1][0].sentence
    assert not plan_trials(found, Effort(150, None))[1]


def test_a_training_that_several_trials_need_is_paid_once(found):
    alone, _ = plan_trials(found, Effort(10, None))
    cost = sum(trial.steps_of(cell) for trial in alone for cell in trial.cells)
    twice = tuple(group for group in found.groups for _ in range(2))
    beside_itself = replace(found, groups=twice)
    trials, too_much = plan_trials(beside_itself, Effort(10, cost / (2 * CELLS * STEPS)))
    assert len(trials) == 2 and not too_much


def test_a_smaller_effort_loses_no_outcome_that_is_known(found, tmp_path):
    group = failing_of(found)
    first, last = [remedy for remedy in group.remedies if remedy.tested is None][:2]
    helped = outcome(group, first, "helped")
    later = [replace(helped, fate="costs too much"), outcome(group, last, "did not help")]
    assert beside_earlier(later, [helped]) == [helped, later[1]]
    again = replace(helped, fate="did not help", steps=40)
    assert beside_earlier([again], [helped]) == [again]
    assert beside_earlier([helped], [later[0]]) == [helped]


def test_a_training_is_forked_shortly_before_the_offence_that_it_is_blamed_on():
    def judged(**record):
        cell = make_cell(precision=FP16)
        return next(
            g for g in judge_runs([make_run(make_cell()), make_run(cell, **record)]).groups if not g.is_reference
        )

    late = {"overflow": ("bn1.square[forward]", 60), "inf_propagated": ("a.b[forward]", 60)}
    assert fork_step(judged(first=late, accuracy=0.1).worst) == 60 - LEAD_STEPS
    assert fork_step(judged(first={"overflow": ("bn1.square[forward]", 2)}, accuracy=0.1).worst) == 0
    assert fork_step(judged(nonfinite=Nonfinite(40, "loss", None)).worst) == 40 - LEAD_STEPS
    assert fork_step(judged(accuracy=0.1).worst) == 0


def test_only_another_arithmetic_goes_on_from_a_snapshot(tmp_path):
    runs = []
    for run in story(seeds=(0,), scales=(256,), norms=("l2",)):
        first = {"overflow": Offence("stem.square[forward]", 100)} if run.record.first else {}
        runs.append(replace(run, record=replace(run.record, first=first)))
    (trial,), _ = plan_trials(made_assessment(tmp_path, runs=runs), Effort(30, None))
    assert (trial.start, trial.stop) == (95, 125)
    origin = trial.before[1]
    assert origin.fork.leaves_snapshot and origin.fork.stop == 95
    for remedy, cell in trial.remedies.values():
        is_of_arithmetic = all(key.startswith(("precision", "numerics.")) for key in remedy.change)
        assert (cell.fork.of == origin.id) == is_of_arithmetic
        assert (origin.id in cell.depends_on) == is_of_arithmetic


@pytest.mark.parametrize(
    ("without", "verdict", "fate"),
    [
        (Verdict.COLLAPSED, Verdict.INCONCLUSIVE, "helped"),
        (Verdict.NONFINITE, Verdict.DEGRADED, "helped"),
        (Verdict.NONFINITE, Verdict.COLLAPSED, "did not help"),
        (Verdict.INCONCLUSIVE, Verdict.NONFINITE, "did not help"),
        (Verdict.DEGRADED, Verdict.STABLE, "helped"),
        (Verdict.DEGRADED, Verdict.DEGRADED, "did not help"),
        (Verdict.DEGRADED, Verdict.INCONCLUSIVE, "not decided"),
        (Verdict.INCONCLUSIVE, Verdict.STABLE, "not decided"),
    ],
)
def test_the_same_steps_with_and_without_it_decide(without, verdict, fate):
    assert fate_of(without, verdict) == fate


def outcome(group, remedy, fate):
    return TriedRemedy(group.worst.id, remedy.name, dict(remedy.change), fate, 0, 20, "COLLAPSED", "INCONCLUSIVE")


def test_what_helped_is_first_what_did_not_is_last_and_the_table_says_so(found, tmp_path):
    group = failing_of(found)
    untested = [remedy for remedy in group.remedies if remedy.tested is None]
    assert len(untested) >= 2
    first, *_, last = untested
    write_tried(tmp_path, [outcome(group, first, "did not help"), outcome(group, last, "helped")])
    remedies = with_tried(group.remedies, group.worst.id, read_tried(tmp_path))
    assert remedies[-1].name == first.name and remedies[-1].has_failed
    assert next(r for r in remedies if r.rank == 0 and r.tested is None).name == last.name
    assert [remedy.rank for remedy in remedies] == sorted(remedy.rank for remedy in remedies)
    table = remedies_table(replace(group, remedies=remedies))
    assert "helped: INCONCLUSIVE after 20 steps from step 0, COLLAPSED without it" in table
    assert with_tried(group.remedies, "another cell", read_tried(tmp_path)) == tuple(group.remedies)


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [(KeyboardInterrupt(), 130, ""), (RecordError("no room is left"), 2, "remedies were not tried: no room is left")],
)
def test_trials_that_end_early_leave_the_report_of_the_run(problem, code, said, tmp_path, capsys, monkeypatch):
    def try_nothing(*_):
        raise problem

    monkeypatch.setattr("normstab.search.tried_remedies.try_remedies", try_nothing)
    path, out = tmp_path / "small.yaml", tmp_path / "out"
    path.write_text(SCENARIO)
    assert main(["run", str(path), "--out", str(out), "--quiet", "--try-remedies", "24"]) == code
    assert said in capsys.readouterr().err
    assert "untested" in (out / "report.md").read_text()


@pytest.mark.parametrize("text", ["{}", '{"version": 9, "tried": []}', '{"version": 1, "tried": [{"cell": 1}]}'])
def test_a_damaged_file_of_outcomes_is_told_by_name(tmp_path, text):
    (tmp_path / "remedies").mkdir()
    (tmp_path / "remedies" / "tried.json").write_text(text)
    with pytest.raises(RecordError, match=r"tried\.json: not outcomes of remedies"):
        read_tried(tmp_path)


SCENARIO = """\
version: 1
name: small
dataset: {name: synthetic, train: 208, test: 200}
model: {name: mlp, width: 16, norm: l2}
train: {batch: 16, epochs: 2, optimizer: {name: sgd, lr: 0.05, momentum: 0.9}}
grid: {precision: [e4m10], input_scale: [4096], seed: [0]}
"""


def test_a_run_tries_the_remedies_keeps_its_records_and_a_report_repeats_it_without_training(tmp_path, capsys):
    path, out = tmp_path / "small.yaml", tmp_path / "out"
    path.write_text(SCENARIO)
    command = ["run", str(path), "--out", str(out), "--quiet"]
    assert main([*command, "--try-remedies", "no"]) == 0
    kept = {p.relative_to(out): p.read_bytes() for p in out.glob("records/*/*.json*")}
    assert not (out / "remedies").exists() and "untested" in (out / "report.md").read_text()
    assert main([*command, "--try-remedies", "24"]) == 0
    assert {p.relative_to(out): p.read_bytes() for p in out.glob("records/*/*.json*")} == kept
    tried = json.loads((out / "remedies" / "tried.json").read_text())["tried"]
    assert tried and all(each["fate"] in ("helped", "did not help", "not decided") for each in tried)
    assert {each["fate"] for each in tried} & {"helped", "did not help"}
    text = (out / "report.md").read_text()
    assert "without it" in text
    trained = sorted((out / "remedies").glob("records/*/record.json"))
    times = [p.stat().st_mtime_ns for p in trained]
    assert main([*command, "--try-remedies", "24"]) == 0
    assert [p.stat().st_mtime_ns for p in trained] == times
    assert main(["report", str(out), "--quiet"]) == 0
    assert (out / "report.md").read_text() == text
    assert main([*command, "--try-remedies", "soon"]) == 2
    assert "expected auto, no, or a number of steps" in capsys.readouterr().err
