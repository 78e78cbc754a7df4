"""A training that is forked from another: the same arithmetic gives the same bits, another one goes on from there."""

import json
from dataclasses import replace

import pytest

from normstab.errors import RecordError
from normstab.experiment.execution.executor import run_cells
from normstab.experiment.records.files import SNAPSHOT_FILE
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.records.step_log import read_steps
from normstab.experiment.scenario.spec import Cell, ForkSpec
from normstab.experiment.training.train_cell import run_cell
from tests.experiment.cells import small_cell

STEPS_PER_EPOCH = 7
CELLS = {
    "plain torch": small_cell(),
    "stochastic, dynamic scale": small_cell("fp16/stochastic", train__loss_scale="dynamic"),
    "parameters stored": small_cell("bf16/stochastic;parameter=bf16", numerics__master_weights=False),
}


def stopped(cell: Cell, stop: int) -> Cell:
    return replace(cell, fork=ForkSpec(stop=stop, leaves_snapshot=True))


def forked(cell: Cell, origin: Cell, stop: int | None = None) -> Cell:
    return replace(cell, fork=ForkSpec(of=origin.id, stop=stop), depends_on=(*cell.depends_on, origin.id))


def as_recorded(directory) -> dict:
    plain = json.loads((directory / "record.json").read_text())
    return {name: value for name, value in plain.items() if name not in ("id", "cell")}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("stop", [3, STEPS_PER_EPOCH, 10])
def test_a_fork_with_nothing_changed_ends_with_the_bytes_of_the_whole_run(name, stop, tmp_path) -> None:
    cell = CELLS[name]
    origin = stopped(cell, stop)
    fork = forked(cell, origin)
    run_cell(cell, tmp_path / cell.id)
    for each in (origin, fork):
        run_cell(each, tmp_path / each.id)
    assert as_recorded(tmp_path / fork.id) == as_recorded(tmp_path / cell.id)
    assert (tmp_path / fork.id / "steps.jsonl").read_bytes() == (tmp_path / cell.id / "steps.jsonl").read_bytes()
    assert read_record(tmp_path / origin.id).steps == stop
    assert not (tmp_path / fork.id / SNAPSHOT_FILE).exists()


def test_another_arithmetic_goes_on_from_the_steps_before_and_ends_where_it_is_to_stop(tmp_path) -> None:
    narrow, wide = small_cell("e5m2"), small_cell("fp32")
    origin = stopped(narrow, 4)
    fork = forked(wide, origin, stop=9)
    outcome = run_cells([fork, origin], tmp_path)
    assert outcome.finished == (origin.id, fork.id) and not outcome.failures
    before, after = (read_steps(tmp_path / "records" / each.id) for each in (origin, fork))
    assert len(after) == 9 and after[:4] == before
    run_cell(narrow, tmp_path / "records" / narrow.id)
    narrow_steps = read_steps(tmp_path / "records" / narrow.id)
    assert narrow_steps[:4] == before and narrow_steps[4:9] != after[4:]
    assert run_cells([fork, origin], tmp_path).reused == (fork.id, origin.id)


def test_a_fork_is_another_cell_and_a_cell_without_one_keeps_its_id() -> None:
    cell = small_cell("fp16")
    assert cell.id == "fp16-" + cell.id.rpartition("-")[2]
    assert len({cell.id, stopped(cell, 3).id, stopped(cell, 4).id, forked(cell, stopped(cell, 3)).id}) == 4
    assert "fork" not in cell.to_json()
    assert Cell.from_json(stopped(cell, 3).to_json()) == stopped(cell, 3)


def test_a_snapshot_that_is_lost_is_made_again_and_a_damaged_one_is_told(tmp_path) -> None:
    origin = stopped(small_cell("fp16"), 4)
    fork = forked(small_cell("fp32"), origin)
    run_cells([origin], tmp_path)
    snapshot = tmp_path / "records" / origin.id / SNAPSHOT_FILE
    kept = snapshot.read_bytes()
    snapshot.unlink()
    assert origin.id not in run_cells([origin], tmp_path).reused
    assert snapshot.exists()
    snapshot.write_bytes(kept[:-1])
    with pytest.raises(RecordError, match=r"snapshot.pt: does not read: its bytes are not those"):
        run_cell(fork, tmp_path / "records" / fork.id)
