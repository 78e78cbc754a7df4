"""`normstab run` from end to end: files, words, exit codes, reuse, and an interruption that loses nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from normstab import study as produce
from normstab.__main__ import main
from normstab.experiment.execution.progress import Failure, Outcome

ROOT = Path(__file__).parents[1]
TINY = """\
version: 1
name: tiny
question: Does a tiny network survive?
dataset: {name: synthetic, size: 8, train: 64, test: 32}
model: {name: mlp, width: 16}
train: {epochs: 1, batch: 32, optimizer: {name: sgd, lr: 0.05}}
grid: {precision: [fp16], seed: [0]}
expect:
  - {where: {precision: fp16}, verdict: [STABLE, DEGRADED, INCONCLUSIVE], smoke: true}
  - {metric: accuracy, where: {precision: fp16}, at_least: 0.99}
profiles: {smoke: {train.epochs: 1}}
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the smoke form: its directory, exit code and what it said."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY)
    command = [sys.executable, "-m", "normstab", "run", "tiny.yaml", "--smoke", "--out", "out"]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    return folder, done


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_run_leaves_a_report_its_plots_its_records_and_its_log(finished):
    folder, done = finished
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "report.md").exists()
    assert (folder / "out" / "run.json").exists()
    assert len(list((folder / "out").glob("records/*/record.json"))) == 2
    assert list((folder / "out").glob("plots/*.svg"))


def test_a_run_in_a_log_says_a_line_per_cell_the_verdicts_and_where_the_report_is(finished):
    _, done = finished
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert "tiny: Does a tiny network survive?" in lines[0]
    assert sum(line.startswith("[") for line in lines) == 2
    assert lines[-1] == "report: out/report.md"
    assert any(line.startswith("met: ") for line in lines)
    assert any(line.startswith("not evaluated: ") for line in lines)


def test_the_same_command_reuses_what_is_finished(finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("out/records/*/*")}
    assert main(["run", "tiny.yaml", "--smoke", "--out", "out"]) == 0
    assert capsys.readouterr().err.count("reused") == 2
    assert {path: path.stat().st_mtime_ns for path in folder.glob("out/records/*/*")} == before


def test_an_expectation_that_is_not_met_is_exit_code_1(finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.chdir(folder)
    assert main(["run", "tiny.yaml", "--out", "out"]) == 1
    assert "NOT MET: " in capsys.readouterr().err


def test_a_dry_run_shows_the_cells_and_writes_nothing(tiny, monkeypatch, capsys):
    monkeypatch.chdir(tiny.parent)
    assert main(["run", str(tiny), "--dry-run"]) == 0
    assert "2 trained cells" in capsys.readouterr().out
    assert list(tiny.parent.iterdir()) == [tiny]


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        (["crashed", "blocked"], 3),
        (["refused", "refused"], 2),
        (["refused", "blocked"], 3),
        (["refused", "crashed"], 3),
        ([], 3),  # nothing failed, yet no record is there
    ],
)
def test_the_gravest_failure_of_a_cell_is_the_exit_code(tiny, monkeypatch, capsys, kinds, code):
    def fail(cells, *_, **__):
        failures = tuple(Failure(cell.id, kind, "why") for cell, kind in zip(cells, kinds, strict=False))
        return Outcome((), (), failures, False, 1.0)

    monkeypatch.setattr(produce, "run_cells", fail)
    assert main(["run", str(tiny), "--out", str(tiny.parent / "out")]) == code
    assert not kinds or f": {kinds[0]}: why" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_bad_input_before_anything_is_written(tiny, capsys):
    assert main(["run", str(tiny), "--device", "cuda", "--out", str(tiny.parent / "out")]) == 2
    assert "torch sees no CUDA device; use --device cpu" in capsys.readouterr().err
    assert list(tiny.parent.iterdir()) == [tiny]


def test_an_interrupted_run_is_exit_code_130_and_says_how_to_go_on(tiny, monkeypatch, capsys):
    monkeypatch.setattr(produce, "run_cells", lambda *_, **__: Outcome((), (), (), True, 1.0))
    assert main(["run", str(tiny), "--out", str(tiny.parent / "out")]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_ctrl_c_ends_a_run_within_seconds_and_keeps_its_files(tiny):
    command = [sys.executable, "-m", "normstab", "run", str(tiny), "--set", "train.epochs=2000", "--out", "out"]
    running = subprocess.Popen(
        command,
        cwd=tiny.parent,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them ignore Ctrl-C, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = tiny.parent / "out" / "run.json"
    while not log.exists() and running.poll() is None:
        time.sleep(0.05)
    for _ in range(3):  # an impatient one
        running.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "the same command goes on" in said
    assert "Traceback" not in said, said
    assert json.loads(log.read_text())["runs"][-1]["ended"].endswith("interrupted")


def test_a_directory_that_cannot_be_written_is_bad_input(tiny, capsys):
    (tiny.parent / "taken").write_text("a file")
    assert main(["run", str(tiny), "--out", str(tiny.parent / "taken")]) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["json", "junit"])
def test_report_prints_the_forms_for_programs(finished, monkeypatch, capsys, form):
    folder, _ = finished
    monkeypatch.chdir(folder)
    main(["report", "out", "--format", form, "--quiet"])
    captured = capsys.readouterr()
    assert captured.err == ""
    if form == "json":
        assert json.loads(captured.out)["scenario"] == "tiny"
    else:
        assert ElementTree.fromstring(captured.out).tag == "testsuites"


def test_report_writes_a_page_for_browsers(finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.chdir(folder)
    main(["report", "out", "--format", "html"])
    assert (folder / "out" / "report.html").read_text().startswith("<!doctype html>")


def test_report_judges_again_without_training_and_to_the_same_bytes(finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.chdir(folder)
    main(["report", "out"])
    first = (folder / "out" / "report.md").read_bytes()
    main(["report", "out"])
    assert (folder / "out" / "report.md").read_bytes() == first


def test_several_runs_are_told_apart(finished, monkeypatch, capsys, tmp_path):
    folder, _ = finished
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        shutil.copytree(folder / "out", tmp_path / name)
        kept = tmp_path / name / "scenario.json"
        kept.write_text(kept.read_text().replace('"tiny"', f'"{name}"'))
    main(["report", "one", "two"])
    headings = [line for line in capsys.readouterr().err.splitlines() if line in ("one", "two")]
    assert headings == ["one", "two"]


def test_report_of_no_run_is_bad_input(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "normstab run" in capsys.readouterr().err


def test_a_run_compared_with_itself_passes_its_gates(finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.chdir(folder)
    assert main(["compare", "out", "out", "--fail-on", "accuracy:-1pp"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_a_gate_that_does_not_parse_is_bad_input(finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.chdir(folder)
    assert main(["compare", "out", "out", "--fail-on", "acuracy:-1pp"]) == 2
    assert "did you mean 'accuracy'" in capsys.readouterr().err


def test_a_run_adds_its_summary_to_the_file_that_github_names(finished, monkeypatch, capsys, tmp_path):
    folder, _ = finished
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    main(["run", "tiny.yaml", "--smoke", "--out", "out"])
    assert "tiny" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--address", "auto"], "--address is an option of --executor ray"),
        (["--shared-out"], "--shared-out is an option of --executor ray"),
        (["--executor", "ray", "--jobs", "2"], "--jobs is of local cells"),
    ],
)
def test_options_of_the_other_executor_are_refused(options, says, capsys):
    assert main(["run", "quickstart", *options]) == 2
    assert says in capsys.readouterr().err
