"""Sweeps: where the scale of a norm layer breaks when its input is multiplied, on real activations."""

from pathlib import Path

import pytest

from normstab.experiment.records.cell_record import Record
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.scenario.spec import SweepSpec
from normstab.experiment.training.train_cell import run_cell
from tests.experiment.cells import small_cell


def swept(tmp_path: Path, precision: str, norm: str, **spec: object) -> Record:
    sweep = SweepSpec(exponents=(-12, 12), images=64, **spec)  # type: ignore[arg-type]
    cell = small_cell(precision, model__name="lenet", model__width=4, model__norm=norm, cell__sweep=sweep)
    return run_cell(cell, tmp_path / norm)


def accurate(record: Record, layer: str) -> list[int]:
    return [point.exponent for point in record.sweep[layer] if point.error <= 0.01]


def test_l1_stands_more_scales_than_l2_in_fp16(tmp_path: Path) -> None:
    records = {norm: swept(tmp_path, "fp16", norm) for norm in ("l1", "l2")}
    for layer in ("bn1", "bn2", "bn3"):
        l1, l2 = (accurate(records[norm], layer) for norm in ("l1", "l2"))
        assert set(l2) < set(l1)
        assert 0 in l2
    assert records["l2"].first["overflow"].site == "bn1.square[forward]"
    assert read_record(tmp_path / "l2") == records["l2"]


def test_wide_squares_repair_l2(tmp_path: Path) -> None:
    narrow, wide = (
        swept(tmp_path, precision, "l2") for precision in ("fp16", "fp16;square=fp32;variance=fp32;sum=fp32")
    )
    assert len(accurate(wide, "bn1")) > len(accurate(narrow, "bn1"))


@pytest.mark.parametrize("precision", ["native", "fp32"])
@pytest.mark.parametrize("norm", ["l2", "l1", "linf", "top10", "range", "lp3"])
def test_float32_stands_every_scale(norm: str, precision: str, tmp_path: Path) -> None:
    record = swept(tmp_path, precision, norm)
    for points in record.sweep.values():
        assert [point.exponent for point in points] == list(range(-12, 13))
        # A mean of n = 64 x 16 x 16 float32 terms in any order, with a square and a root around it.
        assert max(point.error for point in points) <= 64 * 256 * 2.0**-24
        assert not any(point.collapsed_channels for point in points)


def test_a_swept_cell_trains_nothing(tmp_path: Path) -> None:
    record = swept(tmp_path, "fp16", "l2")
    assert (record.status, record.steps, record.epochs, record.accuracy) == ("finished", 0, (), None)


def test_eps_enters_both_sides_of_the_comparison(tmp_path: Path) -> None:
    record = swept(tmp_path, "native", "l2", eps=1.0)
    assert max(point.error for point in record.sweep["bn1"]) < 1e-3
