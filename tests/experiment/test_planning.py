"""Large grids are counted by arithmetic: what it says is what making every cell says, and takes no time."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normstab.__main__ import main
from normstab.errors import ScenarioError
from normstab.experiment.scenario import expand as expanding
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.outline import cautions_of, cell_count, outline_of
from normstab.experiment.scenario.planning.grid_counts import counts_of, has_point
from normstab.experiment.scenario.planning.run_costs import Rates, rates_of
from normstab.experiment.scenario.reader import load_scenario, scenario_of_text, scenario_paths

HEAD = "version: 1\nname: x\ndataset: {name: synthetic}\nmodel: {name: mlp}\n"
AXES = {
    "norm": ["l2", "l1", "linf"],
    "precision": ["native", "fp16", "bf16"],
    "numerics.master_weights": [True, False],
    "numerics.histogram": [True, False],
    "numerics.rules.fc": ["native", "fp32"],
    "train.epochs": [1, 2, 3],
    "train.batch": [16, 64],
    "dataset.train": [100, 101],
    "input_scale": [1, 256],
    "seed": [0, 1, 2],
}
BASES = ("", "numerics: {precision: fp16}\n", "numerics: {rules: {fc: fp32}}\n")


@st.composite
def documents(draw):
    """The text of a scenario with a grid of up to four axes and some selectors of points to leave out."""
    names = draw(st.lists(st.sampled_from(sorted(AXES)), max_size=4, unique=True))
    grid = {name: draw(st.lists(st.sampled_from(AXES[name]), min_size=1, unique=True)) for name in names}
    excluded = []
    for _ in range(draw(st.integers(0, 3)) if names else 0):
        chosen = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        excluded.append({name: draw(st.lists(st.sampled_from(grid[name]), min_size=1)) for name in chosen})
    return f"{HEAD}{draw(st.sampled_from(BASES))}grid: {json.dumps(grid)}\nexclude: {json.dumps(excluded)}\n"


@given(documents())
@settings(max_examples=150)
def test_a_grid_is_counted_as_its_cells_are(text):
    try:
        scenario = scenario_of_text(text, "x.yaml")
        cells = expand(scenario, hash_data=False)
    except (ScenarioError, IndexError):  # every point is left out
        return
    found = counts_of(scenario.document)
    assert (found.listed, found.references) == (
        sum(cell.is_listed for cell in cells),
        sum(not cell.is_listed for cell in cells),
    )
    assert not found.is_most
    costs = Counter()
    for costly, n in found.by_cost.items():
        known = dict(costly)
        costs[known["train.epochs"] or 1, known["train.batch"] or 64, known["dataset.train"]] += n
    assert costs == Counter((cell.train.epochs, cell.train.batch, cell.dataset.train) for cell in cells)


@given(documents(), st.data())
@settings(max_examples=100)
def test_a_selector_finds_a_point_where_it_selects_a_listed_cell(text, data):
    try:
        scenario = scenario_of_text(text, "x.yaml")
        cells = expand(scenario, hash_data=False)
    except (ScenarioError, IndexError):
        return
    named = [axis for axis in scenario.document.get("grid") or {} if axis != "precision"]
    where = {axis: data.draw(st.sampled_from(AXES[axis])) for axis in named}
    expected = any(cell.is_listed and all(cell.coordinates[axis] == where[axis] for axis in where) for cell in cells)
    assert has_point(scenario.document, where) == expected


@pytest.mark.parametrize("name", scenario_paths())
def test_a_shipped_scenario_is_counted_as_its_cells_are_or_has_fewer(name):
    scenario = load_scenario(name)
    cells, found = expand(scenario, hash_data=False), counts_of(scenario.document)
    assert len(cells) == found.cells or (found.is_most and len(cells) < found.cells)


def large(*counts: int) -> str:
    """The text of a scenario whose grid has so many values on each of its axes, and two precisions."""
    axes = ("seed", "input_scale", "train.batch", "train.epochs")
    grid = {axis: list(range(1, n + 1)) for axis, n in zip(axes, counts, strict=False)}
    return f"{HEAD}grid: {json.dumps({'precision': ['fp16', 'bf16'], **grid})}\n"


@pytest.mark.parametrize(("counts", "points"), [((250,), 500), ((250, 100), 50_000), ((500, 100, 10), 1_000_000)])
def test_show_tells_cells_hours_and_bytes_of_any_grid_in_a_second(counts, points, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(large(*counts))
    write_timed(tmp_path / "reports" / "x")
    capsys.readouterr()
    start_s = time.process_time()
    assert main(["show", "x.yaml"]) == 0
    spent_s = time.process_time() - start_s
    said = capsys.readouterr().out
    assert f"{points * 3 // 2} trained cells ({points // 2} wide references)" in said
    assert "core hours, as 1 cells in reports/x took; about " in said and "MB of records" in said
    assert len(said.splitlines()) < 40 or points == 500
    assert spent_s < 3.0  # 0.1 to 0.5 where nothing else runs; a million cells take minutes to make


def write_timed(directory: Path) -> None:
    """Leave a run of one cell of ten steps of 64 images, which took 64 seconds."""
    place = directory / "records" / "a-0123456789"
    place.mkdir(parents=True)
    (place / "record.json").write_text(json.dumps({"steps": 10, "cell": {"train": {"batch": 64}}}))
    (place / "steps.jsonl").write_text("x" * 500)
    (directory / "run.json").write_text(json.dumps({"runs": [{"threads": 2, "seconds": {"a-0123456789": 64.0}}]}))


def test_hours_and_bytes_follow_from_an_earlier_run(tmp_path):
    write_timed(tmp_path / "x")
    rates = rates_of([tmp_path / "nothing", tmp_path / "x"])
    assert rates.seconds == 2 * 64 / 640 and rates.bytes_of_step == 50
    assert rates.core_hours(36_000) == pytest.approx(2.0)
    assert rates.bytes(3, 1000) == round(3 * rates.bytes_of_record + 50_000)


def test_hours_count_every_process_and_leave_forks_out(tmp_path):
    """What two processes trained took two cores; a fork takes the last steps of a training alone."""
    write_timed(tmp_path / "x")
    path = tmp_path / "x" / "records" / "a-0123456789" / "record.json"
    path.write_text(json.dumps({"steps": 10, "cell": {"train": {"batch": 64, "ranks": 3}}}))
    assert rates_of([tmp_path / "x"]).seconds == 3 * 2 * 64 / 640
    path.write_text(json.dumps({"steps": 10, "cell": {"train": {"batch": 64}, "fork": {"step": 9}}}))
    assert rates_of([tmp_path / "x"]) == Rates()


def test_a_dry_run_knows_the_hours_of_the_run_that_it_would_go_on_with(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(f"{HEAD}grid: {{precision: [fp16], seed: [0]}}\n")
    write_timed(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["run", "x.yaml", "--dry-run", "--out", "elsewhere"]) == 0
    assert "core hours, as 1 cells in elsewhere took" in capsys.readouterr().out
    assert main(["run", "x.yaml", "--dry-run"]) == 0
    assert "core hours are known once cells have run here" in capsys.readouterr().out


def test_formats_of_variants_and_of_rules_are_told_of_a_large_grid_too():
    text = large(500, 20).replace("grid: {", 'grid: {"variant": ["a", "b"], ')
    text += "variants: {a: {numerics.precision: e4m3}, b: {numerics.rules: {fc: e4m3}}}\n"
    scenario = scenario_of_text(text, "x.yaml")
    assert any("e4m3" in sentence for sentence in cautions_of(scenario))


@pytest.mark.parametrize("content", ["", "[]", '{"runs": 5}', '{"runs": [{"seconds": {"a": "x"}}]}', '{"runs": [{}]}'])
def test_a_damaged_log_of_a_run_tells_nothing(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    assert rates_of([tmp_path]) == Rates()
    assert Rates().core_hours(5) is None


def test_what_a_large_grid_costs_is_the_sum_over_its_cells(monkeypatch):
    text = large(3, 2, 4, 3).replace("synthetic", "synthetic, train: 101")
    scenario = scenario_of_text(text, "x.yaml")
    small = outline_of(scenario)
    monkeypatch.setattr("normstab.experiment.scenario.outline.is_large", lambda document: True)
    counted = outline_of(scenario)
    assert counted.totals == small.totals and counted.bytes == small.bytes
    assert counted.cells == small.cells[: len(counted.cells)] and counted.left == len(small.cells) - len(counted.cells)
    assert cell_count(scenario) == len(small.cells)


def test_an_expectation_of_no_cell_is_told_of_a_large_grid_too(tmp_path):
    text = f"{large(500, 20)}exclude: [{{seed: 7, input_scale: 3}}]\n"
    wanted = "expect: [{{where: {{seed: 7, input_scale: {0}}}, verdict: STABLE}}]\n"
    scenario_of_text(text + wanted.format("[3, 4]"), "x.yaml")
    with pytest.raises(ScenarioError, match="no cell has seed 7, input_scale 3 at once"):
        scenario_of_text(text + wanted.format(3), "x.yaml")


def test_settings_that_do_not_go_together_are_told_of_a_large_grid_too():
    text = large(500, 20).replace("grid: {", 'grid: {"train.optimizer.name": ["sgd", "adam"], ')
    with pytest.raises(ScenarioError, match="kahan goes with sgd and adamw"):
        scenario_of_text(f"{text}train: {{optimizer: {{name: sgd, kahan: true}}}}\n", "x.yaml")


def test_a_large_grid_is_made_when_it_is_run():
    scenario = scenario_of_text(large(400, 10), "x.yaml")
    cells = expand(scenario, hash_data=False)
    assert len(cells) == len({cell.id for cell in cells}) == cell_count(scenario) == 12_000


def test_a_run_of_more_cells_than_one_takes_is_refused_with_their_number(monkeypatch):
    monkeypatch.setattr(expanding, "MOST_RUN", 9_000)
    scenario = scenario_of_text(large(500, 10), "x.yaml")
    with pytest.raises(ScenarioError, match="10,000 cells; one run takes at most 9,000"):
        expand(scenario)
