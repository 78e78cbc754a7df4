"""The table of a device: its rows are those to reach, its bits are compared, its budget is kept.

No time is asserted. The same checks on the kernels of CUDA are `test_device_bits`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import normstab as ns
from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import device_rows, device_runs, device_table
from tests.benchmarks.device_rows import TINY, Made, Row, UnavailableError
from tests.benchmarks.device_table import SECTIONS, Budget, Table, Timer, differing, verdicts

SCENARIO = """\
version: 1
name: tiny
dataset: {name: synthetic, size: 4, train: 8, test: 4}
model: {name: mlp, width: 2}
train: {epochs: 1, batch: 4, optimizer: {lr: 0.1}}
grid: {precision: [fp16]}
"""


def lines(text: str) -> list[list[str]]:
    """The cells of the rows of every table in a Markdown text."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in row] for row in rows]


def test_every_ratio_of_the_issue_has_a_row_with_its_floor_and_aim() -> None:
    rows = [row for section in SECTIONS.values() for row in section(device_rows.Sizes())]
    reach = {(row.section, name): ratios for row in rows for name, ratios in row.to_reach.items()}
    assert reach == {
        ("cast to fp16", "nearest"): ("1.3", "1.1"),
        ("cast to fp16", "stochastic:16"): ("1.4", "1.1"),
        ("cast to fp16", "nearest, ledger"): ("1.7", "1.25"),
        ("add in fp16", "add, ledger"): ("1.8", "1.3"),
        ("mul in fp16", "mul, ledger"): ("1.8", "1.3"),
        **{("scaled formats", f"{n}, ledger"): ("4", "2") for n in ("mxfp8", "e4m3fn@row", "nvfp4", "int8@row")},
        ("batch norm, both passes", "l2, fp16, ledger"): ("8", "4"),
        ("batch norm, both passes", "l1, fp16, ledger"): ("8", "4"),
        ("batch norm, both passes", "linf, fp16, ledger"): ("8", "4"),
        ("batch norm, both passes", "native l1"): ("1.4", "1.1"),
        ("batch norm, both passes", "native linf"): ("1.4", "1.1"),
        ("sums of rows in fp16", "lanes64"): ("10", "4"),
        ("sums of rows in fp16", "sequential"): ("30", "10"),
        ("sums of rows in fp16", "exact"): ("", ""),
        ("product in fp16", "matmul blocked64"): ("30", "10"),
        ("product in fp16", "matmul exact"): ("", ""),
        ("ResNet-18 step, eager", "simulate fp16"): ("6", "3"),
        ("ResNet-18 step, captured", "simulate fp16, captured"): ("3", "1.5"),
    }
    single = {row.name: (row.floor, row.aim) for row in device_runs.once(Path("quickstart.yaml"))}
    assert single["normstab run quickstart"] == ("60 s", "20 s")
    assert single["first use: cast"] == ("5 s", "2 s")
    sizes = {row.size for row in rows if row.section == "batch norm, both passes"}
    assert sizes == {"64x64x32x32", "64x256x56x56"}
    assert {row.size for row in rows if row.is_launch_bound} == {"10,000", "1,000,000"}


def test_the_table_of_a_cpu_has_a_time_for_each_work_and_equal_bits(capsys: pytest.CaptureFixture[str]) -> None:
    code = benchmarks.main(["--device", "cpu", "--tiny", "casts", "operations", "scaled", "norms", "sums"])
    text = capsys.readouterr().out
    assert code == 0 and "bits: equal in all 22 works compared" in text
    compared = [row for row in lines(text) if row[-1] == "equal"]
    assert len(compared) == 2 * 3 + 2 * 2 + 4 + 3 + 3 + 2  # casts and operations at a large and at a launch-bound size
    assert "| torch x.half().float() | 2,048 |" in text and "launch-bound" in text


@pytest.mark.parametrize("name", ["nearest", "nearest, ledger", "stochastic:16"])
def test_a_kernel_that_differs_in_a_bit_or_a_count_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (row, _) = device_rows.casts(TINY)
    made = row.make("cpu")
    assert verdicts(made, "cpu")[name] == "equal"
    own = ns.cast

    def wrong(x: torch.Tensor, *given: object, **named: object) -> torch.Tensor:
        found = own(x, *given, **named)  # type: ignore[arg-type]
        if device_rows.dispatch.kernels_for(x) is not None:  # the readable code stays right
            found.view(torch.int32)[3] ^= 1 << 13
        return found

    monkeypatch.setattr(ns, "cast", wrong)
    assert verdicts(made, "cpu")[name].startswith("DIFFER: 1 of ")


