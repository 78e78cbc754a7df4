"""The executor, with cells that train nothing (`fake_cells`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from normstab.errors import NormstabError, RecordError
from normstab.experiment.execution.executor import Execution, run_cells
from normstab.experiment.execution.lock import lock_directory
from normstab.experiment.execution.progress import Event, Outcome
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.scenario.spec import Cell
from tests.experiment.fake_cells import RUN_CELL, cell


def run(
    cells: list[Cell], out_dir: Path, *, on_event: Callable[[Event], None] = lambda e: None, **how: object
) -> Outcome:
    return run_cells(cells, out_dir, execution=Execution(run_cell=RUN_CELL, **how), on_event=on_event)  # type: ignore[arg-type]


def starts(out_dir: Path, cell: Cell) -> list[str]:
    path = out_dir / "records" / cell.id / "starts"
    return path.read_text().splitlines() if path.exists() else []


def test_every_cell_gets_a_record_and_workers_are_reused(tmp_path: Path) -> None:
    cells = [cell(number=number) for number in range(4)]
    outcome = run(cells, tmp_path, jobs=2, threads=3)
    assert sorted(outcome.finished) == sorted(c.id for c in cells)
    assert not outcome.failures and not outcome.reused and not outcome.is_interrupted
    lines = [starts(tmp_path, c) for c in cells]
    assert all(len(line) == 1 and line[0].endswith(" 3 cpu") for line in lines)
    assert len({line[0].split()[0] for line in lines}) <= 2
    assert os.getpid() not in {int(line[0].split()[0]) for line in lines}
    for c in cells:
        assert read_record(tmp_path / "records" / c.id).id == c.id


@pytest.mark.parametrize(("act", "kind", "says"), [
    ("die", "crashed", "SIGKILL"),
    ("exit", "crashed", "status 7"),
    ("raise", "crashed", "ZeroDivisionError: a bug"),
    ("refuse", "refused", "the data set is not there"),
])  # fmt: skip
def test_a_failing_cell_never_harms_the_others(tmp_path: Path, act: str, kind: str, says: str) -> None:
    bad, good = cell(act, 1), [cell(number=number) for number in range(2, 4)]
    outcome = run([bad, *good], tmp_path)
    assert sorted(outcome.finished) == sorted(c.id for c in good)
    (failure,) = outcome.failures
    assert (failure.id, failure.kind) == (bad.id, kind)
    assert says in failure.message
    assert ("Traceback" in failure.detail) == (act == "raise")
    logged = json.loads((tmp_path / "run.json").read_text())["runs"][-1]
    assert logged["failures"][0]["message"] == failure.message


@pytest.mark.parametrize("act", ["fork and die", "fork in C and die"])
def test_a_worker_that_dies_is_noticed_at_once_though_its_child_lives(tmp_path: Path, act: str) -> None:
    bad, good = cell(act, 1), cell(number=2)
    started_s = time.monotonic()
    outcome = run([bad, good], tmp_path)
    assert outcome.finished == (good.id,)
    assert "SIGKILL" in outcome.failures[0].message
    assert time.monotonic() - started_s < 25  # the child sleeps for 30 s
    if act == "fork and die":
        lock_directory(tmp_path).close()  # the child does not keep it


def test_a_finished_record_is_reused_and_a_torn_one_made_anew(tmp_path: Path) -> None:
    whole, torn, absent = (cell(number=number) for number in range(3))
    run([whole, torn], tmp_path)
    record = tmp_path / "records" / torn.id / "record.json"
    record.write_bytes(record.read_bytes()[:-40])
    outcome = run([whole, torn, absent], tmp_path)
    assert outcome.reused == (whole.id,)
    assert len(outcome.finished) == 3
    assert [len(starts(tmp_path, c)) for c in (whole, torn, absent)] == [1, 2, 1]


def test_what_a_kill_left_is_removed_by_the_next_run(tmp_path: Path) -> None:
    only = cell()
    run([only], tmp_path)
    folder = tmp_path / "records" / only.id
    left = [folder / name for name in ("checkpoint.pt", ".checkpoint.pt.a1b2c3d4", ".record.json.a1b2c3d4")]
    left += [folder / "probes/.0.npz.a1b2c3d4", tmp_path / ".run.json.a1b2c3d4", tmp_path / "plots/.x.svg.a1b2c3d4"]
    kept = [tmp_path / ".gitignore", folder / ".notes.json.txt"]
    for path in left + kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("torn")
    assert run([only], tmp_path).reused == (only.id,)
    assert [path for path in left if path.exists()] == []
    assert all(path.exists() for path in kept)


def test_fresh_reuses_nothing(tmp_path: Path) -> None:
    only = cell()
    run([only], tmp_path)
    outcome = run([only], tmp_path, fresh=True)
    assert outcome.reused == () and outcome.finished == (only.id,)
    assert len(starts(tmp_path, only)) == 1, "the directory of the cell is removed with everything in it"


def test_a_cell_waits_for_those_it_depends_on(tmp_path: Path) -> None:
    first = cell(number=1)
    second = cell(number=2, depends_on=(first.id,))
    third = cell(number=3, depends_on=(second.id,))
    order: list[tuple[str, str]] = []
    run([third, second, first], tmp_path, jobs=3, on_event=lambda event: order.append((event.kind, event.cell.id)))
    happened = [entry for entry in order if entry[0] in ("started", "finished")]
    assert happened == [(kind, c.id) for c in (first, second, third) for kind in ("started", "finished")]


def test_what_depends_on_a_crashed_cell_is_blocked_all_the_way(tmp_path: Path) -> None:
    first = cell("raise", 1)
    second = cell(number=2, depends_on=(first.id,))
    third = cell(number=3, depends_on=(second.id,))
    outcome = run([first, second, third], tmp_path)
    assert [(failure.id, failure.kind) for failure in outcome.failures] == [
        (first.id, "crashed"),
        (second.id, "blocked"),
        (third.id, "blocked"),
    ]
    assert first.id in outcome.failures[1].message


def test_a_dependency_outside_the_list_is_taken_from_the_disk(tmp_path: Path) -> None:
    first = cell(number=1)
    second = cell(number=2, depends_on=(first.id,))
    assert run([second], tmp_path).failures[0].kind == "blocked"
    run([first], tmp_path)
    assert run([second], tmp_path).finished == (second.id,)


def test_events_count_to_the_total_and_carry_progress(tmp_path: Path) -> None:
    events: list[Event] = []
    run([cell(number=1), cell("raise", 2)], tmp_path, on_event=events.append)
    assert {event.total for event in events} == {2}
    assert events[-1].done == 2
    assert events[-1].eta_s == 0.0
    (progress, _) = (event.progress for event in events if event.kind == "progress")
    assert progress is not None and progress.fraction == 0.25
    notes = json.loads((tmp_path / "run.json").read_text())["runs"][0]["notes"]
    assert len(notes) == 2 and all(note.endswith(": begun") for note in notes)


def test_an_unwritable_directory_is_one_clear_error_before_anything_runs(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(RecordError, match=r"cannot write.*--out"):
        run([cell()], blocker / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_directory_that_turns_read_only_loses_nothing_finished(tmp_path: Path) -> None:
    done, last = cell(number=1), cell("unwritable", 2)
    try:
        with pytest.raises(RecordError, match="cannot write"):
            run([done, last, cell(number=3)], tmp_path)
    finally:
        tmp_path.chmod(0o700)
    assert read_record(tmp_path / "records" / done.id).id == done.id


def test_a_full_disk_is_one_clear_error_that_loses_nothing_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import normstab.experiment.execution.run_log as run_log

    written = run_log.write_atomically
    calls = 0

    def full_after_two(path: Path, content: str) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise RecordError(f"{path}: cannot write: No space left on device; what is finished is kept")
        written(path, content)

    monkeypatch.setattr(run_log, "write_atomically", full_after_two)
    cells = [cell(number=number) for number in range(3)]
    with pytest.raises(RecordError, match="No space left on device"):
        run(cells, tmp_path)
    assert read_record(tmp_path / "records" / cells[0].id).id == cells[0].id
    monkeypatch.undo()
    assert cells[0].id in run(cells, tmp_path).reused


def test_a_second_run_in_the_same_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import normstab.experiment.execution.lock as lock

    monkeypatch.setattr(lock, "LONGEST_WAIT_S", 0.1)
    with lock_directory(tmp_path), pytest.raises(NormstabError, match="another run is writing"):
        run([cell()], tmp_path)


def test_processes_of_torchrun_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(NormstabError, match="torchrun started 2 processes, and each would run every cell"):
        lock_directory(tmp_path)


SCRIPT = """
import signal
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from normstab.experiment.execution.executor import Execution, run_cells
from tests.experiment.fake_cells import RUN_CELL, cell

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    cells = [cell(number=1), cell("sleep", 2), cell(number=3)]
    outcome = run_cells(cells, Path({out!r}), execution=Execution(run_cell=RUN_CELL))
    print(outcome.is_interrupted, len(outcome.finished), flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_keeps_what_is_done_and_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    script, out = tmp_path / "script.py", tmp_path / "out"
    root = str(Path(__file__).parents[2])
    script.write_text(SCRIPT.format(root=root, out=str(out)))
    done, asleep, last = cell(number=1), cell("sleep", 2), cell(number=3)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not starts(out, asleep) and time.monotonic() < deadline:
            time.sleep(0.02)
        (worker,) = {int(line.split()[0]) for line in starts(out, asleep)}
        process.send_signal(how)
        said, _ = process.communicate(timeout=30)
    assert said.split() == (["True", "1"] if how == signal.SIGINT else [])
    while time.monotonic() < deadline and Path(f"/proc/{worker}/stat").exists():
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}/stat").exists(), "the worker ends with its run"
    outcome = run([done, last], out)
    assert outcome.reused == (done.id,)
    assert len(outcome.finished) == 2
