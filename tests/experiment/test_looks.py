"""Looking at the device once in several steps: nobody waits between, and the record is that of a look in every step."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.experiment.execution.progress import Progress
from normstab.experiment.records.cell_record import Nonfinite, Record
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.records.step_log import read_steps
from normstab.experiment.scenario.spec import Cell, DatasetSpec, ModelSpec
from normstab.experiment.training.steps.looks import LOOK_EVERY, Looks, steps_between_looks
from normstab.experiment.training.steps.training_session import Session
from normstab.experiment.training.train_cell import run_cell
from tests.experiment.cells import small_cell
from tests.experiment.test_resume_at_every_checkpoint import CELLS as RESUMED
from tests.experiment.test_train import Killed, killer

DYNAMIC = {"train__loss_scale": "dynamic", "train__loss_scale_interval": 3}
UNPROBED = {"train__probe_every": 0}
TOKENS = {
    "cell__dataset": DatasetSpec("cmudict-sample", train=64, test=8),
    "cell__model": ModelSpec("transformer", width=16),
}
# What a look may find: nothing, a loss, a logit or a parameter that broke, a scale that is too large, a clipped norm.
CELLS = {
    **RESUMED,
    "unprobed": small_cell("fp16", **UNPROBED),
    "adamw, stochastic": small_cell("bf16/stochastic", optimizer__name="adamw", **UNPROBED),
    "half without masters": small_cell("half", **UNPROBED, **DYNAMIC),
    "amp": small_cell("amp-fp16", **UNPROBED, **DYNAMIC),
    "delayed scales": small_cell("fp8-delayed", **UNPROBED),
    "skips many": small_cell("fp16", dataset__scale=64.0, **UNPROBED, **DYNAMIC),
    "skips in every cycle": small_cell("e4m3fn/stochastic", optimizer__name="adamw", **UNPROBED, **DYNAMIC),
    "the loss breaks": small_cell(optimizer__lr=1e30, **UNPROBED),
    "it breaks later": small_cell("fp16", optimizer__lr=100.0, model__norm="none", **UNPROBED),
    "what comes in breaks": small_cell("fp16", dataset__scale=2.0**15, model__norm="none", **UNPROBED),
    "a parameter breaks": small_cell(optimizer__weight_decay=1e10, **UNPROBED),
    "parameters of half break": small_cell("half", optimizer__lr=3e4, model__norm="none", **UNPROBED),
    "a norm beyond float32": small_cell(dataset__scale=1e25, model__norm="none", train__clip=1.0, **UNPROBED),
    "growing rate": small_cell(train__weight_decay_correction="exponential", **UNPROBED),
}


def run(cell: Cell, directory: Path, every: int, **options: Any) -> Record:
    return run_cell(cell, directory, look_every=every, **options)


def texts(directory: Path) -> dict[str, str]:
    """The files of a run, without the statement of how often it looked."""
    stated = f', "look_every": {read_record(directory).environment.look_every}'
    return {name: (directory / name).read_text().replace(stated, "") for name in ("record.json", "steps.jsonl")}


@pytest.mark.parametrize("name", CELLS)
def test_a_run_that_looks_every_seventh_step_has_the_record_of_one_that_always_looks(name: str, tmp_path: Path) -> None:
    record = run(CELLS[name], tmp_path / "1", 1)
    seventh = run(CELLS[name], tmp_path / "7", 7)
    assert seventh.environment.look_every == 7
    assert replace(seventh, environment=record.environment).steps == record.steps
    assert texts(tmp_path / "7") == texts(tmp_path / "1")


def test_the_cells_break_and_skip_in_the_middle_of_what_is_not_looked_at(tmp_path: Path) -> None:
    broken = {name: run(CELLS[name], tmp_path / name, 7).nonfinite for name in CELLS if "break" in name}
    assert {found.what for found in broken.values() if found is not None} == {"loss", "parameter"}
    assert None not in broken.values()
    assert broken["a parameter breaks"] == Nonfinite(2, "parameter", None)  # looked at together with step 1
    run(CELLS["skips many"], tmp_path / "skips", 7)
    scales = [step.loss_scale or 0.0 for step in read_steps(tmp_path / "skips")]
    assert any(after < before for before, after in itertools.pairwise(scales[2:]))


@pytest.mark.parametrize("step", range(8))
@pytest.mark.parametrize("precision", ["native", "fp16/stochastic"])
def test_a_logit_that_breaks_is_named_with_its_step(
    precision: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Session._gradients

    def broken(session: Session, *given: Any) -> tuple[Tensor, Tensor, float]:
        loss, logits, factor = own(session, *given)
        with session.simulated.paused():
            logits = torch.where(torch.tensor(session.history.step == step), torch.inf, logits.detach())
        return loss, logits, factor

    monkeypatch.setattr(Session, "_gradients", broken)
    for every in (1, 7):
        record = run(small_cell(precision, **UNPROBED), tmp_path / str(every), every)
        assert record.nonfinite is not None
        assert (record.nonfinite.step, record.nonfinite.what, record.steps) == (step, "logit", step + 1)
    assert texts(tmp_path / "7") == texts(tmp_path / "1")


@pytest.mark.parametrize("every", [2, 3, 5, 100])
@pytest.mark.parametrize("name", ["unprobed", "it breaks later", "skips in every cycle"])
def test_any_distance_of_looks_gives_the_same_record(name: str, every: int, tmp_path: Path) -> None:
    run(CELLS[name], tmp_path / "1", 1)
    run(CELLS[name], tmp_path / "k", every)
    assert texts(tmp_path / "k") == texts(tmp_path / "1")


@pytest.mark.parametrize("name", ["stochastic, scaled", "states stored", "delayed scales"])
def test_a_killed_run_that_looks_seldom_ends_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    run(CELLS[name], tmp_path / "whole", 7)
    with pytest.raises(Killed):
        run(CELLS[name], tmp_path / "killed", 7, report=killer(5), checkpoint_s=0.0)
    run(CELLS[name], tmp_path / "killed", 7)
    assert texts(tmp_path / "killed") == texts(tmp_path / "whole")


# Methods of a tensor that wait for a device. What torch's own optimizers ask of the step counts, which they keep on the
# host, is left out; so is whatever runs within a look.
WAITING = ("cpu", "item", "tolist", "nonzero", "equal", "unique", "masked_select", "numpy")
WAITING += ("__bool__", "__float__", "__int__", "__index__", "__array__")
OF_HOST = ("torch/optim/", "normstab/experiment/data/")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[tuple[str, str]]]:
    """By method of Session within which somebody waited, and by who did: how often."""
    found: Counter[tuple[str, str]] = Counter()
    within: list[str] = []

    def entered(name: str) -> Callable[..., Any]:
        own = getattr(Session, name)

        def method(*given: Any, **named: Any) -> Any:
            within.append(name)
            try:
                return own(*given, **named)
            finally:
                within.pop()

        return method

    def seen(name: str) -> Callable[..., Any]:
        own = getattr(torch.Tensor, name)

        def method(*given: Any, **named: Any) -> Any:
            caller = sys._getframe(1).f_code
            if within and not any(part in caller.co_filename for part in OF_HOST):
                found[within[-1], f"{Path(caller.co_filename).name}:{caller.co_name}:{name}"] += 1
            return own(*given, **named)

        return method

    for name in ("_step_unread", "_step_read", "look"):
        monkeypatch.setattr(Session, name, entered(name))
    for name in WAITING:
        monkeypatch.setattr(torch.Tensor, name, seen(name))
    yield found


QUIET = {
    "sgd": small_cell(**UNPROBED),
    "adam": small_cell(optimizer__name="adam", **UNPROBED),
    "adamw": small_cell(optimizer__name="adamw", **UNPROBED),
    "kahan": small_cell(optimizer__kahan=True, **UNPROBED),
    "static scale": small_cell(train__loss_scale=1024.0, **UNPROBED),
    "dynamic scale": small_cell(**UNPROBED, **DYNAMIC),
    "clipped, augmented": small_cell(train__clip=1.0, dataset__augment=("crop", "flip"), **UNPROBED),
    "growing rate": CELLS["growing rate"],
    "tokens": small_cell(**UNPROBED, **TOKENS),
}


@pytest.mark.parametrize("name", QUIET)
def test_nobody_waits_between_two_looks_and_each_look_waits_once(
    name: str, tmp_path: Path, waits: Counter[tuple[str, str]]
) -> None:
    run(QUIET[name], tmp_path, 7)
    unread = {who: n for (within, who), n in waits.items() if within == "_step_unread"}
    assert unread == {}
    # One at once, then looks after 2, 4 and 7 steps, and at the end of each epoch.
    steps, per_epoch = read_record(tmp_path).steps, read_record(tmp_path).steps_per_epoch
    looks = {who: n for (within, who), n in waits.items() if within == "look"}
    assert list(looks) == ["looks.py:read:tolist"]
    assert looks["looks.py:read:tolist"] == expected_looks(steps, per_epoch, 7)


def expected_looks(steps: int, per_epoch: int, every: int) -> int:
    """Count them by hand: spans double, an epoch's end cuts one short."""
    count, span, waiting = 0, 2, 0
    for step in range(1, steps):
        waiting += 1
        if waiting == span or (step + 1) % per_epoch == 0:
            count, span, waiting = count + 1, min(2 * span, every), 0
    return count


