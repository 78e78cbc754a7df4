"""A grid that gets an axis more finds the records of its cells: they are known by what is run, not by their names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from normstab.__main__ import main
from normstab.experiment.execution.executor import Execution, run_cells
from normstab.experiment.execution.progress import Outcome
from normstab.experiment.records.files import remove_path
from normstab.experiment.records.moved_records import copy_records, move_records
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.reader import scenario_of_text
from normstab.experiment.scenario.spec import Cell

NARROW = """\
version: 1
name: small
dataset: {name: synthetic, train: 48, test: 40}
model: {name: mlp, width: 8, norm: l2}
train: {batch: 16, epochs: 1}
grid: {precision: [fp16], seed: [0, 1]}
"""
WIDER = NARROW.replace("seed: [0, 1]}", "seed: [0, 1], train.batch: [16, 24]}")


def cells_of(text: str) -> list[Cell]:
    return expand(scenario_of_text(text, "small.yaml"))


def run(text: str, out: Path, **how: bool) -> Outcome:
    outcome = run_cells(cells_of(text), out, execution=Execution(**how))
    assert not outcome.failures
    return outcome


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("records/*/*.json*"))}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("narrow")
    run(NARROW, out)
    return out


@pytest.fixture
def copied(narrow: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(narrow, tmp_path / "copied"))


def test_a_grid_with_an_axis_more_trains_only_what_is_new_and_back_again_nothing(copied: Path, tmp_path: Path) -> None:
    before = contents(copied)
    outcome = run(WIDER, copied)
    assert len(outcome.reused) == 4 and len(outcome.finished) == 8
    run(WIDER, tmp_path / "from the start")
    assert contents(copied) == contents(tmp_path / "from the start")
    notes = json.loads((copied / "run.json").read_text())["runs"][-1]["notes"]
    assert sum("its record was found as" in note for note in notes) == 4
    assert len(run(NARROW, copied).reused) == 4
    assert {name: content for name, content in contents(copied).items() if name in before} == before


def test_a_kill_between_the_two_writes_loses_nothing(copied: Path) -> None:
    cell = next(cell for cell in cells_of(WIDER) if cell.train.batch == 16)
    records = copied / "records"
    old = next(place for place in records.iterdir() if place.name.endswith(cell.id[-10:]))
    old.rename(records / cell.id)
    assert move_records({cell.id: cell}, records, kept=[cell.id]) == {cell.id: old.name}
    assert json.loads((records / cell.id / "record.json").read_text())["id"] == cell.id


def test_neither_a_torn_record_nor_one_that_is_needed_where_it_is_moves(copied: Path) -> None:
    records = copied / "records"
    missing = {cell.id: cell for cell in cells_of(WIDER) if cell.train.batch == 16}
    assert move_records(missing, records, kept=[place.name for place in records.iterdir()]) == {}
    for log in records.glob("*/steps.jsonl"):
        log.write_bytes(log.read_bytes()[:-9])
    assert move_records(missing, records, kept=()) == {}


def test_a_fresh_run_trains_what_there_is_under_another_name(copied: Path) -> None:
    assert not run(WIDER, copied, fresh=True).reused


def test_a_folder_that_is_not_there_has_no_records(tmp_path: Path) -> None:
    (cell,) = (cell for cell in cells_of(NARROW) if cell.is_listed and cell.train.seed == 0)
    assert move_records({cell.id: cell}, tmp_path / "records", kept=()) == {}


NEIGHBOUR = NARROW.replace("name: small", "name: neighbour").replace("[fp16]", "[bf16]")


def test_scenarios_of_one_command_share_their_references(narrow: Path, tmp_path: Path) -> None:
    outcome = run_cells(cells_of(NEIGHBOUR), tmp_path / "beside", others=[tmp_path / "nothing", narrow])
    references = {cell.id for cell in cells_of(NEIGHBOUR) if cell.is_reference}
    assert set(outcome.reused) == references and len(outcome.finished) == 4 and not outcome.failures
    run(NEIGHBOUR, tmp_path / "alone")
    assert contents(tmp_path / "beside") == contents(tmp_path / "alone")
    assert len(contents(narrow)) == 8, "nothing is taken away"


@pytest.mark.parametrize("lost", ["", "probes", "steps.jsonl", "record.json"])
def test_a_reference_is_copied_where_it_is_whole(copied: Path, tmp_path: Path, lost: str) -> None:
    missing = {cell.id: cell for cell in cells_of(NEIGHBOUR)}
    for place in (copied / "records").iterdir():
        if lost:
            remove_path(place / lost)
    found = copy_records(missing, tmp_path / "records", others=[copied / "records"])
    references = {cell.id for cell in missing.values() if cell.is_reference}
    assert set(found) == (set() if lost else references)


def test_the_command_shares_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in {"small": NARROW, "neighbour": NEIGHBOUR}.items():
        (tmp_path / f"{name}.yaml").write_text(text.replace("seed: [0, 1]", "seed: [0]"))
    run_both = ["run", str(tmp_path / "small.yaml"), str(tmp_path / "neighbour.yaml"), "--out", str(tmp_path / "out")]
    assert main(run_both) == 0
    assert capsys.readouterr().err.count("reused, its record is there") == 1
