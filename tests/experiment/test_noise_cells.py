"""Cells whose norm layers are disturbed: fields, references, ids, threads, and what a file may not say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from normstab.errors import ScenarioError
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.reader import load_scenario
from normstab.experiment.scenario.spec import Cell, NormNoiseSpec
from normstab.experiment.training.train_cell import run_cell
from tests.experiment.cells import small_cell

HEAD = "version: 1\nname: small\ndataset: {name: synthetic}\nmodel: {name: mlp}\n"
UNIFORM = NormNoiseSpec("uniform", like="q6.3")


def cells_of(tmp_path: Path, text: str) -> list[Cell]:
    path = tmp_path / "s.yaml"
    path.write_text(HEAD + text)
    return expand(load_scenario(path), hash_data=False)


def test_a_cell_with_noise_has_the_undisturbed_network_as_its_reference(tmp_path: Path) -> None:
    text = "variants: {n: {model.norm_noise: {kind: uniform, like: q6.4, where: [statistics]}}}\ngrid: {variant: [n]}\n"
    reference, cell = cells_of(tmp_path, text)
    assert reference.is_reference and reference.model.norm_noise is None
    assert not cell.is_reference and cell.reference_id == reference.id and cell.depends_on == (reference.id,)
    assert cell.model.norm_noise == NormNoiseSpec("uniform", like="q6.4", where=("statistics",))
    assert replace(cell.model, norm_noise=None) == reference.model and cell.numerics == reference.numerics
    assert Cell.from_json(cell.to_json()) == cell


def test_rules_alone_make_a_cell_that_has_a_reference(tmp_path: Path) -> None:
    reference, cell = cells_of(tmp_path, "numerics: {rules: {norm1: q6.4}}\n")
    assert reference.is_reference and not reference.numerics.rules
    assert cell.numerics.rules and cell.reference_id == reference.id


def test_noise_and_parts_of_it_are_axes(tmp_path: Path) -> None:
    whole = "grid: {model.norm_noise: [null, {kind: uniform, like: q6.4}, {kind: multiplicative, sigma: 0.1}]}\n"
    coordinates = [cell.coordinates["model.norm_noise"] for cell in cells_of(tmp_path, whole)]
    names = ["uniform(like=q6.4, where=output)", "multiplicative(sigma=0.1, where=output)"]
    assert sorted(map(str, coordinates)) == sorted([*names, "None"])
    chosen = "expect: [{where: {model.norm_noise: {kind: uniform, like: q6.4, where: output}}, verdict: STABLE}]\n"
    assert len(cells_of(tmp_path, whole + chosen)) == 3
    part = "grid: {model.norm_noise.sigma: [0.1, 0.2]}\n"
    path = tmp_path / "part.yaml"
    path.write_text(HEAD.replace("{name: mlp}", "{name: mlp, norm_noise: {kind: uniform}}") + part)
    found = [cell.coordinates["model.norm_noise.sigma"] for cell in expand(load_scenario(path), hash_data=False)]
    assert found == [None, 0.1, 0.2]


def test_a_network_without_noise_keeps_its_id() -> None:
    assert "norm_noise" not in small_cell().to_json()["model"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{kind: uniform, like: fp17}", "fp17"),
        ("{kind: unifrom, sigma: 1}", "uniform"),
        ("{kind: uniform, sigma: -1}", "sigma"),
        ("{kind: uniform, where: [outputs], sigma: 1}", "output"),
        ("{kind: uniform, sgima: 1}", "sigma"),
        ("{kind: uniform}", "neither is given"),
        ("{kind: uniform, sigma: 1, like: fp16}", "both are given"),
    ],
)
def test_a_wrong_noise_is_told_when_the_file_is_loaded(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(HEAD.replace("{name: mlp}", f"{{name: mlp, norm_noise: {text}}}"))
    with pytest.raises(ScenarioError, match=says):
        load_scenario(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("numerics: {precision: fp16}\n", "round nothing"),
        ("sweep: {grid: {norm: [l1], precision: [fp16]}}\n", "undisturbed"),
    ],
)
def test_noise_does_not_go_with_layers_that_round_or_are_swept(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(HEAD.replace("{name: mlp}", "{name: mlp, norm_noise: {kind: uniform, sigma: 0.1}}") + text)
    with pytest.raises(ScenarioError, match=says):
        load_scenario(path)


def results(directory: Path) -> tuple[str | None, bytes]:
    from normstab.experiment.records.record_reader import read_record

    return read_record(directory).weights_sha256, (directory / "steps.jsonl").read_bytes()


def test_a_disturbed_cell_ends_with_the_same_bits_whatever_torchs_generator_holds(tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        run_cell(small_cell(model__norm_noise=UNIFORM), tmp_path / str(seed))
        found.append(results(tmp_path / str(seed)))
    assert found[0] == found[1]


def test_noise_changes_the_run_and_its_seed_changes_it_too(tmp_path: Path) -> None:
    found = []
    for name, cell in {"without": small_cell(), "noise": small_cell(model__norm_noise=UNIFORM)}.items():
        run_cell(cell, tmp_path / name)
        found.append(results(tmp_path / name))
    assert found[0] != found[1]