def test_bits_are_compared_and_not_only_values() -> None:
    x = torch.tensor([0.0, torch.nan, 1.0, torch.inf])
    assert differing(x, x.clone()) == 0
    assert differing(x, torch.tensor([-0.0, torch.nan, 1.0, -torch.inf])) == 2
    assert differing(x, torch.tensor([0.0, 1.0, torch.nan, torch.inf])) == 2


def test_a_row_that_fails_is_told_and_the_others_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    closed = []

    def made(device: str, fails: bool) -> Made:
        works = {"yardstick": lambda: None, "work": (lambda: 1 / 0) if fails else (lambda: None)}
        return Made(works, {}, lambda: closed.append(fails))

    table = Table(Timer("cpu"), Budget(None))
    table.row(Row("a", "1", lambda d: made(d, True), {"work": ("2", "1")}), 2)
    table.row(Row("a", "2", lambda d: made(d, False), {"work": ("2", "1")}), 1)
    text = capsys.readouterr().out
    assert "| work | 1 | left out: FAILED: ZeroDivisionError: division by zero |  | 2 | 1 |  |" in text
    assert [row[1] for row in lines(text) if row[0] == "work"][1:] == ["1", "2"]
    assert closed == [True, False] and not table.is_right


def test_without_time_every_row_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.main(["--device", "cpu", "--tiny", "--budget", "0"]) == 0
    text = capsys.readouterr().out
    assert "bits: nothing was compared" in text
    rows = [row for row in lines(text) if row[0] != "work"]
    # Casts and operations at two sizes, scaled formats, norms, sums, products, two steps; four first uses and a run.
    assert len(rows) == 2 * (3 + 2) + 4 + 5 + 3 + 2 + 2 + 4 + 1
    assert all("left out: no time was left" in row for row in rows)


def test_a_budget_is_shared_among_the_rows_that_are_left() -> None:
    now = [100.0]
    budget = Budget(60.0, lambda: now[0])
    assert budget.until(6) == 110.0
    now[0] = 150.0
    assert (budget.until(1), budget.left) == (160.0, 10.0)
    now[0] = 170.0
    assert budget.until(3) == 170.0 and budget.left < 0
    assert Budget(None).until(3) == float("inf")


def test_turns_end_where_the_time_is_up_but_not_before_the_third() -> None:
    calls = {"a": 0, "b": 0}

    def work(name: str) -> None:
        calls[name] += 1

    works = {name: lambda name=name: work(name) for name in calls}
    taken = Timer("cpu").seconds(works, until=0.0)
    assert calls == {"a": 4, "b": 4} and {len(seconds) for seconds in taken.values()} == {3}
    assert len(Timer("cpu").seconds(works, until=float("inf"))["a"]) == device_table.MOST_TURNS


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_device_that_is_not_there_is_refused_with_what_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        benchmarks.main(["--device", "cuda", "--budget", "60"])
    assert refused.value.code == 2
    assert "torch sees no CUDA device; --device cpu prints the same table" in capsys.readouterr().err


def test_an_unknown_section_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks.main(["--device", "cpu", "norm"])
    said = capsys.readouterr().err
    assert "unknown section norm (there are: casts, operations, scaled, norms, sums, steps, once)" in said


def test_a_step_is_simulated_beside_a_plain_one_that_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    eager, captured = device_runs.steps(TINY)
    with pytest.raises(UnavailableError, match="a CPU captures nothing"):
        captured.make("cpu")
    made = eager.make("cpu")
    try:
        ledger = made.works["simulate fp16"].__closure__[0].cell_contents.run.ledger  # type: ignore[union-attr]
        made.works["plain step"]()
        assert ledger.total().count == 0
        made.works["simulate fp16"]()
        assert ledger.total().count > 0
    finally:
        made.close()
    assert verdicts(made, "cpu") == {"simulate fp16": "equal"}


@pytest.mark.nightly
def test_first_uses_and_a_scenarios_run_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(SCENARIO)
    code = benchmarks.main(["--device", "cpu", "--tiny", "once", "--scenario", str(tmp_path / "tiny.yaml")])
    rows = [row for row in lines(capsys.readouterr().out) if row[0] != "work"]
    assert code == 0 and [row[0] for row in rows][-1] == "normstab run tiny"
    assert len(rows) == 5 and not any("left out" in row[1] for row in rows)


def test_a_process_that_fails_or_takes_too_long_says_so() -> None:
    with pytest.raises(UnavailableError, match="exit code 3: no such thing"):
        device_runs._done([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"], 60.0)
    with pytest.raises(UnavailableError, match="not done in the 1 s that were left"):
        device_runs._done([sys.executable, "-c", "import time; time.sleep(60)"], 1.0)
