"""A cell resumed at any of its checkpoints ends with the bytes of one that was never interrupted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from normstab.experiment.records.checkpoints import Checkpoints
from normstab.experiment.scenario.spec import Cell, NormNoiseSpec
from normstab.experiment.training.train_cell import batches, run_cell
from tests.experiment.cells import small_cell

IMAGES, STEPS = 56, 8
DYNAMIC = {"train__loss_scale": "dynamic", "train__loss_scale_interval": 3}
NOISE = NormNoiseSpec("multiplicative", like="q6.4", where=("output", "statistics", "gradient"))
CELLS = {
    "plain torch": small_cell(dataset__augment=("crop", "flip")),
    "exponents of plain torch": small_cell(numerics__histogram=True, **DYNAMIC),
    "stochastic, scaled": small_cell("fp16/stochastic", dataset__scale=64.0, train__clip=1.0, **DYNAMIC),
    "stochastic, convolutions": small_cell("bf16/stochastic", model__name="lenet", model__width=2, train__epochs=1),
    "parameters stored": small_cell("q3.8/stochastic", numerics__master_weights=False),
    "states stored": small_cell(
        "bf16/stochastic;optimizer=bf16", numerics__master_weights=False, optimizer__kahan=True
    ),
    "everything rounded": small_cell("e8m5/stochastic", numerics__round_optimizer=True, optimizer__name="adamw"),
    "noise": small_cell(model__norm="l1", model__norm_noise=NOISE),
    "noise beside rounding": small_cell(
        "fp16/stochastic", model__norm_noise=NOISE, numerics__rules={"re:bn.*": "native"}, train__epochs=1
    ),
    "weight norm": small_cell("fp16", model__weight_norm="bwn", model__norm="l1", numerics__expand=True),
}


def files(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in ("record.json", "steps.jsonl")}


class Keeper:
    """Keeps a copy of the files of a cell after each of its checkpoints."""

    def __init__(self, directory: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copies: list[Path] = []
        write = Checkpoints.write

        def keep(checkpoints: Checkpoints, state: dict[str, Any]) -> None:
            write(checkpoints, state)
            self.copies.append(copies / f"{len(self.copies)}" / directory.name)
            shutil.copytree(directory, self.copies[-1])

        monkeypatch.setattr(Checkpoints, "write", keep)


def test_the_short_cells_have_a_checkpoint_inside_each_epoch_and_between_them() -> None:
    assert 2 * len(batches(IMAGES, 16)) == STEPS


def resumed_everywhere(cell: Cell, directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of the checkpoints from which the cell ends otherwise than without interruption."""
    with monkeypatch.context() as patch:
        keeper = Keeper(directory, directory.parent / "copies", patch)
        run_cell(cell, directory, checkpoint_s=0.0)
    assert len(keeper.copies) == STEPS * cell.train.epochs // 2
    wrong = []
    for number, copy in enumerate(keeper.copies):
        for other in directory.parent.iterdir():
            if other not in (directory, directory.parent / "copies"):
                shutil.copytree(other, copy.parent / other.name)
        notes: list[str | None] = []
        run_cell(cell, copy, report=lambda progress, notes=notes: notes.append(progress.note))
        assert "resumed after step" in str(notes[0])
        if files(copy) != files(directory):
            wrong.append(number)
    return wrong


def short(cell: Cell) -> Cell:
    return replace(cell, dataset=replace(cell.dataset, train=IMAGES))


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_resumed_at_any_checkpoint_ends_with_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resumed_everywhere(short(CELLS[name]), tmp_path / "cell", monkeypatch) == []


def test_a_cell_that_follows_its_reference_and_a_recording_resumes_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = replace(short(small_cell()), is_reference=True)
    run_cell(reference, tmp_path / reference.id)
    follower = short(
        small_cell(
            "bf16/stochastic",
            train__weight_decay_correction="lr",
            train__norm_record=reference.id,
            optimizer__weight_decay=0.0,
            cell__reference_id=reference.id,
        )
    )
    assert resumed_everywhere(follower, tmp_path / follower.id, monkeypatch) == []
