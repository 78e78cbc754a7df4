"""From a scenario to its cells: coordinates, references, variants, dependencies, ids."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normstab.errors import ScenarioError
from normstab.experiment.scenario import cell_identity
from normstab.experiment.scenario.cell_selection import selects
from normstab.experiment.scenario.checking.checks import canonical
from normstab.experiment.scenario.document import Scenario
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.reader import load_scenario, scenario_paths
from normstab.experiment.scenario.spec import Cell, NumericsSpec
from normstab.numerics.precision import Precision

HEAD = "version: 1\nname: small\ndataset: {name: synthetic}\nmodel: {name: mlp}\n"


def loaded(tmp_path: Path, text: str, *overrides: str) -> Scenario:
    path = tmp_path / "s.yaml"
    path.write_text(HEAD + text)
    return load_scenario(path, overrides=overrides)


def cells_of(tmp_path: Path, text: str, *overrides: str) -> list[Cell]:
    return expand(loaded(tmp_path, text, *overrides), hash_data=False)


def test_a_scenario_without_a_grid_is_one_cell(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, "")
    assert cell.coordinates == {"precision": "native", "seed": 0}
    assert cell.is_reference and cell.is_listed and cell.reference_id is None


def test_the_last_axis_runs_fastest_and_coordinates_keep_the_files_order(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "grid: {seed: [1, 0], norm: [l2, l1]}\n")
    assert [tuple(cell.coordinates.items()) for cell in cells] == [
        (("seed", seed), ("norm", norm), ("precision", "native")) for seed in (1, 0) for norm in ("l2", "l1")
    ]


def test_cells_that_differ_only_in_numerics_share_one_reference_that_comes_before_them(tmp_path: Path) -> None:
    grid = "grid: {norm: [l2, l1], precision: [fp16, bf16, fp16;square=fp32], numerics.master_weights: [true, false]}\n"
    cells = cells_of(tmp_path, grid)
    references = [cell for cell in cells if cell.is_reference]
    assert len(cells) == 2 * 3 * 2 + 2 and len(references) == 2
    seen: set[str] = set()
    for cell in cells:
        assert set(cell.depends_on) <= seen
        seen.add(cell.id)
        if not cell.is_reference:
            (reference,) = [other for other in references if other.id == cell.reference_id]
            assert cell.depends_on == (reference.id,) and cell.is_listed and not reference.is_listed
            assert replace(cell.model) == reference.model and cell.train == reference.train
            assert reference.numerics == NumericsSpec()
            assert reference.coordinates["precision"] == "native"


def test_a_reference_that_the_grid_lists_is_not_run_twice(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "grid: {precision: [native, fp16]}\n")
    assert [(cell.is_reference, cell.is_listed) for cell in cells] == [(True, True), (False, True)]


def test_exclude_takes_lists_and_any_spelling(tmp_path: Path) -> None:
    grid = "grid: {norm: [l2, l1], precision: [fp16, bf16], input_scale: [1, 256]}\n"
    text = grid + "exclude: [{norm: [L2, l1], precision: fp16/nearest/fp32, input_scale: 256.0}]\n"
    listed = [cell for cell in cells_of(tmp_path, text) if cell.is_listed]
    assert len(listed) == 6
    assert not [c for c in listed if c.coordinates["input_scale"] == 256 and "fp16" in str(c.coordinates["precision"])]


def test_include_adds_cells_with_the_grids_other_axes(tmp_path: Path) -> None:
    text = "grid: {norm: [l2], seed: [0, 1]}\ninclude: [{norm: mean-only, weight_norm: [wn, bwn]}]\n"
    found = [tuple(cell.coordinates.values()) for cell in cells_of(tmp_path, text)]
    assert found == [
        *(("l2", seed, "none", "native") for seed in (0, 1)),
        *(("mean-only", seed, weight, "native") for seed in (0, 1) for weight in ("wn", "bwn")),
    ]


def test_a_norm_may_be_a_rule_per_layer(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "grid: {norm: [l2, {_default: L1, bn1: top3}]}\n")
    assert cells[1].model.norm == {"_default": "l1", "bn1": "top3"}
    assert cells[1].coordinates["norm"] == "_default=l1,bn1=top3"
    scenario = loaded(tmp_path, "model: {name: mlp, norm: {_default: l2}}\n".replace("model", "numerics").replace(
        "{name: mlp, norm: {_default: l2}}", "{precision: fp16, rules: {fc: fp32}}"))  # fmt: skip
    assert expand(scenario, hash_data=False)[1].numerics.rules == {"fc": "fp32/nearest/fp32:lanes64"}
    (cell,) = cells_of(tmp_path, "", "model.norm.layer1.0.bn1=linf")
    assert cell.model.norm == {"layer1.0.bn1": "linf"}


VARIANTS = """\
variants:
  decay: {train.optimizer.weight_decay: 5.0e-4}
  plain: {}
  corrected: {train.weight_decay_correction: lr, train.norm_record: {from: {variant: decay}}}
