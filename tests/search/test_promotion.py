"""Promotion on planted faults: what must stay wide is known, and the trainings are made up."""

import json
from dataclasses import replace
from itertools import combinations

import pytest

from normstab.__main__ import main
from normstab.assess.verdicts import Verdict
from normstab.errors import NormstabError
from normstab.experiment.execution.executor import Execution
from normstab.experiment.execution.progress import Outcome
from normstab.experiment.records.cell_record import Nonfinite, write_record
from normstab.experiment.records.step_log import StepLog
from normstab.experiment.scenario.spec import Cell, DatasetSpec, ModelSpec, NumericsSpec, TrainSpec
from normstab.numerics.ledger import Tally
from normstab.numerics.precision import Precision
from normstab.numerics.rules import precision_rules
from normstab.report.promotion_report import promotion_json, promotion_text
from normstab.search import promotion, trials
from normstab.search.candidates import class_candidates, module_candidates
from normstab.search.chosen_cell import chosen_cells
from normstab.search.forks import LEAD_STEPS
from normstab.search.kept_wide import class_precision, module_rules
from normstab.search.promotion import Promotion, Search, Trial, promote
from tests.assess.synthetic import make_cell, make_run

MODULES = [f"block{i}.norm{j}" for i in range(4) for j in range(3)]
ALL_MODULES = [*(f"block{i}" for i in range(4)), *MODULES]
FP16, FP32 = Precision.parse("fp16"), Precision.parse("fp32")
SCENARIO = """\
version: 1
name: planted
dataset: {name: synthetic, train: 104, test: 40}
model: {name: mlp, width: 16}
train: {batch: 16}
grid: {norm: [l2], precision: [fp16], input_scale: [1, 256], seed: [0, 1]}
"""


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "planted.yaml"
    path.write_text(SCENARIO)
    return str(path)


def train_instead(monkeypatch, planted, *, broken=MODULES, at=3, loud_seed=None):
    """Replace training: a cell fails unless every planted module is wide in it; return the list of cells trained.

    A cell that fails ends in NaN in step `at`; where there is a `loud_seed`, only that of this seed.
    """
    trained = []

    def run_cells(cells, out_dir, *, execution, on_event):
        for cell in cells:
            is_loud = loud_seed is None or cell.train.seed == loud_seed
            run = _made(cell, planted, broken, at if is_loud else None)
            directory = out_dir / "records" / cell.id
            directory.mkdir(parents=True, exist_ok=True)
            write_record(directory, run.record)
            with StepLog(directory) as log:
                for step in run.steps:
                    log.append(step)
        trained.extend(cell for cell in cells if not cell.is_reference)
        return Outcome(tuple(cell.id for cell in cells), (), (), False, 0.0)

    monkeypatch.setattr(trials, "run_cells", run_cells)
    monkeypatch.setattr(promotion, "module_names", lambda cell: ALL_MODULES)
    return trained


def _made(cell, planted, broken, at):
    rules = precision_rules(cell.numerics.rules, cell.numerics.precision)
    fails = not cell.is_reference and any(rules.of(name) != FP32 for name in planted)
    sites = {f"{name}.square[forward]": Tally(100, overflow=int(name in planted)) for name in broken}
    first_steps = {f"{name}.square[forward]": {"overflow": 0} for name in planted}
    made = make_run(cell, accuracy=0.1 if fails else 0.85, sites=sites, first_steps=first_steps)
    return make_run(
        cell,
        accuracy=0.1 if fails else 0.85,
        sites=sites,
        first_steps=first_steps,
        nonfinite=Nonfinite(at, "loss") if fails and at is not None else None,
        rho=made.record.rho,
    )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_exactly_the_planted_set_is_found_as_by_exhaustion(scenario, tmp_path, monkeypatch, k):
    planted = set(MODULES[1::4][:k])
    trained = train_instead(monkeypatch, planted)
    found = promote(scenario, "fp16,256", out=tmp_path / "out")
    sufficient = [set(s) for n in range(k + 1) for s in combinations(MODULES, n) if planted <= set(s)]
    assert [set(found.members)] == sufficient
    assert found.is_minimal
    assert found.verdict is Verdict.STABLE
    assert {name: trial.verdict for name, trial in found.proofs.items()} == dict.fromkeys(planted, Verdict.NONFINITE)
    assert found.fresh_seeds == (2, 3)
    assert {cell.train.seed for cell in trained} == {0, 1, 2, 3}
    assert found.share == pytest.approx(k / len(MODULES))
    assert found.extra_bytes == pytest.approx(found.share)


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_the_answer_is_the_same_however_many_seeds_run_at_once(scenario, tmp_path, monkeypatch, jobs):
    train_instead(monkeypatch, {MODULES[1]}, loud_seed=1)
    found = promote(scenario, "fp16,256", out=tmp_path / "out", search=Search(execution=Execution(jobs=jobs)))
    assert found.members == (MODULES[1],)
    # Seed 0 ends at chance with a finite loss; seed 1, which would end in NaN, is not asked, though it may have run.
    assert found.proofs[MODULES[1]].verdict is Verdict.COLLAPSED


