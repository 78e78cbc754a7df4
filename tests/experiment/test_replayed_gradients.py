"""A run whose steps are replayed as CUDA graphs has the record of one whose steps are not; or it says why none is.

There is no GPU here: what records a step is a stand-in for `run.capture`. One below that, where torch's graphs are
asked for, is in test_replayed_runs.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.experiment.records.cell_record import Record
from normstab.experiment.scenario.spec import Cell
from normstab.experiment.training.steps import replayed_gradients
from normstab.experiment.training.steps.replayed_gradients import REPLAYED
from normstab.experiment.training.train_cell import run_cell
from normstab.simulation.run import Run
from tests.experiment.cells import small_cell
from tests.experiment.test_looks import CELLS, DYNAMIC, UNPROBED

Step = Callable[..., tuple[Tensor, Tensor]]
SAID = "training steps were not replayed as CUDA graphs: "


class StandIn:
    """A step that is as if recorded: it is taken, and counted as a replay."""

    def __init__(self, step: Step, after: Callable[[StandIn], None] = lambda stand_in: None) -> None:
        self.step, self.after, self.replays, self.is_captured = step, after, 0, True

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        found = self.step(*tensors)
        self.replays += 1
        self.after(self)
        return found


@contextmanager
def capturing(capture: Callable[[Run, Step], Any]) -> Iterator[None]:
    """Have runs on the CPU record their steps by `capture`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replayed_gradients, "LATER", {"cpu": "as if"})
        patch.setattr(Run, "capture", lambda run, step, *, warm_up: capture(run, step))
        yield


def both(cell: Cell, folder: Path, capture: Callable[[Run, Step], Any], every: int = 7) -> tuple[Record, list[str]]:
    """Run a cell as ever, and by `capture`: what is to be alike is, but for what the latter says, which is returned."""
    wanted = run_cell(cell, folder / "as ever", look_every=every)
    with capturing(capture):
        found = run_cell(cell, folder / "replayed", look_every=every)
    texts = [[json.loads((folder / name / "record.json").read_text()) for name in ("as ever", "replayed")]]
    texts += [[(folder / name / "steps.jsonl").read_text() for name in ("as ever", "replayed")]]
    said = [note for note in found.notes if note not in wanted.notes]
    texts[0][1]["notes"] = texts[0][0]["notes"]
    assert all(one == other for one, other in texts)
    return found, said


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.nightly), 7])
@pytest.mark.parametrize("name", CELLS)
def test_a_run_of_replays_has_the_record_of_one_without(name: str, every: int, tmp_path: Path) -> None:
    made: list[StandIn] = []

    def capture(run: Run, step: Step) -> StandIn:
        made.append(StandIn(step))
        return made[-1]

    record, said = both(CELLS[name], tmp_path, capture, every)
    replays = sum(each.replays for each in made)
    # Two replays are the proof's, of every graph.
    assert (said == [REPLAYED]) == any(each.replays >= 2 for each in made)
    assert not replays or CELLS[name].numerics.precision != "native"
    if name == "unprobed":
        assert (record.steps, replays) == (14, 2 + 8)  # steps 4 and 5, and 7 to 12; the last of an epoch is shorter


def test_each_loss_scale_has_a_graph_of_its_own_and_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replayed_gradients, "MOST_GRAPHS", 2)
    made: list[weakref.ref[StandIn]] = []
    replays = [0]

    def capture(run: Run, step: Step) -> StandIn:
        stand_in = StandIn(step, lambda each: replays.append(each.replays))
        assert sum(each() is not None for each in made) <= 2
        made.append(weakref.ref(stand_in))
        return stand_in

    cell = small_cell("fp16", train__epochs=6, **UNPROBED, **DYNAMIC | {"train__loss_scale_interval": 6})
    both(cell, tmp_path, capture)
    assert len(made) == 3 and replays.count(3) >= 2  # replayed beyond its proof


@pytest.mark.parametrize("first", [1, 2])
def test_a_replay_with_another_bit_is_found_and_none_is_kept(first: int, tmp_path: Path) -> None:
    def capture(run: Run, step: Step) -> StandIn:
        def after(stand_in: StandIn) -> None:
            gradients = [held.tensor.grad for held in run.updated if held.tensor.grad is not None]
            if stand_in.replays >= first:
                gradients[-1].view(torch.int32).view(-1)[0] ^= 1

        return StandIn(step, after)

    _, said = both(small_cell("fp16", **UNPROBED), tmp_path, capture)
    assert said == [f"{SAID}a replayed step had other bits"]


def test_a_replay_that_counts_otherwise_is_found(tmp_path: Path) -> None:
    def capture(run: Run, step: Step) -> StandIn:
        return StandIn(step, lambda stand_in: run.unrecognised.update(["aten.strange"]))

    _, said = both(small_cell("fp16", **UNPROBED), tmp_path, capture)
    assert said == [f"{SAID}a replayed step had other counts"]


def test_what_cannot_be_captured_is_said_with_its_reason(tmp_path: Path) -> None:
    def refusing(run: Run, step: Step) -> StandIn:
        raise NormstabError("a step cannot be captured: it is Monday")

    def failing(run: Run, step: Step) -> StandIn:
        def raising(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            step(*tensors)
            raise RuntimeError("operation not permitted when stream is capturing\nand much more")

        return StandIn(raising)

    cell = small_cell("bf16/stochastic", **UNPROBED)
    assert both(cell, tmp_path / "1", refusing)[1] == [f"{SAID}a step cannot be captured: it is Monday"]
    assert both(cell, tmp_path / "2", failing)[1] == [f"{SAID}operation not permitted when stream is capturing"]


def test_a_device_without_room_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replayed_gradients, "has_room", lambda device: False)
    _, said = both(small_cell("fp16", **UNPROBED), tmp_path, lambda run, step: pytest.fail("captured"))
    assert said == [f"{SAID}the device has too little memory left for what one keeps"]


def test_a_step_that_is_never_as_it_was_recorded_is_given_up(tmp_path: Path) -> None:
    def after(stand_in: StandIn) -> None:
        stand_in.replays = 0

    _, said = both(small_cell("fp16", train__epochs=3, **UNPROBED), tmp_path, lambda run, step: StandIn(step, after))
    assert said == [f"{SAID}what a step finds in place changes from one to the next"]


def test_a_cpu_records_nothing_and_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "capture", lambda *given, **named: pytest.fail("captured"))
    record = run_cell(small_cell("fp16", **UNPROBED), tmp_path, look_every=7)
    assert not any("CUDA" in note for note in record.notes)