"""


def test_a_cell_may_follow_the_norms_that_another_recorded(tmp_path: Path) -> None:
    text = VARIANTS + "grid: {variant: [corrected, decay, plain], precision: [native, fp16], seed: [0, 1]}\n"
    cells = cells_of(tmp_path, text)
    by_id = {cell.id: cell for cell in cells}
    assert len(cells) == len(by_id) == 12
    for cell in cells:
        if cell.coordinates["variant"] == "corrected":
            recorder = by_id[str(cell.train.norm_record)]
            assert recorder.id in cell.depends_on
            assert recorder.coordinates == {**cell.coordinates, "variant": "decay"}
            assert list(by_id).index(recorder.id) < list(by_id).index(cell.id)
        else:
            assert cell.train.norm_record is None


def test_a_recording_cell_that_the_grid_leaves_out_is_added(tmp_path: Path) -> None:
    text = VARIANTS + "grid: {variant: [corrected]}\n"
    added, corrected = cells_of(tmp_path, text)
    assert (added.coordinates["variant"], added.is_listed) == ("decay", False)
    assert corrected.depends_on == (added.id,)


@pytest.mark.parametrize(("text", "says"), [
    ("variants: {a: {train.norm_record: {from: {variant: b}}}, b: {train.norm_record: {from: {variant: a}}}}\n"
     "grid: {variant: [a, b]}\n", "goes in a circle"),
    ("variants: {a: {train.norm_record: {from: {variant: c}}}}\ngrid: {variant: [a]}\n", "no cell has variant 'c'"),
    ("train: {norm_record: some-id}\n", "expected {from: {axis: value}}"),
    ("train: {weight_decay_correction: lr}\n", "needs train.norm_record"),
    ("train: {weight_decay_correction: exponential}\n", "needs 0 < lr * weight_decay < 1"),
    ("train: {weight_decay_correction: exponential, optimizer: {weight_decay: 0.1}}\n", "decay_only_last: true, for"),
    ("train: {weight_decay_correction: exponential, optimizer: {momentum: 0.9}}\n", "sgd without momentum"),
    ("train: {weight_decay_correction: exponential, loss_scale: dynamic}\n", "train.loss_scale dynamic skips some"),
    ("variants: {a: {}, b: {train.weight_decay_correction: exponential, train.norm_record: {from: {variant: a}}}}\n"
     "grid: {variant: [a, b]}\n", "follows no record"),
    ("train: {optimizer: {name: adam, kahan: true}}\n", "kahan goes with sgd and adamw"),
    ("train: {optimizer: {nesterov: true}}\n", "nesterov needs sgd with a momentum"),
    ("train: {schedule: {name: step}}\n", "step needs milestones"),
    ("grid: {model.weight_norm_p: [1]}\n", "needs model.weight_norm"),
    ("grid: {model.stem: [imagenet]}\n", "has one form of stem"),
])  # fmt: skip
def test_fields_that_do_not_go_together_are_told_when_the_file_is_loaded(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ScenarioError, match=r"s\.yaml") as raised:
        loaded(tmp_path, text)
    assert says in str(raised.value)


def test_a_sweep_trains_nothing_and_has_no_reference(tmp_path: Path) -> None:
    text = "sweep: {exponents: [-12, 10], grid: {norm: [l2, l1], precision: [fp16]}}\n"
    cells = cells_of(tmp_path, text, "train.epochs=7")
    assert [cell.coordinates["norm"] for cell in cells] == ["l2", "l1"]
    for cell in cells:
        assert cell.sweep is not None and cell.sweep.exponents == (-12, 10) and cell.sweep.eps == 0
        assert not cell.is_reference and cell.depends_on == ()
    assert [cell.id for cell in cells] == [cell.id for cell in cells_of(tmp_path, text)], "epochs are of training only"
    both = cells_of(tmp_path, text + "grid: {norm: [l1]}\n")
    assert [cell.sweep is None for cell in both] == [True, False, False]
    assert [selects({"norm": "l1"}, cell) for cell in both] == [True, False, False]
    assert [selects({"norm": "l1"}, cell, swept=True) for cell in both] == [False, False, True]


def test_a_selector_takes_any_spelling_lists_and_references_by_name(tmp_path: Path) -> None:
    wide, half = cells_of(tmp_path, "grid: {precision: [fp16]}\n")
    assert selects({"precision": "FP16"}, half) and selects({}, half) and not selects({}, wide)
    assert selects({"precision": ["native", "fp16"]}, wide) and selects({"precision": "native"}, wide)
    assert not selects({"seed": False}, half) and selects({"seed": [3, 0]}, half)
    assert not selects({"norm": "l2"}, half), "no such axis in this grid"


def test_an_id_follows_what_is_run_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = cells_of(tmp_path, "")
    assert cells_of(tmp_path, "question: other\nexpect: []\n")[0].id == cell.id
    assert cells_of(tmp_path, "train: {optimizer: {lr: 0.10}}\n")[0].id == cell.id
    for change in ("train.epochs=2", "model.width=3", "dataset.size=4", "norm=l1", "seed=1", "train.optimizer.lr=0.2"):
        assert cells_of(tmp_path, "", change)[0].id != cell.id
    hashed = expand(loaded(tmp_path, ""))[0]
    assert len(hashed.data_sha256) == 64 and hashed.id != cell.id
    again = Cell.from_json(json.loads(json.dumps(cell.to_json())))
    assert again == cell and again.id == cell.id
    assert pickle.loads(pickle.dumps(cell)) == cell
    monkeypatch.setattr(cell_identity, "NUMERICS_VERSION", 10**6)
    assert Cell.from_json(cell.to_json()).id != cell.id


def test_ids_are_file_names(tmp_path: Path) -> None:
    text = "grid: {norm: [{'re:.*/x': l1, _default: l2}], precision: ['fp16:saturate/nearest/fp16:sequential+kahan']}\n"
    for cell in cells_of(tmp_path, text):
        assert set(cell.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") and len(cell.id) <= 71


@pytest.mark.parametrize("name", scenario_paths())
def test_every_cell_of_a_shipped_scenario_survives_json(name: str) -> None:
    for cell in expand(load_scenario(name), hash_data=False):
        assert Cell.from_json(json.loads(json.dumps(cell.to_json()))).id == cell.id
        assert str(Precision.parse(cell.numerics.precision)) == cell.numerics.precision


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=8), st.booleans(), st.none()))
def test_canonical_spelling_is_settled_after_one_step(value: object) -> None:
    for path in ("numerics.precision", "model.norm", "dataset.scale", "train.loss_scale"):
        once = canonical(path, value)
        assert canonical(path, once) == once


def test_variants_that_differ_in_their_numerics_alone_share_one_reference(tmp_path: Path) -> None:
    text = "variants: {a: {}, b: {numerics.rules: {fc: bf16}}, c: {train.optimizer.lr: 0.5}}\n"
    cells = cells_of(tmp_path, text + "grid: {variant: [a, b, c], precision: [fp16], seed: [0, 1]}\n")
    references = {cell.id: cell for cell in cells if cell.is_reference}
    assert [cell.coordinates["variant"] for cell in references.values()] == ["a", "a", "c", "c"]
    for cell in cells:
        if not cell.is_reference:
            found = references[str(cell.reference_id)]
            assert (found.train, found.model, found.dataset) == (cell.train, cell.model, cell.dataset)
            assert list(cells).index(found) < list(cells).index(cell)
    # What the grid lists stays where it lists it, however much it is like another.
    listed = cells_of(tmp_path, text + "grid: {variant: [a, b], precision: [native, fp16]}\n")
    assert [(cell.coordinates["variant"], cell.is_listed) for cell in listed if cell.is_reference] == [("a", True)]
