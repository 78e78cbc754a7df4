"""What was not measured proves nothing: lost records, copies, gates that nothing is known of, pages over reports."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from normstab.__main__ import main
from normstab.assess.compare import parse_gate
from normstab.assess.expected.outcome import Outcome
from normstab.errors import NormstabError, ScenarioError
from normstab.experiment.execution.executor import Execution
from normstab.experiment.execution.lock import lock_directory
from normstab.experiment.scenario.gather import load_scenarios
from normstab.study import SCENARIO_FILE, assess_directory, run_scenario, write_pages
from tests.assess.synthetic import FP16, story
from tests.report.made import SCENARIO, made_scenario, write_runs

ONE = SCENARIO.replace("norm: [l2, l1, linf]", "norm: [l2, l1]").replace("[0, 1, 2]", "[0, 1]")
ONE = ONE.replace("input_scale: [1, 256]", "input_scale: [256]")
ONE = "\n".join(line for line in ONE.splitlines() if "linf" not in line and "input_scale: 1}" not in line) + "\n"
STORY = {"seeds": (0, 1), "norms": ("l2", "l1"), "scales": (256.0,)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run whose every cell has its record."""
    runs = story(**STORY)
    return write_runs(tmp_path / "out", runs, made_scenario(tmp_path, ONE))


def lose(directory: Path, **coordinates: object) -> list[str]:
    """Remove the records at these coordinates, and return their ids."""
    runs = story(**STORY)
    lost = [run.id for run in runs if coordinates.items() <= dict(run.coordinates).items()]
    for name in lost:
        shutil.rmtree(directory / "records" / name)
    return lost


def test_a_whole_run_is_judged_with_nothing_missing(out: Path) -> None:
    found = assess_directory(out)
    assert (found.missing, found.problems, found.warnings) == ((), (), ())
    assert found.count(Outcome.NOT_EVALUATED) == 0


@pytest.mark.parametrize("precision", [FP16, "native"])
def test_an_expectation_without_its_records_or_their_reference_is_not_met(
    out: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lose(out, precision=precision)
    found = assess_directory(out)
    assert [str(result.outcome) for result in found.expectations] == ["not met"] * len(found.expectations)
    assert all("no evidence" in result.finding.reason for result in found.expectations)
    assert main(["report", str(out)]) == 3
    assert "no record: " in capsys.readouterr().err


def test_only_the_expectations_that_rest_on_a_lost_record_fail(out: Path) -> None:
    lose(out, norm="l1", precision=FP16, input_scale=256.0, seed=1)
    outcomes = [str(result.outcome) for result in assess_directory(out).expectations]
    assert outcomes[0] == "met" and outcomes[1] == "not met"


def test_an_expectation_outside_the_grid_as_resolved_is_not_evaluated(tmp_path: Path) -> None:
    scenario = made_scenario(tmp_path, ONE, overrides=["grid.norm=[l1]"])
    out = write_runs(tmp_path / "out", story(**{**STORY, "norms": ("l1",)}), scenario)
    found = assess_directory(out)
    assert found.count(Outcome.NOT_EVALUATED) == len(found.expectations)
    assert found.missing == ()


def test_a_copy_of_a_record_is_no_seed_and_no_error(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = assess_directory(out)
    for folder in sorted((out / "records").iterdir()):
        shutil.copytree(folder, folder.with_name(folder.name + ".old"))
    found = assess_directory(out)
    assert [len(group.cells) for group in found.groups] == [len(group.cells) for group in before.groups]
    assert [cell.run for cell in found.cells] == [cell.run for cell in before.cells]
    assert len(found.warnings) == len(before.cells) and not found.problems
    main(["report", str(out)])
    assert "warning: " in capsys.readouterr().err


def test_a_gate_without_a_cell_to_judge_fails(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = out.with_name("other")
    shutil.copytree(out, other)
    assert main(["compare", str(out), str(other), "--fail-on", "accuracy:-1pp"]) == 0
    lose(other, norm="l1", precision=FP16)
    capsys.readouterr()
    assert main(["compare", str(out), str(other), "--fail-on", "accuracy:-1pp"]) == 3
    said = capsys.readouterr().out
    assert "no evidence" in said and "every gate holds" not in said
    (other / SCENARIO_FILE).unlink()  # without it the grid is not known, but A has cells that B lacks
    assert main(["compare", str(out), str(other), "--fail-on", "accuracy:-1pp"]) == 1
    assert main(["compare", str(other), str(out), "--fail-on", "accuracy:-1pp"]) == 0, "a grid may grow"


@pytest.mark.parametrize(
    "gate",
    [
        *("accuracy:0", "accuracy:-0", "accuracy:1e400", "accuracy:-1e400", "accuracy:-100pp", "accuracy:-2"),
        *("accuracy:-100%", "accuracy_gap:200pp", "overflow_rate:1", "gradient_cosine:0", "nonfinite_step:0"),
    ],
)
def test_a_gate_that_cannot_fire_is_an_error(gate: str) -> None:
    with pytest.raises(NormstabError, match="--fail-on"):
        parse_gate(gate)


@pytest.mark.parametrize("gate", ["accuracy:-99pp", "accuracy_gap:100pp", "test_loss:5", "overflow_rate:0", "error:0"])
def test_a_gate_that_can_fire_is_none(gate: str) -> None:
    assert parse_gate(gate)


def test_a_page_with_the_name_of_a_scenario_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(ONE.replace("page: made_page", "page: made"))
    with pytest.raises(ScenarioError, match=r"page: 'made' is the name of .*a\.yaml"):
        load_scenarios([str(tmp_path / "a.yaml")])


def test_a_page_never_overwrites_the_report_of_a_run(out: Path) -> None:
    shutil.copytree(out, out.with_name("made_page"))
    with pytest.raises(ScenarioError, match="overwrite"):
        write_pages({out: assess_directory(out)})


def test_a_run_that_is_refused_leaves_the_scenario_of_the_other(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normstab.experiment.execution.lock.LONGEST_WAIT_S", 0.0)
    before = (out / SCENARIO_FILE).read_bytes()
    other = made_scenario(tmp_path, ONE.replace("epochs: 1", "epochs: 3"))
    with lock_directory(out), pytest.raises(NormstabError, match="another run"):
        run_scenario(other, out, Execution(), lambda event: None)
    assert (out / SCENARIO_FILE).read_bytes() == before
