"""Records: what is written is read back, whole or not at all, and damage is named."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from normstab.errors import RecordError
from normstab.experiment.records.cell_record import (
    DataFacts,
    Environment,
    EpochRecord,
    Nonfinite,
    NormLayerRecord,
    Offence,
    Predictions,
    Probe,
    Record,
    write_record,
)
from normstab.experiment.records.files import remove_unfinished, write_atomically
from normstab.experiment.records.record_reader import read_record, read_records
from normstab.experiment.records.step_log import Step, StepLog, read_steps
from normstab.experiment.scenario.spec import Cell
from normstab.numerics.ledger import Histogram, Tally
from tests.experiment.cells import small_cell

REPORTS = Path(__file__).parents[2] / "reports"
TALLY = Tally(count=7, overflow=2, largest=70000.0, smallest=2.0**-30, histogram=Histogram({-3: 5, 16: 2}, zero=1))
RECORD = Record(
    id="l2-fp16-0123456789",
    cell={
        **small_cell("fp16").to_json(),
        "scenario": "s",
        "coordinates": {"norm": "l2", "seed": 0},
        "is_reference": False,
        "reference_id": "l2-native-1",
    },
    numerics_version=1,
    data=DataFacts("fashion-mnist-sample", "ab", 6000, 2000, 10),
    environment=Environment("cpu", 1, "AVX2", "2.13.0"),
    status="nonfinite",
    steps=12,
    steps_per_epoch=94,
    nonfinite=Nonfinite(12, "loss", "stem.square[forward]"),
    epochs=(
        EpochRecord(0.5, math.nan, math.inf, 10, 3, 1024.0, {"conv1": (1.5, -0.1)}, {"stem.square[forward]": TALLY}),
    ),
    first={"overflow": Offence("stem.square[forward]", 0)},
    first_steps={"stem.square[forward]": {"overflow": 0}},
    predictions=Predictions.of(np.array([0, 9, 4]), np.array([0, 9, 3])),
    probes=(Probe(20, 0.01, 0.99),),
    norm_layers={"bn1": NormLayerRecord("l2", 16384, 16, 2, 0.5, math.inf, 1e-5)},
    unrecognised={"aten.lstm": 3},
    notes=("static loss scale",),
)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    found = read_record(tmp_path)
    assert math.isnan(found.epochs[0].test_loss)
    settled = replace(RECORD, epochs=(replace(RECORD.epochs[0], test_loss=0.0),))
    assert replace(found, epochs=(replace(found.epochs[0], test_loss=0.0),)) == settled


def test_equal_records_have_equal_bytes(tmp_path: Path) -> None:
    write_record(tmp_path / "a", RECORD)
    write_record(tmp_path / "b", read_record(tmp_path / "a"))
    assert (tmp_path / "a/record.json").read_bytes() == (tmp_path / "b/record.json").read_bytes()


def test_numbers_that_are_not_finite_are_strings_in_the_file(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    epoch = json.loads((tmp_path / "record.json").read_text())["epochs"][0]
    assert (epoch["test_loss"], epoch["train_loss"]) == ("nan", "inf")


def test_a_tally_is_written_without_its_zeros(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    site = json.loads((tmp_path / "record.json").read_text())["epochs"][0]["sites"]["stem.square[forward]"]
    assert set(site) == {"count", "overflow", "largest", "smallest", "histogram"}


def test_predictions_keep_each_image() -> None:
    assert RECORD.predictions.correct.tolist() == [True, True, False]
    assert RECORD.predictions.predicted_array.tolist() == [0, 9, 3]


def test_a_record_answers_for_its_cell() -> None:
    assert RECORD.coordinates["norm"] == "l2"
    assert (RECORD.is_reference, RECORD.reference_id, RECORD.accuracy) == (False, "l2-native-1", 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ('{"version": 1, "id": "x"', "not JSON"),
        ("[]", "not a record"),
        ('{"version": 99}', "record version 99"),
        ('{"version": 1, "id": "x"}', "cell"),
    ],
)
def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(RecordError, match=message) as caught:
        read_record(tmp_path)
    assert str(tmp_path / "record.json") in str(caught.value)


def test_damaged_predictions_are_found_on_reading(tmp_path: Path) -> None:
    write_record(tmp_path, replace(RECORD, predictions=Predictions("AAA=", "AAAA")))
    with pytest.raises(RecordError, match="predictions"):
        read_record(tmp_path)


def test_one_damaged_record_does_not_hide_the_others(tmp_path: Path) -> None:
    write_record(tmp_path / "records" / RECORD.id, RECORD)
    (tmp_path / "records/b").mkdir()
    (tmp_path / "records/b/record.json").write_text("{")
    records, problems = read_records(tmp_path)
    assert [record.id for record in records] == [RECORD.id]
    assert len(problems) == 1


def test_a_failed_write_keeps_the_record_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(tmp_path, RECORD)
    before = (tmp_path / "record.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RecordError, match="No space left on device"):
        write_record(tmp_path, replace(RECORD, steps=13))
    assert (tmp_path / "record.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_torn_last_line_is_dropped_and_cut_off_on_resuming(tmp_path: Path) -> None:
    steps = [Step(i, 2.0 - i, math.inf, 0.1, 1024.0 if i else None) for i in range(3)]
    with StepLog(tmp_path) as log:
        for step in steps:
            log.append(step)
    whole = (tmp_path / "steps.jsonl").read_bytes()
    (tmp_path / "steps.jsonl").write_bytes(whole[:-5])
    assert read_steps(tmp_path) == tuple(steps[:2])
    with StepLog(tmp_path, keep=2) as log:
        log.append(steps[2])
    assert (tmp_path / "steps.jsonl").read_bytes() == whole


def test_a_fresh_log_forgets_the_old_steps(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        with StepLog(tmp_path) as log:
            log.append(Step(0, loss, 0.0, 0.1))
    assert [step.loss for step in read_steps(tmp_path)] == [2.0]


def test_a_log_shorter_than_its_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="5 steps were logged"):
        StepLog(tmp_path, keep=5)


@pytest.mark.parametrize("line", ["nonsense", '{"loss": 1.0}', '{"step": 0, "loss": 1, "unknown": 2}'])
def test_a_damaged_step_names_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "steps.jsonl").write_text(line + "\n")
    with pytest.raises(RecordError, match=r"steps\.jsonl:1: not a step"):
        read_steps(tmp_path)


def test_reading_records_needs_no_torch() -> None:
    import subprocess
    import sys

    records = "normstab.experiment.records"
    code = f"import sys, {records}.cell_record, {records}.step_log; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", sorted(REPORTS.glob("*/records/*/record.json")), ids=lambda path: path.parent.name)
def test_a_committed_record_still_has_its_id(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads(path.read_text())
    monkeypatch.setattr("normstab.experiment.scenario.cell_identity.NUMERICS_VERSION", record["numerics_version"])
    assert Cell.from_json(record["cell"]).id == path.parent.name


def test_what_writes_that_were_killed_left_is_removed_and_nothing_else(tmp_path):
    cell = tmp_path / "records" / "cell"
    left = [tmp_path / ".run.json.abcd_123", cell / ".record.json.x1y2z3w4", cell / "probes" / ".3.npz.aaaaaaaa"]
    kept = [
        tmp_path / ".lock",
        tmp_path / ".gitignore",
        cell / "record.json",
        cell / ".notes",
        tmp_path / "a.json.aaaaaaaa",
    ]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    remove_unfinished(tmp_path)
    assert [path.exists() for path in (*left, *kept)] == [False] * len(left) + [True] * len(kept)


def test_the_name_of_an_unfinished_write_is_one_that_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: None)  # as if killed here: the file stays under its first name
    monkeypatch.setattr("os.unlink", lambda *_: None)
    write_atomically(tmp_path / "run.json", "{}")
    monkeypatch.undo()
    (unfinished,) = tmp_path.iterdir()
    assert unfinished.name != "run.json"
    remove_unfinished(tmp_path)
    assert not unfinished.exists()
