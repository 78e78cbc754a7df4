"""Training a cell: what is recorded, that it is the same again, and that a killed run ends like any other."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from normstab.errors import NormstabError
from normstab.experiment.execution.progress import Progress
from normstab.experiment.records.cell_record import Record
from normstab.experiment.records.machine import environment
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.records.step_log import read_steps
from normstab.experiment.scenario.spec import Cell, ScheduleSpec
from normstab.experiment.training.train_cell import batches, run_cell
from tests.experiment.cells import small_cell

STEPS = 14


class Killed(BaseException):
    """What stands in for `kill -9` at a chosen step."""


def killer(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return report


def files(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in ("record.json", "steps.jsonl")}


CELLS = {
    "native": small_cell(),
    "stochastic": small_cell("bf16/stochastic", model__norm="l1", dataset__augment=("crop", "flip")),
}


@pytest.mark.parametrize("name", ["native", "stochastic"])
def test_the_same_cell_gives_the_same_files_again(name: str, tmp_path: Path) -> None:
    for again in ("a", "b"):
        torch.rand(3)
        run_cell(CELLS[name], tmp_path / again)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_the_record_says_what_happened(tmp_path: Path) -> None:
    cell = small_cell("fp16")
    record = run_cell(cell, tmp_path)
    assert read_record(tmp_path) == record
    assert (record.id, record.status, record.steps, record.steps_per_epoch) == (cell.id, "finished", STEPS, 7)
    assert Cell.from_json(record.cell).id == cell.id
    assert (record.data.name, record.data.train, record.data.test, record.data.classes) == ("synthetic", 104, 40, 10)
    assert record.environment == environment("cpu", 1)
    assert record.accuracy == record.predictions.correct.mean()
    steps = read_steps(tmp_path)
    assert [step.step for step in steps] == list(range(STEPS))
    assert record.epochs[0].train_loss == pytest.approx(
        np.average([step.loss for step in steps[:7]], weights=[16] * 6 + [8]), rel=1e-12
    )
    assert all(step.gradient_norm > 0 and step.lr == 0.05 for step in steps)
    assert record.epochs[0].sites["bn1.square[forward]"].count > 0
    assert list(record.epochs[1].weight_norms) == ["fc1", "fc2", "fc3"]
    assert record.norm_layers["bn1"].n == 16
    assert record.first["subnormal"].step == 0
    assert record.unrecognised == {}


def test_the_environment_is_left_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.get_rng_state()
    run_cell(small_cell("fp16"), tmp_path, threads=2 if before[0] == 1 else 1)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_checkpoint_of_other_threads_is_not_resumed_and_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run_cell(small_cell(), tmp_path, report=killer(9), checkpoint_s=0.0)
    notes: list[str | None] = []
    run_cell(small_cell(), tmp_path, threads=2, report=lambda progress: notes.append(progress.note))
    assert any(note and "threads was 1, is 2" in note for note in notes)
    assert read_record(tmp_path).environment.threads == 2


@pytest.mark.parametrize("content", [b"", b"torn", b"PK\x03\x04"])
def test_a_damaged_checkpoint_starts_the_cell_again(tmp_path: Path, content: bytes) -> None:
    run_cell(small_cell(), tmp_path / "whole")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/checkpoint.pt").write_bytes(content)
    notes: list[str | None] = []
    run_cell(small_cell(), tmp_path / "torn", report=lambda progress: notes.append(progress.note))
    assert any(note and "does not read" in note for note in notes)
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


def test_a_number_that_is_not_finite_ends_the_run_as_a_result(tmp_path: Path) -> None:
    record = run_cell(small_cell(optimizer__lr=1e30), tmp_path)
    assert record.status == "nonfinite"
    assert record.nonfinite is not None
    assert record.steps == record.nonfinite.step + 1 < STEPS
    assert len(read_steps(tmp_path)) == record.steps
    assert len(record.epochs) == 1


def test_a_failure_names_the_site_that_overflowed_first(tmp_path: Path) -> None:
    record = run_cell(small_cell("fp16", dataset__scale=2.0**15, model__norm="none"), tmp_path)
    assert record.nonfinite is not None
    assert record.nonfinite.site == record.first["overflow"].site


def test_an_overflowing_square_collapses_l2_with_a_finite_loss_and_not_l1(tmp_path: Path) -> None:
    cells = {norm: small_cell("fp16", dataset__scale=512.0, model__norm=norm, train__epochs=6) for norm in ("l2", "l1")}
    records = {norm: run_cell(cell, tmp_path / norm) for norm, cell in cells.items()}
    assert all(record.status == "finished" for record in records.values())
    assert records["l2"].first["overflow"].site == "bn1.square[forward]"
    assert records["l2"].norm_layers["bn1"].collapsed_channels == 16
    assert records["l1"].norm_layers["bn1"].collapsed_channels == 0
    assert records["l2"].accuracy is not None
    assert records["l1"].accuracy is not None
    assert records["l2"].accuracy + 0.5 < records["l1"].accuracy


def test_a_native_cell_finds_itself_at_its_reference(tmp_path: Path) -> None:
    reference = small_cell(cell__is_reference=True)
    run_cell(reference, tmp_path / reference.id)
    twin = small_cell(cell__reference_id=reference.id)
    record = run_cell(twin, tmp_path / "twin")
    assert [probe.step for probe in record.probes] == [0, 3, 6, 9, 12]
    assert all(probe.weight_distance == 0 for probe in record.probes)
    # A cosine of a vector with itself, in float64 sums of some thousand terms.
    assert all(probe.gradient_cosine == pytest.approx(1, abs=1e-12) for probe in record.probes)
    other = run_cell(small_cell("e4m3fn", cell__reference_id=reference.id), tmp_path / "other")
    assert other.probes[0].weight_distance == 0
    assert other.probes[-1].weight_distance > 1e-3
    assert other.probes[0].gradient_cosine < 0.9999


@pytest.mark.parametrize(
    ("precision", "tells"), [("fp16", True), ("bf16/stochastic", True), ("fp16;matmul=fp32:blocked8", False)]
)
def test_steps_that_are_probed_tell_what_additions_lose_and_change_nothing_else(
    precision: str, tells: bool, tmp_path: Path
) -> None:
    lost, others = [], []
    for every in (0, 7, 3):
        record = run_cell(small_cell(precision, train__probe_every=every), tmp_path / str(every))
        tallies = [tally for epoch in record.epochs for tally in epoch.sites.values()]
        lost.append(sum(tally.absorbed + tally.cancelled for tally in tallies))
        kept = [replace(tally, absorbed=0, cancelled=0) for tally in tallies]
        others.append((record.weights_sha256, kept, record.first, record.first_steps))
    assert others[0] == others[1] == others[2]
    assert lost[0] == 0
    assert (lost[2] > lost[1] > 0) if tells else lost == [0, 0, 0]  # probed are steps 0, 7 and 0, 3, 6, 9, 12


def final_weights(record: Record) -> object:
    return record.weights_sha256, record.predictions, record.epochs[-1].test_loss


@pytest.mark.parametrize("precision", ["native", "fp16"])
@pytest.mark.parametrize("scale", [1024.0, "dynamic"])
def test_a_loss_scale_changes_no_bit_where_nothing_underflows(
    precision: str, scale: float | str, tmp_path: Path
) -> None:
    # fp16 values under an fp16 gradient would underflow without a scale: gradients are kept in fp32 here.
    spec = precision if precision == "native" else "fp16;gradient=fp32"
    plain = run_cell(small_cell(spec, optimizer__weight_decay=0.0), tmp_path / "plain")
    scaled = run_cell(small_cell(spec, optimizer__weight_decay=0.0, train__loss_scale=scale), tmp_path / "scaled")
    assert final_weights(plain) == final_weights(scaled)
    lost = replace(read_steps(tmp_path / "scaled")[0], loss_scale=None)
    assert lost == read_steps(tmp_path / "plain")[0]


def test_a_loss_times_2_to_the_minus_k_at_a_rate_times_2_to_the_k_is_the_same_run(tmp_path: Path) -> None:
    plain = run_cell(small_cell(optimizer__weight_decay=0.0), tmp_path / "plain")
    small = small_cell(optimizer__weight_decay=0.0, train__loss_multiplier=2.0**-20, train__lr_multiplier=2.0**20)
    assert final_weights(run_cell(small, tmp_path / "small")) == final_weights(plain)


def test_a_dynamic_scale_backs_off_and_skips_the_step(tmp_path: Path) -> None:
    record = run_cell(small_cell("fp16", dataset__scale=64.0, train__loss_scale="dynamic"), tmp_path)
    steps = read_steps(tmp_path)
    assert steps[0].loss_scale == 2.0**16
    assert record.status == "finished"
    scales = [step.loss_scale or 0.0 for step in steps]
    halved = [after == before / 2 for before, after in itertools.pairwise(scales)]
    skipped = [not np.isfinite(step.gradient_norm) for step in steps[:-1]]
    assert halved == skipped
    assert any(skipped)


def test_coarse_parameters_lose_updates_under_nearest_and_not_under_stochastic_rounding(tmp_path: Path) -> None:
    shares = {}
    for rounding in ("nearest", "stochastic"):
        cell = small_cell(
            f"fp32/{rounding};parameter=q3.6", numerics__master_weights=False, optimizer__lr=0.02, train__probe_every=1
        )
        record = run_cell(cell, tmp_path / rounding)
        shares[rounding] = sum(e.updates_zero for e in record.epochs) / sum(e.updates for e in record.epochs)
    assert shares["nearest"] > 0.99
    assert shares["stochastic"] < 0.95


@pytest.mark.parametrize("correction", ["lr", "norm-schedule"])
def test_a_run_without_decay_follows_the_norms_of_one_with_it(correction: str, tmp_path: Path) -> None:
    decayed = small_cell(optimizer__weight_decay=0.05)
    recorded = run_cell(decayed, tmp_path / decayed.id)
    changes = {"optimizer__weight_decay": 0.05, "optimizer__decay_only_last": True}
    off = run_cell(small_cell(**changes), tmp_path / "off")
    cell = small_cell(**changes, train__weight_decay_correction=correction, train__norm_record=decayed.id)
    followed = run_cell(cell, tmp_path / "followed")
    assert final_weights(followed) != final_weights(off)
    norms = [record.epochs[-1].weight_norms["fc1"] for record in (followed, recorded)]
    if correction == "norm-schedule":
        # Renormalised after every step, each element rounded once to float32.
        assert norms[0] == pytest.approx(norms[1], rel=2.0**-24)
    else:
        assert norms[0] != norms[1]


def test_a_correction_without_its_record_is_the_users_error(tmp_path: Path) -> None:
    cell = small_cell(train__weight_decay_correction="lr", train__norm_record="absent")
    with pytest.raises(NormstabError, match="absent"):
        run_cell(cell, tmp_path / "x")


@pytest.mark.parametrize("precision", ["fp16", "q3.8", "native"])
def test_channel_norms_are_measured_in_float64_outside_the_arithmetic(precision: str, tmp_path: Path) -> None:
    still = {"optimizer__lr": 0.0, "optimizer__weight_decay": 0.0, "train__epochs": 1}
    native = run_cell(small_cell(**still), tmp_path / "native")
    cell = small_cell(precision, **still, numerics__histogram=True)
    record = run_cell(cell, tmp_path / "emulated")
    # Master weights do not move at rate 0, so the norms are those of the native cell to the last bit.
    assert record.epochs[-1].weight_norms == native.epochs[-1].weight_norms
    assert not any("norm" in site for site in record.epochs[-1].sites if site.startswith("(outside)"))


def test_bounded_weight_norm_keeps_every_channel_at_rho(tmp_path: Path) -> None:
    for p in (1, 2, "inf"):
        cell = small_cell(model__weight_norm="bwn", model__weight_norm_p=p, model__norm="mean-only")
        record = run_cell(cell, tmp_path / str(p))
        norms = np.array(record.epochs[-1].weight_norms["fc1"])
        # Within (h/2 + 5) u rho for p = 2, (h + 4) u rho for p = 1; native sums of 768 terms in any order.
        assert "fc1" in record.rho
        assert np.abs(norms / record.rho["fc1"] - 1.0).max() <= (768 + 5) * 2.0**-24


@pytest.mark.parametrize("schedule", ["step", "cosine", "one-cycle"])
def test_the_logged_rate_is_the_schedules(schedule: str, tmp_path: Path) -> None:
    cell = small_cell(train__schedule=ScheduleSpec(schedule, milestones=(1,)))
    run_cell(cell, tmp_path)
    rates = [step.lr for step in read_steps(tmp_path)]
    assert len(set(rates)) > 1
    assert max(rates) <= 0.05


def test_clipping_bounds_the_update_and_logs_the_norm_before(tmp_path: Path) -> None:
    free, clipped = (run_cell(small_cell(train__clip=clip), tmp_path / str(clip)) for clip in (None, 1e-3))
    assert read_steps(tmp_path / "None")[0] == read_steps(tmp_path / "0.001")[0]
    assert final_weights(free) != final_weights(clipped)


def test_the_last_batch_of_one_image_is_left_out() -> None:
    assert batches(33, 16) == [(0, 16), (16, 32)]
    assert batches(34, 16) == [(0, 16), (16, 32), (32, 34)]
    assert batches(1, 16) == [(0, 1)]


def test_no_time_and_no_host_is_in_the_record(tmp_path: Path) -> None:
    run_cell(small_cell(), tmp_path)
    assert set(json.loads((tmp_path / "record.json").read_text())["environment"]) == {
        "device",
        "threads",
        "cpu_capability",
        "torch",
    }
