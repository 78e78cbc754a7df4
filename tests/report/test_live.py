"""What people see while cells run: lines for cells that ended, and a table of those that have not."""

import pytest
from rich.console import Console

from normstab.experiment.execution.progress import Event, Failure, Progress
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.reader import load_scenario
from normstab.terminal.live import LiveTable, line_of, shown_duration, watching

CELL = expand(load_scenario("quickstart"), hash_data=False)[0]


def event(kind, *, done=1, eta_s=None, progress=None, failure=None):
    return Event(kind, CELL, done, 4, 12.0, eta_s, progress, failure)


def printed(table):
    console = Console(width=140, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize("kind", ["started", "progress"])
def test_a_cell_under_way_takes_no_line_of_a_log(kind):
    assert line_of(event(kind)) is None


@pytest.mark.parametrize("kind", ["reused", "finished"])
def test_a_cell_that_ended_takes_one_line_with_its_id_and_the_count(kind):
    line = line_of(event(kind))
    assert line.startswith("[1/4] ")
    assert CELL.id in line
    assert "\n" not in line


def test_the_time_to_go_is_told_until_the_last_cell():
    assert line_of(event("finished", eta_s=75.0)).endswith("about 1:15 to go")
    assert "to go" not in line_of(event("finished", done=4, eta_s=0.0))


def test_a_failure_says_its_kind_and_its_reason():
    line = line_of(event("failed", failure=Failure(CELL.id, "crashed", "the worker was killed (signal 9)")))
    assert "crashed: the worker was killed (signal 9)" in line


def test_the_table_shows_the_cells_under_way_only():
    table = LiveTable()
    table.note(event("started"))
    table.note(event("progress", progress=Progress(30, 60, 1, 0.5, 0.75), eta_s=20.0))
    shown = printed(table)
    assert CELL.id in shown
    assert "30/60" in shown and "0.500" in shown and "0.750" in shown
    assert "1 of 4 cells" in shown and "20 s to go" in shown
    table.note(event("finished"))
    assert CELL.id not in printed(table)


def test_in_a_log_only_lines_are_written():
    lines = []
    with watching(lines.append, is_live=False) as show:
        for kind in ("started", "progress", "finished"):
            show(event(kind))
    assert lines == [line_of(event("finished"))]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1:00"), (3599.6, "1:00:00")]
)
def test_durations_are_rounded_before_they_are_split(seconds, shown):
    assert shown_duration(seconds) == shown
