"""The Markdown report: golden text, byte-identical plots, verdict first, damage named, ten thousand cells."""

import re
import shlex
import time
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from normstab.assess.assessment import assess
from normstab.errors import RecordError
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.reader import load_scenario
from normstab.report.markdown import render_report, write_report
from normstab.study import assess_directory, publish
from tests.assess.synthetic import FP16, make_cell, make_run, nonfinite_run, story
from tests.report.made import SCENARIO, made_assessment, made_scenario, write_runs


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return render_report(made_assessment(tmp_path_factory.mktemp("made")))


def test_the_report_is_the_golden_one(rendered, golden):
    golden("made.md", rendered.text)


def test_rendering_twice_gives_the_same_bytes(rendered, tmp_path):
    assert render_report(made_assessment(tmp_path)) == rendered


def test_the_order_of_the_records_does_not_matter(rendered, tmp_path):
    assert render_report(made_assessment(tmp_path, runs=story(scales=(1, 256))[::-1])).text == rendered.text


def test_the_verdict_comes_first(rendered):
    assert rendered.text.index("**Fails in 1 of 12 settings: norm l2, precision fp16, input_scale 256") < 400
    assert rendered.text.index("3 COLLAPSED, 33 STABLE of 36 cells") < rendered.text.index("## Verdicts")
    assert rendered.text.index("[!CAUTION]") < rendered.text.index("## Expectations")
    assert "`stem.square[forward]`, first in step 0" in rendered.text


def test_every_plot_is_linked_and_every_link_has_its_plot(rendered):
    assert set(re.findall(r"\]\((plots/[^)]+)\)", rendered.text)) == set(rendered.files)


def test_plots_are_light_valid_and_without_a_date(rendered):
    for svg in rendered.files.values():
        ElementTree.fromstring(svg)
        assert len(svg) < 300_000
        assert "<dc:date>" not in svg and "http://www.w3.org/1999/xlink" in svg


def test_tables_line_up_in_a_plain_editor(rendered):
    for block in re.split(r"\n\n+", rendered.text):
        lines = block.splitlines()
        if len(lines) > 2 and all(line.startswith("|") for line in lines):
            assert len({len(line) for line in lines}) == 1, lines[0]


def test_every_command_selects_its_one_cell_and_its_reference(rendered, tmp_path):
    path = tmp_path / "made.yaml"
    path.write_text(SCENARIO)
    commands = re.findall(r"^normstab run .*$", rendered.text.replace(" \\\n", " "), flags=re.MULTILINE)
    assert len(commands) == 37
    for command in commands[::5]:
        words = shlex.split(command)
        overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        cells = expand(load_scenario(path, overrides=overrides), hash_data=False)
        assert [cell.is_reference for cell in cells] == [True, False]


def test_a_report_without_any_record_says_so(tmp_path):
    text = render_report(made_assessment(tmp_path, runs=[])).text
    assert "No finished cell" in text


def test_a_scenario_of_references_alone_is_reported_too(tmp_path):
    runs = [run for run in story(seeds=(0,), scales=(1,)) if run.record.is_reference]
    found = render_report(made_assessment(tmp_path, runs=runs))
    assert "3 STABLE" in found.text
    assert "plots/loss.svg" in found.files and "plots/accuracy.svg" in found.files


def test_cells_without_a_record_are_listed(tmp_path):
    runs = story(seeds=(0,), scales=(1,), norms=("l2",))
    missing = make_cell("l2", FP16, seed=9)
    expected = [*(make_cell(r.coordinates["norm"], r.coordinates["precision"], 0, 1) for r in runs), missing]
    found = assess(runs, made_scenario(tmp_path), expected=expected)
    assert [cell.id for cell in found.missing] == [missing.id]
    assert missing.id in render_report(found).text


def test_a_run_that_died_is_blamed_on_its_producer(tmp_path):
    runs = [make_run(make_cell()), nonfinite_run(make_cell(precision=FP16))]
    text = render_report(made_assessment(tmp_path, runs=runs)).text
    assert "NONFINITE" in text
    assert "overflow at `stem.square[forward]`, first in step 3, in 40 of 1,000 results" in text


DAMAGE = {
    "torn": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_text(""),
    "of another version": lambda path: path.write_text(path.read_text().replace('"version": 1', '"version": 2', 1)),
    "edited by hand": lambda path: path.write_text(path.read_text().replace('"steps": 200', '"steps": "many"')),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_record_that_is_damaged_is_named_and_the_rest_rendered(damage, tmp_path):
    runs = story(seeds=(0,), scales=(256,), norms=("l2",))
    directory = write_runs(tmp_path / "out", runs, made_scenario(tmp_path))
    path = directory / "records" / runs[2].id / "record.json"
    DAMAGE[damage](path)
    found = assess_directory(directory)
    write_report(found, directory)
    text = (directory / "report.md").read_text()
    assert len(found.problems) == 1 and str(path) in found.problems[0]
    assert str(path) in text and "COLLAPSED" in text


@pytest.mark.parametrize("damage", ["missing", "shortened", "torn", "changed"])
def test_a_record_without_its_whole_step_log_is_no_evidence(damage, tmp_path):
    runs = story(seeds=(0,), scales=(256,), norms=("l2",))
    directory = write_runs(tmp_path / "out", runs, made_scenario(tmp_path))
    log = directory / "records" / runs[1].id / "steps.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    if damage == "missing":
        log.unlink()
    elif damage == "changed":
        log.write_text("".join(['{"step": 0, "loss": 1.0}\n', *lines[:-1]]))
    else:
        log.write_text("".join(lines[:150]) if damage == "shortened" else "".join(lines)[:-3])
    found = assess_directory(directory)
    assert len(found.problems) == 1 and str(log) in found.problems[0]
    assert runs[1].id not in {cell.id for cell in found.cells}


def test_a_directory_without_a_scenario_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"scenario\.json"):
        publish([tmp_path], "md")


def test_plots_of_an_earlier_report_are_removed(tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "old.svg").write_text("<svg/>")
    write_report(made_assessment(tmp_path, runs=story(seeds=(0,), scales=(1,), norms=("l2",))), tmp_path)
    assert not (tmp_path / "plots" / "old.svg").exists()


def test_a_directory_that_takes_no_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot write"):
        write_report(made_assessment(tmp_path, runs=[]), tmp_path / "file")


def many_runs(points, seeds):
    """Runs of so many grid points and seeds, each with its reference."""
    wide, half = story(seeds=(0,), scales=(256,), norms=("l2",))[:2]
    for point in range(points):
        for seed in range(seeds):
            for run, precision in ((wide, "native"), (half, FP16)):
                cell = make_cell("l2", precision, seed, 256, point=point)
                yield replace(run, record=replace(run.record, id=cell.id, cell=cell.to_json()))


@pytest.mark.parametrize("points", [100, pytest.param(500, marks=pytest.mark.nightly)])
def test_thousands_of_cells_are_rendered_and_the_text_stays_readable(points, tmp_path):
    """The time is told, not asserted: 10,000 cells below 30 s on the machine it was written on."""
    runs = list(many_runs(points, 10))
    assert len(runs) == 20 * points
    started = time.perf_counter()
    rendered = render_report(made_assessment(tmp_path, runs=runs))
    print(f"{len(runs)} cells rendered in {time.perf_counter() - started:.1f} s")
    assert len(rendered.text) < 512 * 1024
    assert "more cells are in" in rendered.text