def test_an_answer_from_records_says_what_the_first_one_said(scenario, tmp_path, monkeypatch):
    train_instead(monkeypatch, set(MODULES[1:3]), at=60)
    first = promote(scenario, "fp16,256", out=tmp_path / "out")
    trains = trials.run_cells

    def reuse(cells, out_dir, **how):
        outcome = trains(cells, out_dir, **how)
        return replace(outcome, reused=outcome.finished)

    monkeypatch.setattr(trials, "run_cells", reuse)
    assert first.forks
    assert promotion_json(promote(scenario, "fp16,256", out=tmp_path / "out")) == promotion_json(first)


def test_without_evidence_the_number_of_sets_grows_like_k_log_n(scenario, tmp_path, monkeypatch):
    monkeypatch.setattr(promotion, "module_candidates", lambda run, modules: module_candidates(_blind(run), modules))
    train_instead(monkeypatch, {MODULES[7], MODULES[10]})
    found = promote(scenario, "fp16,256", out=tmp_path / "out")
    assert set(found.members) == {MODULES[7], MODULES[10]}
    assert len(found.tried) <= 20


def test_what_is_tried_goes_on_from_shortly_before_the_first_offence_and_the_answer_trains_from_the_start(
    scenario, tmp_path, monkeypatch
):
    trained = train_instead(monkeypatch, set(MODULES[1:3]), at=60)
    found = promote(scenario, "fp16,256", out=tmp_path / "out")
    assert set(found.members) == set(MODULES[1:3]) and found.is_minimal
    failing, *others = trained
    assert failing.fork is None
    origins = {cell.id: cell for cell in others if cell.fork is not None and cell.fork.leaves_snapshot}
    (origin,) = origins.values()  # of the first seed: its failure spared the second one
    assert (origin.fork.stop, origin.train.seed, origin.numerics) == (60 - LEAD_STEPS, 0, failing.numerics)
    forks = [cell for cell in others if cell.fork is not None and cell.fork.of is not None]
    assert {cell.fork.of for cell in forks} == {origin.id} and {cell.train.seed for cell in forks} == {0}
    assert all({origin.id, cell.reference_id} <= set(cell.depends_on) for cell in forks)
    last = [cell for cell in others if cell.train.seed in found.fresh_seeds]
    assert last and all(cell.fork is None for cell in last)
    assert found.forks == len({cell.id for cell in forks})
    assert "of them from shortly before the first offence on" in promotion_text(found)


def test_without_fresh_seeds_the_answer_of_forks_is_trained_from_the_start_on_its_own(scenario, tmp_path, monkeypatch):
    trained = train_instead(monkeypatch, {MODULES[2]}, at=60)
    found = promote(scenario, "fp16,256", out=tmp_path / "out", search=Search(fresh_seeds=0))
    answer = [cell for cell in trained if cell.coordinates["kept_wide"] == MODULES[2]]
    assert {cell.train.seed for cell in answer if cell.fork is None} == {0, 1}
    assert found.verdict is Verdict.STABLE and found.fresh_seeds == ()


def _blind(run):
    """Return the run as if nothing had been counted but results."""
    epochs = tuple(replace(e, sites={s: Tally(t.count) for s, t in e.sites.items()}) for e in run.record.epochs)
    return replace(run, record=replace(run.record, epochs=epochs, first_steps={}))


def test_where_no_set_suffices_it_says_so(scenario, tmp_path, monkeypatch):
    train_instead(monkeypatch, {"block0.norm0", "elsewhere"})
    found = promote(scenario, "fp16,256", out=tmp_path / "out")
    assert found.members is None
    assert found.rules == {}
    assert found.verdict is Verdict.NONFINITE


def test_a_cell_that_is_stable_already_needs_nothing(scenario, tmp_path, monkeypatch):
    train_instead(monkeypatch, set())
    with pytest.raises(NormstabError, match="STABLE already"):
        promote(scenario, "fp16,256", out=tmp_path / "out")


def test_a_budget_that_is_spent_ends_without_a_claim(scenario, tmp_path, monkeypatch):
    trained = train_instead(monkeypatch, set(MODULES[:2]))
    clock = iter(range(1000))
    monkeypatch.setattr(promotion.time, "monotonic", lambda: next(clock))
    found = promote(scenario, "fp16,256", out=tmp_path / "out", search=Search(budget_s=2.5))
    assert not found.is_complete
    assert not found.is_minimal
    assert len(trained) < 5


