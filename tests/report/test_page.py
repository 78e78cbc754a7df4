"""Joint pages: every claim with the published number, ours, its outcome and its plot."""

import re
import shutil
from dataclasses import replace

import pytest

from normstab.__main__ import main
from normstab.assess.assessment import assess
from normstab.experiment.records.cell_record import SweepPoint
from normstab.experiment.scenario.document import Claim, Plot
from normstab.experiment.scenario.spec import SweepSpec
from normstab.report.page import render_page
from normstab.report.pictures.claim_plots import KINDS, claim_plot
from normstab.study import publish, write_pages
from tests.assess.synthetic import FP16, make_cell, make_run, story
from tests.report.made import SCENARIO, made_assessment, made_scenario, write_runs


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return made_assessment(tmp_path_factory.mktemp("made"))


def test_the_page_is_the_golden_one(found, golden):
    golden("page.md", render_page("made_page", {"../made/report.md": found}).text)


def test_every_claim_has_its_row_its_numbers_and_its_plot(found):
    page = render_page("made_page", {"../made/report.md": found})
    assert "33.7 % \\| 33.3 %" in page.text
    assert set(page.files) == {"plots/P1.svg", "plots/P2.svg"}
    assert "3 seeds" in page.text
    assert "[made](../made/report.md)" in page.text


def test_a_claim_that_no_expectation_tests_is_not_evaluated(found):
    assert "| · not evaluated |" in render_page("made_page", {"../made/report.md": found}).text


def test_a_page_is_written_beside_the_scenarios_and_gathers_earlier_ones(tmp_path):
    runs = story(seeds=(0,), scales=(256,), norms=("l2",))
    directories = []
    for name in ("made", "other"):
        scenario = made_scenario(tmp_path, SCENARIO.replace("name: made\n", f"name: {name}\n", 1))
        directories.append(write_runs(tmp_path / "reports" / name, runs, scenario))
    published = publish(directories[:1], "md")
    assert published.written == (directories[0] / "report.md", tmp_path / "reports" / "made_page" / "report.md")
    text = (tmp_path / "reports" / "made_page" / "report.md").read_text()
    assert "From 2 scenarios: made, other." in text


def test_a_scenario_without_records_says_nothing_for_or_against_its_claims(tmp_path):
    empty = made_assessment(tmp_path, runs=[])
    text = render_page("made_page", {"../made/report.md": empty}).text
    assert "2 claims: 2 not evaluated" in text and "not met" not in text.partition("## P1")[2]
    assert "not run here: `normstab run made`" in text


def test_a_page_of_more_evaluated_claims_is_kept_unless_forced(tmp_path, capsys):
    runs = story(seeds=(0, 1, 2))
    directories = []
    for name in ("made", "other"):
        scenario = made_scenario(tmp_path, SCENARIO.replace("name: made\n", f"name: {name}\n", 1))
        directories.append(write_runs(tmp_path / "reports" / name, runs, scenario))
    page = publish(directories, "md").written[-1]
    before = page.read_text()
    shutil.rmtree(directories[1] / "records")
    kept = publish(directories[:1], "md")
    assert page not in kept.written and page.read_text() == before
    assert re.search(r"has \d claims evaluated, the records here evaluate \d of them; --force", kept.kept[0])
    assert main(["report", str(directories[0])]) in (0, 1)
    assert "kept: " in capsys.readouterr().err
    assert page in publish(directories[:1], "md", force=True).written and page.read_text() != before


def test_scenarios_without_a_page_write_none(tmp_path, found):
    plain = assess([], made_scenario(tmp_path, SCENARIO.replace("page: made_page\n", "")))
    assert write_pages({tmp_path: plain}) == ([], [])


def swept_assessment(folder):
    runs = []
    for norm, reach in (("l2", 3), ("l1", 8)):
        cell = replace(make_cell(norm, FP16), sweep=SweepSpec(), reference_id=None)
        points = tuple(SweepPoint(k, 1e-4 if abs(k) <= reach else 0.5, 0) for k in range(-12, 11))
        runs.append(make_run(cell, sweep={"bn1": points}, epochs=(), norm_layers={}))
    return assess(runs, made_scenario(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_plot_draws_what_its_records_have(kind, found, tmp_path):
    source = swept_assessment(tmp_path) if kind == "sweep" else found
    svg = claim_plot(Claim("P1", "text", plot=Plot(kind)), source)
    assert svg is not None and svg.startswith("<?xml")


@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_without_records_has_no_plot(kind, tmp_path):
    empty = made_assessment(tmp_path, runs=[])
    assert claim_plot(Claim("P1", "text", plot=Plot(kind)), empty) is None


def test_the_page_on_norms_says_what_each_costs(found):
    text = render_page("norm_matters", {"../made/report.md": found}).text
    rows = [
        line.split(" | ") for line in text.partition("## What a norm costs")[2].splitlines() if line.startswith("| l")
    ]
    assert [row[0] for row in rows] == ["| l2", "| l1", "| linf"]
    assert "What a norm costs" not in render_page("made_page", {"../made/report.md": found}).text
