"""A report of very many records: its memory does not grow with them, and nothing that it says depends on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from normstab.assess.assessment import assess
from normstab.assess.run_reader import read_runs
from normstab.assess.runs import Run
from normstab.assess.single_run.stored_run import AT_ONCE, ON_DEMAND, Shelf
from normstab.errors import RecordError
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.records.step_log import read_steps
from normstab.report.documents import to_json
from normstab.report.markdown import render_report
from normstab.terminal.summary import MOST_ROWS, gravest_of, summary
from tests.assess.synthetic import story
from tests.report.made import made_scenario, write_runs
from tests.report.many_records import write_many

MB = 1024  # of what the kernel tells, which is in KiB


@pytest.fixture
def told(tmp_path):
    """A run of 54 cells in files."""
    runs = story()
    return write_runs(tmp_path / "out", runs, made_scenario(tmp_path)), made_scenario(tmp_path)


def in_memory(directory):
    """The runs, every one of which is read and kept."""
    places = sorted((directory / "records").iterdir())
    records = [read_record(place) for place in places]
    return [Run(record, read_steps(place)) for record, place in zip(records, places, strict=True)]


def test_what_is_judged_from_files_is_what_is_judged_in_memory(told):
    directory, scenario = told
    tight, problems = read_runs(directory, Shelf(directory, most_runs=2))
    assert problems == []
    found, kept = (assess(runs, scenario) for runs in (tight, in_memory(directory)))
    assert to_json(found) == to_json(kept)
    assert render_report(found) == render_report(kept)
    assert summary(found, width=200) == summary(kept, width=200)


def test_every_short_fact_of_a_stored_run_is_that_of_the_run(told):
    directory, _ = told
    stored, _ = read_runs(directory, Shelf(directory, most_runs=1))
    for lazy, run in zip(stored, in_memory(directory), strict=True):
        for name in (*AT_ONCE, *ON_DEMAND, "id", "point", "seed", "totals", "steps"):
            assert getattr(lazy, name) == getattr(run, name), name
        assert lazy == run


def test_a_shelf_holds_no_more_runs_and_bytes_than_it_may(told):
    directory, _ = told
    for limits in ({"most_runs": 3}, {"most_bytes": 1}):
        shelf = Shelf(directory, **limits)
        for run in read_runs(directory, shelf)[0]:
            assert len(run.steps) == run.record.steps
            assert len(shelf._runs) <= limits.get("most_runs", 1)


def test_a_record_that_changes_while_it_is_judged_is_an_error_that_names_it(told):
    directory, _ = told
    runs, _ = read_runs(directory, Shelf(directory, most_runs=1))
    path = directory / "records" / runs[0].id / "record.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(RecordError, match=f"{runs[0].id}: changed while it was judged"):
        runs[0].record  # noqa: B018 - read anew


def test_a_table_of_more_settings_than_a_terminal_shows_keeps_the_gravest(told):
    directory, scenario = told
    judged = assess(in_memory(directory), scenario).judged
    most = 3
    kept = gravest_of(judged, most)
    assert len(kept) == most < len(judged) < MOST_ROWS
    assert max(group.verdict.value for group in judged) == max(group.verdict.value for group in kept)
    assert [group for group in judged if group in kept] == kept


def peak_of_report(directory: Path) -> float:
    """The most memory that `normstab report` of a directory held, in MiB."""
    process = subprocess.Popen(
        [sys.executable, "-m", "normstab", "-q", "report", str(directory)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return usage.ru_maxrss / MB


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the memory of one process is asked for")
def test_the_memory_of_a_report_does_not_grow_with_its_records(tmp_path):
    """600 records more, which take 50 MiB in memory, may add what is listed of them: a fifth."""
    peaks = {}
    for cells in (100, 700):
        write_many(tmp_path / str(cells), cells, steps=40, images=200)
        peaks[cells] = peak_of_report(tmp_path / str(cells))
    assert peaks[700] - peaks[100] < 10, peaks


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the memory of one process is asked for")
def test_a_report_of_twenty_thousand_records_takes_the_memory_of_one_of_two_thousand(tmp_path, capsys):
    peaks = {}
    for cells in (200, 2000, 20_000):
        write_many(tmp_path / str(cells), cells, steps=40, images=200)
        peaks[cells] = peak_of_report(tmp_path / str(cells))
    with capsys.disabled():
        print("peak MiB of a report by records:", {cells: round(peak) for cells, peak in peaks.items()})
    assert peaks[20_000] - peaks[2000] < 18_000 * 10 / 1024, peaks  # 10 KiB a record: its row, not its curves
