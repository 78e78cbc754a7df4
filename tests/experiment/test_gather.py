"""Scenarios as a command line names them, and where their runs go."""

from pathlib import Path

import pytest

from normstab.errors import ScenarioError
from normstab.experiment.scenario.gather import directories_of, load_scenarios
from normstab.experiment.scenario.reader import scenario_paths

QUICKSTART = scenario_paths()["quickstart"]


def copies(folder, *names):
    for name in names:
        (folder / f"{name}.yaml").write_text(QUICKSTART.read_text().replace("name: quickstart", f"name: {name}"))
    return folder


def test_a_directory_stands_for_the_scenarios_in_it_in_order(tmp_path):
    found = load_scenarios([str(copies(tmp_path, "second", "first"))])
    assert [scenario.name for scenario in found] == ["first", "second"]


def test_a_file_named_twice_runs_once(tmp_path):
    folder = copies(tmp_path, "only")
    assert len(load_scenarios([str(folder), str(folder / "only.yaml")])) == 1


def test_the_smoke_form_is_the_smoke_profile():
    assert load_scenarios(["quickstart"], smoke=True)[0].is_smoke


def test_one_scenario_goes_to_the_directory_named_and_several_below_it(tmp_path):
    scenarios = load_scenarios([str(copies(tmp_path, "a", "b"))])
    assert directories_of(scenarios[:1], "here") == [Path("here")]
    assert directories_of(scenarios, "here") == [Path("here/a"), Path("here/b")]
    assert directories_of(scenarios, None) == [Path("reports/a"), Path("reports/b")]


def test_two_scenarios_of_one_name_are_refused(tmp_path):
    path = tmp_path / "copy.yaml"
    path.write_text(QUICKSTART.read_text())
    with pytest.raises(ScenarioError, match="quickstart"):
        directories_of(load_scenarios([str(path), "quickstart"]), None)
