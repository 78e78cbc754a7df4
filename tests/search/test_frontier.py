"""The smallest format that trains: the staircase equals the exhaustive map, on made-up oracles and on a network."""

import json
import random

import pytest
import torch
from torch import nn

import normstab as ns
from normstab.__main__ import main
from normstab.assess.verdicts import Verdict
from normstab.experiment.execution.progress import Outcome
from normstab.experiment.records.cell_record import Nonfinite, write_record
from normstab.experiment.records.step_log import StepLog
from normstab.numerics.bounds import accumulator_bits, variance_retention
from normstab.numerics.ledger import Tally
from normstab.numerics.precision import Precision
from normstab.report.frontier_report import frontier_text
from normstab.search import trials
from normstab.search.format_map import Grid, find_frontier, in_format
from normstab.search.staircase import walk
from tests.assess.synthetic import make_run

XS, YS = range(2, 10), range(1, 11)


def random_staircase(seed):
    """Return for each x the least y that holds, never rising with x; 11 is none."""
    drawn = random.Random(seed)
    return dict(zip(XS, sorted((drawn.randint(1, 11) for _ in XS), reverse=True), strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_the_staircase_is_the_exhaustive_map(seed):
    least = random_staircase(seed)
    asked = []

    def holds(x, y):
        asked.append((x, y))
        return y >= least[x]

    found = walk(XS, YS, holds)
    assert {(x, y): found.holds(x, y) for x in XS for y in YS} == {(x, y): y >= least[x] for x in XS for y in YS}
    minimal = [
        (x, y) for x in XS for y in YS
        if y >= least[x] and (y == 1 or y - 1 < least[x]) and (x == 2 or y < least[x - 1])
    ]  # fmt: skip
    assert list(found.corners) == minimal
    assert len(asked) == len(set(asked)) <= len(XS) + len(YS) + len(found.corners)
    assert found.violations == ()


def test_a_wider_cell_that_fails_is_reported():
    found = walk(XS, YS, lambda x, y: y >= 4 and x == 5)
    assert ((5, 4), (6, 4)) in found.violations


def judged(holds):
    def judge(place, seeds):
        is_good = holds(place, tuple(seeds))
        return (Verdict.STABLE if is_good else Verdict.NONFINITE), f"e{place[0]}m{place[1]}", None

    return judge


def test_corners_are_judged_again_on_seeds_that_no_question_has_seen():
    found = find_frontier(
        judged(lambda place, seeds: place >= (5, 3) and (place, seeds) != ((5, 3), (2, 3))), Grid(), [0, 1]
    )
    assert found.staircase.corners[0] == (5, 1) or (5, 3) in found.staircase.corners
    assert found.fresh_seeds == (2, 3)
    assert set(found.again) == set(found.staircase.corners)
    unstable = find_frontier(
        judged(lambda place, seeds: place[0] >= 5 and place[1] >= 3 and seeds == (0, 1)), Grid(), [0, 1]
    )
    assert unstable.staircase.corners == ((5, 3),)
    assert unstable.confirmed == ()


def test_what_the_seeds_do_not_decide_is_not_called_a_failure_without_a_word():
    def judge(place, seeds):
        return (Verdict.INCONCLUSIVE if place[0] >= 5 else Verdict.NONFINITE), "spans the tolerance", None

    said = frontier_text(find_frontier(judge, Grid(fresh_seeds=0), [0]))
    assert said.startswith("No format of the grid is known to train")
    assert "The seeds do not decide e5m10, e6m10, e7m10, e8m10" in said and "--allow INCONCLUSIVE" in said
    failing = frontier_text(find_frontier(judged(lambda place, seeds: False), Grid(fresh_seeds=0), [0]))
    assert failing.startswith("No format of the grid trains") and "do not decide" not in failing


def trained_loss(precision, *, targets, lr, steps):
    """Return the loss in float32 of a network of 41 parameters that was trained in a precision."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator)
    y = targets * torch.tanh(x @ torch.randn(3, 1, generator=generator))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    with ns.simulate(net, precision):
        for _ in range(steps):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
    with torch.no_grad():
        return float((net(x) - y).square().mean())


def test_the_staircase_of_a_small_network_is_its_exhaustive_map():
    grid = Grid(exponents=range(3, 7), significands=range(3, 9), fresh_seeds=0)  # not e3m2, which has no infinity
    exhaustive = {
        (e, m): trained_loss(f"e{e}m{m}", targets=24.0, lr=0.02, steps=25) < 30.0
        for e in grid.exponents
        for m in grid.significands
    }
    found = find_frontier(judged(lambda place, seeds: exhaustive[place]), grid, [0])
    assert {place: found.staircase.holds(*place) for place in exhaustive} == exhaustive
    assert 0 < sum(exhaustive.values()) < len(exhaustive)
    assert len(found.staircase.asked) < len(exhaustive)


@pytest.mark.nightly  # eighty trainings
def test_the_staircase_is_the_exhaustive_map_of_an_8_by_10_grid():
    """Parameters live in the format: with few bits their updates vanish; with a small range the targets overflow."""
    exhaustive = {
        (e, m): trained_loss(f"e{e}m{m};master=off", targets=768.0, lr=0.0005, steps=60) < 120_000  # fp64: 106,000
        for e in XS
        for m in YS
    }
    grid = Grid(exponents=XS, significands=YS, fresh_seeds=0)
    found = find_frontier(judged(lambda place, seeds: exhaustive[place]), grid, [0])
    assert {place: found.staircase.holds(*place) for place in exhaustive} == exhaustive
    assert found.staircase.corners == ((5, 4),) and len(exhaustive) == 80
    assert len(found.staircase.asked) <= len(XS) + len(YS) + 1


def test_the_format_of_results_or_of_accumulators_is_replaced():
    precision = Precision.parse("fp16/nearest/fp32:pairwise;square=fp32")
    assert str(in_format(precision, (5, 7), is_accumulator=False)) == "e5m7/nearest/fp32:pairwise;square=fp32"
    assert (
        str(in_format(precision, (6, 9), is_accumulator=True))
        == "fp16/nearest/e6m9:pairwise;square=fp32;matmul=e6m9:lanes64"
    )


def test_longer_sums_need_accumulators_of_more_bits():
    assert [accumulator_bits(n) for n in (16, 256, 4096)] == [2, 6, 9]
    kept = [variance_retention(bits, 1024) for bits in range(1, 12)]
    assert kept == sorted(kept) and kept[-1] == pytest.approx(1.0)


def test_the_prediction_knows_the_order_of_the_sums_and_the_bits_of_the_addends():
    run = make_run()
    n = run.record.norm_layers["bn1"].n
    judge = lambda place, seeds: (Verdict.STABLE, "", run)  # noqa: E731
    found = {
        order: find_frontier(judge, Grid(fresh_seeds=0), [0], Precision.parse(f"fp16/nearest/fp32:{order}"))
        for order in ("sequential", "blocked64", "pairwise")
    }
    assert n == 16384
    assert [found[order].predicted_significand for order in found] == [
        accumulator_bits(n, 10), accumulator_bits(n, 10, (64, n // 64)), accumulator_bits(n, 10, (2,) * 14)
    ]  # fmt: skip
    assert found["sequential"].predicted_significand > found["blocked64"].predicted_significand


SCENARIO = """\
version: 1
name: mapped
dataset: {name: synthetic, train: 104, test: 40}
model: {name: mlp, width: 16}
train: {batch: 16}
grid: {norm: [l1], precision: [fp16], seed: [0, 1]}
"""


def run_cells(cells, out_dir, *, execution, on_event):
    """Make the records of cells that train from e4m3 on."""
    for cell in cells:
        found = Precision.parse(cell.numerics.precision).compute
        fails = not cell.is_reference and (found.emax < 7 or found.precision < 4)
        made = make_run(
            cell,
            accuracy=0.1 if fails else 0.85,
            sites={"norm.centre[forward]": Tally(100, largest=100.0, smallest=0.01)},
            nonfinite=Nonfinite(3, "loss") if fails else None,
        )
        directory = out_dir / "records" / cell.id
        directory.mkdir(parents=True, exist_ok=True)
        write_record(directory, made.record)
        with StepLog(directory) as log:
            for step in made.steps:
                log.append(step)
    return Outcome(tuple(cell.id for cell in cells), (), (), False, 0.0)


def test_the_command_draws_the_map(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trials, "run_cells", run_cells)
    (tmp_path / "mapped.yaml").write_text(SCENARIO)
    line = ["frontier", str(tmp_path / "mapped.yaml"), "--out", str(tmp_path / "out"), "--significands", "2..6"]
    assert main([*line, "--exponents", "3..6", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["corners"] == answer["confirmed"] == ["e4m3"]
    assert answer["least_significand"] == {"e3": None, "e4": 3, "e5": 3, "e6": 3}
    assert answer["fresh_seeds"] == [2, 3]
    assert answer["predicted"]["exponent"] == 4
    assert "e4m3" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "plots" / "frontier.svg").read_text().startswith("<")
    assert main([*line, "--exponents", "3"]) == 1
    assert "No format of the grid trains" in capsys.readouterr().out
    assert main([*line, "--exponents", "6..3"]) == 2
    assert main([*line, "--cell", "l7"]) == 2
