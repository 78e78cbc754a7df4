"""A model that is not of the catalogue: its code is a part of the cell, and is read without running it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from normstab.assess.assessment import assess
from normstab.experiment.network import model_code
from normstab.experiment.network.model_code import code_sha256
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.reader import load_scenario, read_scenario
from normstab.experiment.scenario.spec import Cell
from normstab.experiment.training.train_cell import run_cell
from normstab.study import keep_scenario
from tests.assess.synthetic import make_run
from tests.experiment.cells import small_cell

SOURCE = """\
from torch import nn

def build(channels, side, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes))
"""
SCENARIO = """\
version: 1
name: own
dataset: {name: synthetic, size: 8, train: 64, test: 32}
model: {name: "own_nets:build"}
grid: {precision: [fp16]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_nets.py").write_text(SOURCE)
    (tmp_path / "own.yaml").write_text(SCENARIO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the working directory is added to it
    return tmp_path


def ids(folder: Path) -> list[str]:
    return [cell.id for cell in expand(load_scenario(folder / "own.yaml", allow_import=True))]


def test_an_edited_factory_makes_other_cells_and_the_old_source_the_old_ones(folder: Path) -> None:
    before = ids(folder)
    (folder / "own_nets.py").write_text(SOURCE + "# edited\n")
    assert not set(ids(folder)) & set(before)
    (folder / "own_nets.py").write_text(SOURCE)
    assert ids(folder) == before


def test_of_a_package_every_module_counts_and_none_is_imported(folder: Path) -> None:
    package = folder / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "nets.py").write_text(SOURCE)
    (package / "blocks.py").write_text("")
    before = code_sha256("own_package.nets:build")
    (package / "blocks.py").write_text("width = 2")
    assert len({before, code_sha256("own_package.nets:build"), ""}) == 3


def test_the_version_of_a_library_counts_where_the_model_comes_from_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("timm:resnet18", "own_nets:build", "uses_timm:build", "resnet18")
    (folder / "uses_timm.py").write_text("import timm\n" + SOURCE)
    monkeypatch.setattr(model_code.metadata, "version", lambda library: "1.0")
    before = [code_sha256(name) for name in names]
    monkeypatch.setattr(model_code.metadata, "version", lambda library: "2.0")
    changed = [a != code_sha256(name) for a, name in zip(before, names, strict=True)]
    assert changed == [True, False, True, False]


def test_a_model_of_the_catalogue_has_no_code_hash_and_its_records_no_field_for_it() -> None:
    cell = small_cell()
    assert code_sha256("resnet18") == "" == cell.code_sha256
    assert "code_sha256" not in cell.to_json()
    other = replace(cell, code_sha256="1" * 64)
    assert other.id != cell.id and Cell.from_json(other.to_json()) == other


def test_a_report_that_someone_else_made_reads_the_source_and_runs_none_of_it(folder: Path) -> None:
    keep_scenario(load_scenario(folder / "own.yaml", allow_import=True), folder / "out")
    (folder / "own_nets.py").write_text("raise SystemExit('imported')")
    assert len(expand(read_scenario(folder / "out" / "scenario.json"))) == 2
    (folder / "own_nets.py").unlink()
    assert {cell.code_sha256 for cell in expand(read_scenario(folder / "out" / "scenario.json"))} == {""}


def test_code_that_changed_since_the_run_began_is_refused(folder: Path) -> None:
    cell = expand(load_scenario(folder / "own.yaml", allow_import=True))[0]
    (folder / "own_nets.py").write_text(SOURCE + "# edited\n")
    with pytest.raises(ValueError, match="its code has changed since the run began"):
        run_cell(cell, folder / "cell")


def test_records_of_older_code_are_told_in_the_report(folder: Path) -> None:
    scenario = load_scenario(folder / "own.yaml", allow_import=True)
    old = [make_run(cell) for cell in expand(scenario)]
    assert assess(old, scenario, expected=expand(scenario)).warnings == ()
    (folder / "own_nets.py").write_text(SOURCE + "# edited\n")
    (warning,) = assess(old, scenario, expected=expand(scenario)).warnings
    assert "made with other code of the model than is here now" in warning
