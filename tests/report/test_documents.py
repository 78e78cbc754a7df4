"""JSON, JUnit, the job summary, comparisons and the plain summary."""

import json
from xml.etree import ElementTree

import pytest

from normstab.assess.assessment import assess
from normstab.assess.compare import compare_judged, parse_gate
from normstab.report.comparison import comparison_json, comparison_text
from normstab.report.documents import to_json, to_junit
from normstab.terminal.step_summary import LIMIT, step_summary
from tests.assess.synthetic import FP16, make_cell, nonfinite_run, story
from tests.report.made import made_assessment, made_scenario


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return made_assessment(tmp_path_factory.mktemp("made"))


def test_json_has_every_cell_group_and_expectation(found):
    document = json.loads(to_json(found))
    assert document["verdicts"] == {"STABLE": 33, "COLLAPSED": 3}
    assert (len(document["cells"]), len(document["groups"]), len(document["expectations"])) == (54, 18, 4)
    broken = next(cell for cell in document["cells"] if cell["verdict"] == "COLLAPSED")
    assert (broken["first_site"], broken["first_step"]) == ("stem.square[forward]", 0)
    assert broken["metrics"]["collapsed_channels"] == 0.2
    assert json.loads(to_json(found, found))[1] == document


def test_json_spells_what_is_not_finite(tmp_path):
    text = to_json(made_assessment(tmp_path, runs=[nonfinite_run(make_cell(precision=FP16))]))
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_junit_has_a_case_per_cell_and_per_expectation(found):
    root = ElementTree.fromstring(to_junit(found))
    (suite,) = root
    cases = suite.findall("testcase")
    assert (suite.get("tests"), len(cases)) == ("58", 58)
    assert (suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("1", "0", "1")
    broken = [case for case in cases if case.find("properties/property[@value='COLLAPSED']") is not None]
    assert len(broken) == 3
    assert all(case.find("failure") is None for case in broken)


def test_junit_calls_a_cell_without_a_record_an_error(tmp_path):
    runs = story(seeds=(0,), scales=(1,), norms=("l2",))
    lost = make_cell("l2", FP16, seed=9)
    expected = [*(make_cell("l2", run.coordinates["precision"], 0, 1) for run in runs), lost]
    root = ElementTree.fromstring(to_junit(assess(runs, made_scenario(tmp_path), expected=expected)))
    assert root[0].get("errors") == "1"
    assert lost.id in root.find(".//error").get("message")


def test_junit_under_smoke_skips_what_was_not_judged(tmp_path):
    root = ElementTree.fromstring(to_junit(assess(story(), made_scenario(tmp_path, profile="smoke"))))
    assert root[0].get("skipped") == "3"


def test_the_job_summary_has_the_verdicts_and_no_images(found, golden):
    text = step_summary([found])
    golden("summary.md", text)
    assert "![" not in text


def test_the_job_summary_keeps_below_the_limit_and_says_what_it_left_out(found):
    one = len(step_summary([found]).encode())
    text = step_summary([found] * 5, limit=one * 3)
    assert len(text.encode()) <= one * 3
    assert "more scenarios do not fit here" in text
    assert LIMIT == 2**20


def test_a_comparison_shows_what_changed_and_which_gate_failed(tmp_path, golden):
    before = made_assessment(tmp_path, runs=story(scales=(256,), norms=("l1",))).groups
    after = made_assessment(tmp_path, runs=story(scales=(256,), norms=("l1",))).groups
    worse = made_assessment(tmp_path, runs=_renamed(story(scales=(256,), norms=("l2",)))).groups
    gates = [parse_gate("accuracy:-1pp")]
    assert "every gate holds: accuracy:-1pp" in comparison_text(compare_judged(before, after, gates), gates)
    changed = compare_judged(before, worse, gates)
    golden("comparison.txt", comparison_text(changed, gates) + "\n")
    assert len(json.loads(comparison_json(changed))["failures"]) == 3


def _renamed(runs):
    """The same runs at the coordinates of another norm."""
    from dataclasses import replace

    cells = [{**run.record.cell, "coordinates": {**run.record.cell["coordinates"], "norm": "l1"}} for run in runs]
    return [replace(run, record=replace(run.record, cell=cell)) for run, cell in zip(runs, cells, strict=True)]