def test_the_hook_sees_the_waits_of_a_run_that_always_looks(tmp_path: Path, waits: Counter[tuple[str, str]]) -> None:
    run(QUIET["dynamic scale"], tmp_path, 1)
    steps = read_record(tmp_path).steps
    of_session = sum(n for (within, who), n in waits.items() if within == "_step_read" and "session" in who)
    of_scale = sum(n for (_, who), n in waits.items() if who.startswith("loss_scale.py"))
    assert (of_session, of_scale) == (4 * steps, steps)


def test_a_device_is_looked_at_every_twentieth_step_and_a_cpu_in_every_step() -> None:
    assert (steps_between_looks("cuda"), steps_between_looks("cuda:1"), steps_between_looks("cpu")) == (20, 20, 1)
    assert LOOK_EVERY == 20
    assert steps_between_looks("cuda", 3) == 3
    with pytest.raises(NormstabError, match="look_every is a number of steps >= 1; found 0"):
        steps_between_looks("cpu", 0)


def test_looks_come_seldom_only_while_they_find_nothing() -> None:
    looks, spans = Looks(every=7), []
    for finds in (False, False, False, True, False):
        looks.found_something() if finds else looks.found_nothing()
        spans.append(looks.span)
    assert spans == [2, 4, 7, 1, 2]


def test_progress_is_told_in_every_step_and_the_loss_of_the_last_look(tmp_path: Path) -> None:
    told: list[Progress] = []
    run(QUIET["sgd"], tmp_path, 7, report=told.append)
    steps = [progress.step for progress in told if progress.epoch == 0][: len(told)]
    assert steps[:7] == list(range(1, 8))
    losses = {step.step: step.loss for step in read_steps(tmp_path)}
    assert [progress.loss for progress in told[:5]] == [losses[i] for i in (0, 0, 2, 2, 2)]
