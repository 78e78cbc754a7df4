"""Loading a scenario file: what a right file means, and every wrong one answered at once, with its place."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from normstab.errors import ScenarioError
from normstab.experiment.data.token_sets import TOKEN_SETS
from normstab.experiment.scenario.authoring.schema import schema
from normstab.experiment.scenario.document import AXES, PATHS
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.outline import cell_count
from normstab.experiment.scenario.reader import load_scenario, read_scenario, scenario_paths

CONTRACT = """\
version: 1
name: resnet18_fp16
question: Does L1 batch norm train in half precision where L2 fails?
source: Hoffer et al. 2018, figure 3
dataset: {name: fashion-mnist-sample, size: 16}
model: {name: resnet18, width: 16}
train: {epochs: 2, batch: 64, optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4},
  schedule: {name: one-cycle}}
grid: {norm: [l2, l1], precision: [fp16/nearest/fp32], input_scale: [1, 256], seed: [0, 1, 2]}
exclude: [{norm: l1, input_scale: 1}]
expect:
  - {where: {norm: l2, input_scale: 256}, verdict: [COLLAPSED, NONFINITE], smoke: true}
  - {metric: accuracy, better: {norm: l1}, worse: {norm: l2}, where: {input_scale: 256}, by: 20pp}
profiles: {smoke: {train.epochs: 1, grid.seed: [0]}, paper: {dataset.name: imagenet}}
"""
SMALL = "version: 1\nname: small\ndataset: {name: synthetic}\nmodel: {name: mlp}\n"


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "s.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def complaint(tmp_path: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(ScenarioError) as raised:
        load_scenario(written(tmp_path, text), overrides=overrides)
    return str(raised.value).replace(str(tmp_path / "s.yaml"), "s.yaml")


def test_the_example_of_the_contract_loads_as_written(tmp_path: Path) -> None:
    scenario = load_scenario(written(tmp_path, CONTRACT))
    assert (scenario.name, scenario.tolerance, scenario.page) == ("resnet18_fp16", 0.01, None)
    assert scenario.question.startswith("Does L1") and scenario.source.endswith("figure 3")
    listed = [cell for cell in expand(scenario) if cell.is_listed]
    assert len(listed) == 3 * (2 + 1)
    assert {cell.coordinates["precision"] for cell in listed} == {"fp16/nearest/fp32:lanes64"}
    cell = listed[0]
    assert (cell.dataset.size, cell.model.width, cell.train.optimizer.weight_decay) == (16, 16, 5e-4)
    assert cell.train.schedule.name == "one-cycle"


def test_yaml_is_version_1_2(tmp_path: Path) -> None:
    text = SMALL.replace("{name: mlp}", "{name: mlp, norm: none}") + "train: {optimizer: {lr: 1e-3}}\nquestion: off\n"
    scenario = load_scenario(written(tmp_path, text))
    assert scenario.question == "off"
    (cell,) = expand(scenario)
    assert (cell.train.optimizer.lr, cell.model.norm) == (1e-3, "none")


def test_every_problem_is_told_at_once_with_line_column_and_suggestion(tmp_path: Path) -> None:
    text = (
        "version: 1\nname: bad\nqueston: x\ndataset: {name: sinthetic, size: 0}\nmodel: {name: mlp, norm: linff}\n"
        "train:\n  epochs: 2.5\n  optimizer: {lr: fast}\n  loss_scale: dynamc\n"
        "grid:\n  precision: [fp17]\n  norms: [l2]\n  input_scale: [1, 0]\n"
        "expect:\n  - {metric: acuracy, at_least: 1, where: {seed: 7}}\n"
        "profiles: {smoke: {train.epoch: 1}}\n"
    )
    said = complaint(tmp_path, text)
    for line in (
        "s.yaml:3:1: queston: unknown field 'queston'; did you mean 'question'?",
        "s.yaml:4:17: dataset.name: unknown data set 'sinthetic'; did you mean 'synthetic'?",
        "s.yaml:4:34: dataset.size: expected greater than or equal to 1, found 0",
        "s.yaml:5:26: model.norm: unknown norm 'linff'; did you mean 'linf'?",
        "s.yaml:7:11: train.epochs: expected a whole number, found 2.5",
        "s.yaml:8:19: train.optimizer.lr: expected a number, found 'fast'",
        "s.yaml:9:15: train.loss_scale: expected a number or 'dynamic', found 'dynamc'",
        "s.yaml:11:15: grid.precision[0]: unknown format 'fp17'; did you mean 'fp16'?",
        "s.yaml:12:3: grid.norms: unknown axis 'norms'; did you mean 'norm'?",
        "s.yaml:13:20: grid.input_scale[1]: expected greater than 0, found 0",
        "s.yaml:15:14: expect[0].metric: unknown metric 'acuracy'; did you mean 'accuracy'?",
        "s.yaml:15:50: expect[0].where.seed: no cell has seed 7",
        "s.yaml:16:20: profiles.smoke.train.epoch: unknown path 'train.epoch'; did you mean 'train.epochs'?",
        "13 problems; correct the file",
        "\n      optimizer: {lr: fast}\n                      ^",
    ):
        assert line in said
    assert said.index("s.yaml:3:1") < said.index("s.yaml:11:15") < said.index("s.yaml:16:20")


@pytest.mark.parametrize(("text", "says"), [
    ("", "the file is empty"),
    ("# only a comment\n", "the file is empty"),
    ("- 1\n", "expected a mapping"),
    (b"\x89PNG\r\n\x1a\n\x00\x00", "byte 0x89 at offset 0 is not UTF-8"),
    ("a\x00b", "not a text file"),
    ("\x7fELF\x02", "not a text file"),
    ("a: [1\n", "s.yaml:2:1: not YAML"),
    ("a: b: c\n", "s.yaml:1:5: not YAML"),
    ("a: 1\n---\nb: 2\n", "more than one YAML document"),
    ("a: {b: 1, b: 2}\na: 3\n", "a.b: the key 'b' is given twice (first at s.yaml:1:5)"),
    ("a: *nowhere\n", "the alias *nowhere has no anchor"),
    ("a: &a [*a]\n", "the alias *a has no anchor"),
    ("a: !!python/object/apply:os.system [exit]\n", "the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not"),
    ("a: !include x\n", "the tag '!include' is not allowed"),
    ("[" * 20000, "more than 32 nested levels"),
    ("{a: " * 8000, "more than 32 nested levels"),
    ("- " * 16000, "more than 32 nested levels"),
    ("{[1]: 2}\n", "a key is a plain word"),
    ("a: " + "1" * 5000 + "\n", "unknown field 'a'"),
    ("x" * (32 * 1024 + 1), "larger than 32 KiB"),
])  # fmt: skip
def test_what_is_no_scenario_is_refused_clearly(tmp_path: Path, text: str | bytes, says: str) -> None:
    assert says in complaint(tmp_path, text)


def test_a_bomb_of_aliases_is_refused_by_the_number_of_values(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    assert "more than 4000 values once the aliases are expanded" in complaint(tmp_path, "\n".join(levels))
    many = "a: &a 1\nb: [" + ", ".join(["*a"] * 101) + "]\n"
    assert "more than 100 aliases" in complaint(tmp_path, many)


def test_a_megabyte_of_nested_anchors_is_refused_by_size_without_parsing(tmp_path: Path) -> None:
    path = written(tmp_path, "a: &a [" * 150_000)
    start = time.process_time()
    with pytest.raises(ScenarioError, match="larger than 32 KiB"):
        load_scenario(path)
    assert time.process_time() - start < 60, "not a measurement: parsing it would take minutes"


def test_a_grid_of_a_million_cells_is_loaded_without_making_them(tmp_path: Path) -> None:
    axes = ", ".join(f"{axis}: [{', '.join(str(v) for v in range(1, 11))}]" for axis in (
        "seed", "train.epochs", "train.batch", "train.probe_every", "input_scale", "train.optimizer.lr"))  # fmt: skip
    scenario = load_scenario(written(tmp_path, SMALL + f"grid: {{{axes}}}\n"))
    assert cell_count(scenario) == 1_000_000 and not scenario.outlined


def test_aliases_are_copies(tmp_path: Path) -> None:
    text = SMALL + "profiles:\n  a: &p {train.epochs: 2}\n  b: *p\n"
    scenario = load_scenario(written(tmp_path, text), overrides=["profile=b", "train.batch=8"])
    assert [cell.train.epochs for cell in expand(scenario)] == [2]


def test_smoke_is_applied_before_every_override(tmp_path: Path) -> None:
    path = written(tmp_path, CONTRACT)
    for overrides in (["train.epochs=5", "profile=smoke"], ["profile=smoke", "train.epochs=5"]):
        scenario = load_scenario(path, overrides=overrides)
        assert scenario.is_smoke
        cells = [cell for cell in expand(scenario) if cell.is_listed]
        assert {cell.train.epochs for cell in cells} == {5}
        assert {cell.coordinates["seed"] for cell in cells} == {0}
    assert load_scenario(path, profile="smoke") == load_scenario(path, overrides=["profile=smoke"])
    assert not load_scenario(path).is_smoke


@pytest.mark.parametrize(("override", "says"), [
    ("train.epochs=x", "--set train.epochs=x: train.epochs: expected a whole number, found 'x'"),
    ("train.epoch=1", "--set train.epoch=1: train.epoch: unknown field 'epoch'; did you mean 'epochs'?"),
    ("train.seed=1", "'train.seed' is set by the grid's axis 'seed'; write grid.seed: [...]"),
    ("grid.norm=[l2, l9]", "--set grid.norm=[l2, l9]: grid.norm[1]: unknown norm 'l9'"),
    ("precision=fp17", "unknown format 'fp17'"),
    ("profile=smoky", "unknown profile 'smoky'; did you mean 'smoke'?"),
    ("name=other", "'name' cannot be changed"),
    ("train.epochs", "expected PATH=VALUE"),
    ("train.epochs=", "there is no value after '='"),
    ("train.epochs=[1", "--set train.epochs=[1:1:3: not YAML"),
    ("train.epochs.x=1", "a part of this path is not a mapping"),
])  # fmt: skip
def test_a_wrong_override_is_told_as_the_option_it_is(tmp_path: Path, override: str, says: str) -> None:
    assert says in complaint(tmp_path, CONTRACT, override)


def test_a_short_axis_name_sets_the_axis_or_the_field(tmp_path: Path) -> None:
    path = written(tmp_path, CONTRACT)
    cells = expand(load_scenario(path, overrides=["seed=7", "norm=[l1]", "weight_norm=wn"]))
    assert {(cell.train.seed, cell.model.norm, cell.model.weight_norm) for cell in cells} == {(7, "l1", "wn")}


def test_every_axis_and_path_of_the_documentation_exists() -> None:
    assert set(AXES.values()) <= set(PATHS)


USERS = "import torch\n\ndef build(channels, side, classes, width=8):\n    return torch.nn.Flatten()\n"


def test_a_model_of_the_working_directory_is_imported_only_where_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_nets.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    text = SMALL.replace("{name: mlp}", "{name: 'users_nets:build', args: {width: 4}}")
    scenario = load_scenario(written(tmp_path, text), allow_import=True)
    assert expand(scenario)[0].model.args == {"width": 4}
    with pytest.raises(ScenarioError, match=r"s.yaml:4:15: model.name: .* no callable 'bild'; did you mean 'build'"):
        load_scenario(written(tmp_path, text.replace("nets:build", "nets:bild")), allow_import=True)
    # A report that somebody else made is judged again without running any code of it.
    kept = {**scenario.to_json(), "document": {**scenario.document, "model": {"name": "no_such_module:build"}}}
    (tmp_path / "scenario.json").write_text(json.dumps(kept))
    assert read_scenario(tmp_path / "scenario.json").document["model"]["name"] == "no_such_module:build"


def test_arguments_of_a_model_can_be_an_axis_or_a_part_of_a_variant(tmp_path: Path) -> None:
    text = SMALL.replace("mlp", "timm:vit_tiny_patch16_224")
    for grid, args in (
        ("{model.args: [{img_size: 16}, {img_size: 32}]}", [{"img_size": 16}, {"img_size": 32}]),
        ("{variant: [a, b]}\nvariants: {a: {}, b: {model.args.depth: 2}}", [None, {"depth": 2}]),
    ):
        cells = expand(load_scenario(written(tmp_path, f"{text}grid: {grid}\n")))
        assert [cell.model.args for cell in cells] == args


def test_arguments_leave_the_ids_of_cells_without_them_as_they_were(tmp_path: Path) -> None:
    plain = expand(load_scenario(written(tmp_path, SMALL.replace("mlp", "timm:resnet18"))))[0]
    assert "args" not in plain.to_json()["model"]
    text = SMALL.replace("mlp", "timm:resnet18, args: {drop_rate: 0.5}")
    other = expand(load_scenario(written(tmp_path, text)))[0]
    assert other.id != plain.id and other.to_json()["model"]["args"] == {"drop_rate": 0.5}


def test_importing_a_model_needs_leave(tmp_path: Path) -> None:
    text = SMALL.replace("mlp", "os:getcwd")
    assert "would import the module 'os'; add --allow-import" in complaint(tmp_path, text)
    scenario = load_scenario(written(tmp_path, text), allow_import=True)
    assert expand(scenario)[0].model.name == "os:getcwd"
    assert expand(load_scenario(written(tmp_path, SMALL.replace("mlp", "torchvision:resnet18"))))


def test_a_variant_without_an_axis_is_told(tmp_path: Path) -> None:
    text = SMALL + "variants: {a: {train.epochs: 2}}\n"
    assert "no cell uses the variants; add grid.variant: [a]" in complaint(tmp_path, text)


def test_an_expectation_that_selects_nothing_is_told_at_its_place(tmp_path: Path) -> None:
    excluded = CONTRACT.replace(
        "worse: {norm: l2}, where: {input_scale: 256}", "worse: {norm: l2}, where: {input_scale: 1}"
    )
    said = complaint(tmp_path, excluded)
    assert "s.yaml:13:32: expect[1].better: no cell has input_scale 1, norm l1 at once" in said
    assert load_scenario(written(tmp_path, excluded), profile="smoke"), "only smoke expectations are judged there"


@pytest.mark.parametrize(("expectation", "says"), [
    ("{verdict: STABEL, where: {}}", "expected 'STABLE', "),
    ("{where: {}}", "missing: 'metric'"),
    ("{metric: accuracy, where: {}}", "a metric needs one of"),
    ("{metric: accuracy, better: {seed: 0}}", "missing: 'worse'"),
    ("{metric: accuracy, within: 1 percent, where: {}}", "expected a number, points such as 20pp"),
    ("{metric: accuracy, at_least: 0.5, at: 2, where: {}}", "expect[0].at: expected less than or equal to 1"),
    ("{metric: accuracy, at_least: 0.5, where: {}, claim: P1}", "unknown claim 'P1' (the file has none)"),
    ("{metric: sweep_low, at_least: 0.5, where: {norm: l2}}", "no cell has the axis 'norm'"),
    ("{any: [], where: {}}", "unknown field 'where'"),
    ("{any: [{metric: nonsense, at_least: 1, where: {}}]}", "expect[0].any[0].metric: unknown metric 'nonsense'"),
])  # fmt: skip
def test_a_wrong_expectation_is_explained(tmp_path: Path, expectation: str, says: str) -> None:
    assert says in complaint(tmp_path, SMALL + f"expect: [{expectation}]\n")


def test_a_missing_file_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"no such file, and no shipped scenario; did you mean 'quickstart'\?"):
        load_scenario("quikstart")
    with pytest.raises(ScenarioError, match="cannot read"):
        load_scenario(tmp_path)


def test_a_saved_scenario_is_read_back(tmp_path: Path) -> None:
    scenario = load_scenario(written(tmp_path, CONTRACT), overrides=["profile=smoke", "train.batch=32"])
    (tmp_path / "scenario.json").write_text(json.dumps(scenario.to_json()))
    again = read_scenario(tmp_path / "scenario.json")
    assert again == scenario and again.expectations == scenario.expectations
    assert [cell.id for cell in expand(again)] == [cell.id for cell in expand(scenario)]
    (tmp_path / "scenario.json").write_text('{"version": 1}')
    with pytest.raises(ScenarioError, match=r"not a scenario\.json"):
        read_scenario(tmp_path / "scenario.json")


@pytest.mark.parametrize("name", scenario_paths())
def test_the_smoke_form_of_a_shipped_scenario_is_read_back(tmp_path: Path, name: str) -> None:
    # Its expectations name cells that the profile leaves out.
    scenario = load_scenario(name, profile="smoke")
    (tmp_path / "scenario.json").write_text(json.dumps(scenario.to_json()))
    assert read_scenario(tmp_path / "scenario.json") == scenario


@pytest.mark.parametrize("name", scenario_paths())
def test_every_shipped_scenario_is_whole(name: str) -> None:
    path = scenario_paths()[name]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../normstab/experiment/scenario.schema.json"
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.question and scenario.source and scenario.expectations
    smoke, paper = (load_scenario(name, profile=profile) for profile in ("smoke", "paper"))
    assert any(expectation.smoke for expectation in smoke.expectations)
    sizes = [len(expand(form, hash_data=False)) for form in (smoke, scenario, paper)]
    assert sizes[0] <= sizes[1]
    small = {cell.dataset.name for cell in expand(scenario, hash_data=False)}
    embedded = {name for name, row in TOKEN_SETS.items() if "root" not in row.settings}
    assert small <= {"fashion-mnist-sample", *embedded}, "the small form needs no download"


@pytest.mark.parametrize("name", scenario_paths())
def test_a_scenario_on_the_sample_has_a_form_on_the_full_set(name: str) -> None:
    cells = expand(load_scenario(name), hash_data=False)
    if not any(cell.dataset.name == "fashion-mnist-sample" for cell in cells):
        return
    full = expand(load_scenario(name, profile="full"), hash_data=False)
    assert len(full) == len(cells)
    for wide, cell in zip(full, cells, strict=True):
        assert (wide.dataset.name, wide.dataset.test) == ("fashion-mnist", None)
        assert wide.dataset.train == (cell.dataset.train or 6000)
        assert replace(wide.train, norm_record=None) == replace(cell.train, norm_record=None)


def test_the_committed_schema_is_the_current_one() -> None:
    committed = Path(__file__).parents[2] / "normstab" / "experiment" / "scenario.schema.json"
    assert json.loads(committed.read_text(encoding="utf-8")) == schema(), "write it anew with `normstab schema`"


def test_loading_imports_neither_torch_nor_numba() -> None:
    code = (
        "import sys\nfrom normstab.experiment.scenario.reader import load_scenario\n"
        "from normstab.experiment.scenario.expand import expand\n"
        "expand(load_scenario('quickstart'), hash_data=False)\n"
        "print([name for name in ('torch', 'numba', 'matplotlib') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
