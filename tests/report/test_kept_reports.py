"""Committed reports stay: fewer finished cells, or a smoke run, never replace a report unasked."""

import pytest

from normstab.__main__ import main
from normstab.errors import RecordError
from normstab.experiment.scenario.gather import directories_of, load_scenarios
from normstab.report.markdown import cells_listed
from normstab.study import keep_larger_report, write_pages, write_reports
from tests.assess.synthetic import story
from tests.report.made import made_assessment


def test_a_report_of_more_finished_cells_is_kept_unless_forced(tmp_path):
    whole = made_assessment(tmp_path, runs=story(seeds=(0, 1), scales=(1,), norms=("l2",)))
    part = made_assessment(tmp_path, runs=story(seeds=(0,), scales=(1,), norms=("l2",)))
    write_reports({tmp_path / "run": whole})
    report = tmp_path / "run" / "report.md"
    kept, listed = report.read_text(), cells_listed(report)
    assert listed == sum(len(group.cells) for group in whole.groups)
    with pytest.raises(RecordError, match=f"{listed} finished cells.*--force"):
        write_reports({tmp_path / "run": part})
    assert report.read_text() == kept
    write_reports({tmp_path / "run": part}, force=True)
    assert cells_listed(report) < listed


def test_a_run_of_fewer_cells_is_refused_before_it_trains(tmp_path, capsys):
    whole = made_assessment(tmp_path, runs=story(seeds=(0, 1, 2), scales=(1, 256), norms=("l2", "l1")))
    write_reports({tmp_path / "run": whole})
    arguments = ["run", "quickstart", "--smoke", "--out", str(tmp_path / "run"), "--set", "grid.norm=[l2]"]
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err and not (tmp_path / "run" / "records").exists()
    keep_larger_report(tmp_path / "run", 1, force=True)


def test_a_smoke_run_has_a_directory_of_its_own_and_no_joint_page(tmp_path):
    scenarios = load_scenarios(["quickstart"], smoke=True)
    assert directories_of(scenarios, None, smoke=True)[0].name == "quickstart-smoke"
    assert directories_of(scenarios, "here", smoke=True)[0].name == "here"
    found = made_assessment(tmp_path, runs=story(seeds=(0,), scales=(1,), norms=("l2",)))
    assert write_pages({tmp_path / "made-smoke": found}) == ([], [])


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("normstab 0.")