def test_rules_keep_the_own_operations_of_the_members_and_no_others():
    for size in range(4):
        for members in combinations(ALL_MODULES, size):
            rules = precision_rules(module_rules(members, ALL_MODULES, narrow="fp16", wide="fp32"), "fp16")
            assert {name for name in ALL_MODULES if rules.of(name) == FP32} == set(members)


def test_classes_widen_their_part_of_the_precision_alone():
    assert str(class_precision(("square", "variance"), FP16, FP32)) == str(
        Precision.parse("fp16;square=fp32;variance=fp32")
    )
    narrow = Precision.parse("fp16/nearest/fp16:sequential")
    assert class_precision(("accumulator",), narrow, FP32) == Precision.parse("fp16/nearest/fp32:sequential")


def test_what_broke_first_is_ranked_before_what_broke_of_it():
    cell = make_cell(precision=str(FP16))
    sites = {
        "a.mul[forward]": Tally(10, overflow=9),
        "b.square[forward]": Tally(10, overflow=1),
        "c.add[backward]": Tally(5),
    }
    firsts = {"a.mul[forward]": {"overflow": 4}, "b.square[forward]": {"overflow": 1}}
    run = make_run(cell, sites=sites, first_steps=firsts)
    assert [found.name for found in module_candidates(run, ["", "a", "b", "c"])] == ["b", "a", "c"]
    assert [found.name for found in class_candidates(run, FP16, FP32)] == ["square", "gradient"]


def cells_of_a_grid():
    specs = (DatasetSpec("synthetic"), ModelSpec("mlp"), TrainSpec(), NumericsSpec())
    points = [
        (n, p, s)
        for n in ("l2", "l1")
        for p in ("fp16/nearest/fp32:lanes64", "fp16/nearest/fp32:lanes64;square=fp32")
        for s in (0, 1)
    ]
    return [Cell("grid", {"norm": n, "precision": p, "input_scale": 256.0, "seed": s}, *specs) for n, p, s in points]


def test_a_short_name_means_one_point_of_the_grid_with_its_seeds():
    cells = cells_of_a_grid()
    assert chosen_cells(cells, "l2,fp16,256") == cells[:2]
    assert chosen_cells(cells, "norm=l1,fp16;square=fp32") == cells[6:]


def test_an_ambiguous_or_unknown_name_says_what_there_is():
    with pytest.raises(NormstabError, match=r"2 points of the grid have these values; add one of precision"):
        chosen_cells(cells_of_a_grid(), "l2")
    with pytest.raises(NormstabError, match="no cell of the grid has these values"):
        chosen_cells(cells_of_a_grid(), "l3")


def test_the_command_answers_in_json_and_writes_a_report_with_its_proof(scenario, tmp_path, monkeypatch, capsys):
    train_instead(monkeypatch, {MODULES[4]})
    out = tmp_path / "out"
    command = ["promote", scenario, "--cell", "fp16,256", "--out", str(out), "--json", "--quiet"]
    assert main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["members"] == [MODULES[4]]
    assert answer["rules"] == {MODULES[4]: str(FP32)}
    assert answer["minimal"]
    assert answer["verdict"] == "STABLE"
    assert [trial["verdict"] for trial in answer["tried"] if not trial["members"]] == ["NONFINITE"]
    assert f"without {MODULES[4]}: NONFINITE" in (out / "report.md").read_text()
    assert (out / "plots" / "tried.svg").read_text().count("<svg") == 1
    assert json.loads((out / "promotion.json").read_text()) == answer


def test_the_command_exits_1_where_nothing_suffices_and_2_for_a_wrong_budget(scenario, tmp_path, monkeypatch, capsys):
    train_instead(monkeypatch, {"elsewhere"})
    command = ["promote", scenario, "--cell", "fp16,256", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "No set of the 12 candidates kept in fp32 suffices" in capsys.readouterr().out
    assert main([*command, "--budget", "soon"]) == 2
    assert "expected a number and s, m or h" in capsys.readouterr().err


def test_a_large_answer_stays_readable_and_says_where_the_rest_is():
    members = tuple(f"layer{i}.bn::square" for i in range(90))
    undecided = tuple(
        Trial(members[:n], Verdict.INCONCLUSIVE, "the interval is too wide", False) for n in range(30, 90)
    )
    found = Promotion(
        cell="l2, fp16",
        by="site",
        wide="fp32",
        candidates=(),
        members=members,
        rules=dict.fromkeys(members, "fp32"),
        verdict=Verdict.STABLE,
        reason="within a point",
        is_minimal=False,
        is_complete=False,
        tried=undecided,
        trainings=60,
        fresh_seeds=(),
        share=0.5,
        extra_bytes=0.5,
    )
    text = promotion_text(found)
    assert len(text) < 3500 and max(map(len, text.splitlines())) < 1000
    assert "layer5.bn::square and 84 more" in text and "see promotion.json" in text and "57 more sets" in text
    assert promotion_json(found)["members"] == list(members)
