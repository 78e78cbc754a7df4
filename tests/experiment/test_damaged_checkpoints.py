"""A damaged checkpoint, or one whose step log is damaged, costs time and nothing else."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from normstab.experiment.records.checkpoints import HASH_BYTES, Checkpoints
from normstab.experiment.records.machine import environment
from normstab.experiment.training.train_cell import run_cell
from tests.experiment.cells import small_cell
from tests.experiment.test_resume_at_every_checkpoint import Keeper, files, short

CELL = short(small_cell("fp16"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished cell, and a copy of its files after its third checkpoint."""
    directory = tmp_path_factory.mktemp("whole") / "cell"
    with pytest.MonkeyPatch.context() as patch:
        keeper = Keeper(directory, directory.parent / "copies", patch)
        run_cell(CELL, directory, checkpoint_s=0.0)
    return directory, keeper.copies[2]


def rewritten(change: Callable[[dict], object]) -> Callable[[Path], object]:  # type: ignore[type-arg]
    """Return what changes the content of a checkpoint and writes it with a right hash, as another version might."""

    def damage(directory: Path) -> None:
        path = directory / "checkpoint.pt"
        found = torch.load(io.BytesIO(path.read_bytes()[HASH_BYTES:]), weights_only=True)
        change(found["state"])
        again = Checkpoints(directory, "", environment("cpu", 1))
        again.key = found["key"]
        again.write(found["state"])

    return damage


def rekeyed(changes: dict[str, str]) -> Callable[[Path], object]:
    """Return what writes a checkpoint as another machine, or another normstab, would have."""

    def damage(directory: Path) -> None:
        found = torch.load(io.BytesIO((directory / "checkpoint.pt").read_bytes()[HASH_BYTES:]), weights_only=True)
        again = Checkpoints(directory, "", environment("cpu", 1))
        again.key = {**found["key"], **changes}
        again.write(found["state"])

    return damage


def on_file(change: Callable[[bytes], bytes], name: str = "checkpoint.pt") -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(change((directory / name).read_bytes()))


def replaced(make: Callable[[Path], object], name: str = "checkpoint.pt") -> Callable[[Path], object]:
    return lambda directory: ((directory / name).unlink(), make(directory / name))


DAMAGE = {
    "empty": on_file(lambda content: b""),
    "torn": on_file(lambda content: content[:-100]),
    "one bit": on_file(lambda content: content[:3000] + bytes([content[3000] ^ 1]) + content[3001:]),
    "a bit of a weight": on_file(lambda content: content[:-2000] + bytes([content[-2000] ^ 1]) + content[-1999:]),
    "text": on_file(lambda content: b"not a checkpoint"),
    "a folder": replaced(lambda path: (path.mkdir(), (path / "x").touch())),
    "a dangling link": replaced(lambda path: path.symlink_to("nowhere")),
    "a pipe": replaced(os.mkfifo),
    "without the model": rewritten(lambda state: state.pop("model")),
    "another model": rewritten(lambda state: state.update(model={"x": torch.zeros(1)})),
    "another optimizer": rewritten(lambda state: state.update(optimizer={})),
    "another history": rewritten(lambda state: state.update(history="{}")),
    "no history": rewritten(lambda state: state.update(history="torn")),
    "of other code": rekeyed({"normstab": "0123456789abcdef"}),
    "no log": lambda directory: (directory / "steps.jsonl").unlink(),
    "a shorter log": on_file(lambda content: content[: len(content) // 2], "steps.jsonl"),
    "another log": on_file(lambda content: content.replace(b"0", b"1"), "steps.jsonl"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_starts_the_cell_again_and_says_so(
    how: str, whole: tuple[Path, Path], tmp_path: Path
) -> None:
    finished, kept = whole
    directory = tmp_path / "cell"
    shutil.copytree(kept, directory)
    DAMAGE[how](directory)
    notes: list[str | None] = []
    run_cell(CELL, directory, report=lambda progress: notes.append(progress.note))
    assert "started again from the beginning" in str(notes[0])
    assert files(directory) == files(finished)
    assert not os.path.lexists(directory / "checkpoint.pt")


def test_what_is_written_is_never_written_through_a_link(whole: tuple[Path, Path], tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell/steps.jsonl").symlink_to(victim)
    with pytest.raises(ValueError, match=r"steps\.jsonl: cannot write"):
        run_cell(CELL, tmp_path / "cell")
    assert victim.read_text() == "precious"
