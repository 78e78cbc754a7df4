"""A network simulated under DistributedDataParallel in gloo processes: bit for bit what one process does instead."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import normstab as ns
from normstab.numerics.formats import FORMATS
from normstab.numerics.ledger import Site
from normstab.numerics.precision import Collective
from normstab.simulation.ranks.joining import Joining
from normstab.simulation.ranks.one_process import all_reduce_in_one_process
from tests.simulation import data_parallel_cases
from tests.simulation.data_parallel_cases import MACHINES, in_one_process
from tests.simulation.processes import run_cases

ROOT = Path(__file__).parents[2]
CASES = "tests.simulation.data_parallel_cases"
OTHERS = ["overflow_alone", "continued", "afterwards", "bits", "own_hook", "sums", "left_early"]
OF_FOUR = ["sgd_ring"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_cases(CASES, [*MACHINES, *OTHERS], 2, tmp_path_factory.mktemp("two"))


def check_machine(found, machine, size):
    for rank, of_rank in enumerate(found):
        assert isinstance(of_rank, dict), of_rank
        assert all(map(torch.equal, of_rank["parameters"], found[0]["parameters"])), f"rank {rank} trained others"
        for what in ("ledger", "firsts", "report", "unrecognised", "notes"):
            assert of_rank[what] == found[0][what], f"rank {rank} has another {what}"
    parameters, ledger = in_one_process(machine, size)
    assert all(map(torch.equal, parameters, found[0]["parameters"]))
    seen = found[0]["ledger"]
    if machine == "sgd_no_masters":  # the oracle opens simulations, each of which stores the parameters rounded
        stored = {f"{name}[forward]" for name, _ in data_parallel_cases.network().named_parameters()}
        ledger, seen = ({site: tally for site, tally in x.items() if site not in stored} for x in (ledger, seen))
    assert ledger == seen
    assert found[0]["unrecognised"] == {}


@pytest.mark.parametrize("machine", MACHINES)
def test_two_ranks_equal_one_process_bit_for_bit(two, machine):
    check_machine(two[machine], machine, 2)


@pytest.mark.parametrize("machine", OF_FOUR)
def test_four_ranks_equal_one_process_bit_for_bit(tmp_path, machine):
    check_machine(run_cases(CASES, [machine], 4, tmp_path)[machine], machine, 4)


@pytest.mark.nightly
def test_four_ranks_equal_one_process_on_every_machine(tmp_path):
    found = run_cases(CASES, list(MACHINES), 4, tmp_path)
    for machine in MACHINES:
        check_machine(found[machine], machine, 4)


def test_a_collective_is_counted_at_the_parameters_name(two):
    seen = two["sgd_ring"][0]["ledger"]
    sites = [f"4.weight.all_reduce{part}[backward]" for part in (".load", ".div", ".sum", "")]
    elements, steps = 48, data_parallel_cases.STEPS
    assert [seen[site].count for site in sites] == [2 * elements * steps] * 2 + [elements * steps] * 2


def test_every_rank_reports_the_overflow_of_one(two):
    for found in two["overflow_alone"]:
        assert found["first"].step == 0 and found["first"].rank == 1
        assert found["first"].site == Site("(outside)", "mul")
        assert "nothing overflowed" not in found["report"] and "in 2 processes together" in found["report"]
        assert found["rank"] is None
    assert "nothing overflowed, vanished or became NaN on rank 0" in two["overflow_alone"][0]["during"]


def test_a_ledger_that_goes_on_counts_nothing_twice(two):
    for first, second in two["continued"]:
        assert second == 2 * first > 0


def test_without_masters_gradients_add_up_in_16_bits_on_every_rank(two):
    # Each of two ranks absorbs two gradients of two elements.
    assert two["sums"] == [([2048.0, 2048.0], 8), ([2048.0, 2048.0], 8)]


def test_ddp_reduces_as_before_after_a_simulation(two):
    assert two["afterwards"] == [True, True]


def test_ranks_draw_other_bits_for_their_samples_and_the_same_for_parameters(two):
    (x_0, weight_0), (x_1, weight_1) = two["bits"]
    assert torch.equal(weight_0, weight_1)
    # Two fair coins fall alike half the time: 4096 of them within 6 standard deviations (32 each).
    alike = int((x_0 == x_1).sum())
    assert abs(alike - 2048) < 6 * 32


def test_a_communication_hook_of_the_users_is_refused(two):
    assert all("communication hook of its own" in text for text in two["own_hook"])


def test_a_rank_that_leaves_by_an_exception_is_named_at_once(two):
    (of_0, took), (of_1, _) = two["left_early"]
    assert "rank 1 of 2 left with ZeroDivisionError: of rank 1" in of_0
    assert of_1 == "of rank 1"
    assert took < 20


def test_a_rank_that_dies_is_named(tmp_path):
    survivor, dead = run_cases(CASES, ["died"], 2, tmp_path, dies=True)["died"]
    assert dead is None
    text, took = survivor
    assert text.startswith("NormstabError: a collective on rank 0 of 2: rank 1 did not answer"), text
    assert took < 40


def test_a_collective_of_one_process_is_refused():
    with (
        pytest.raises(ns.NormstabError, match="simulate the DistributedDataParallel"),
        ns.simulate(torch.nn.Linear(2, 2), "fp16;collective=fp16"),
    ):
        pass


@pytest.mark.nightly
def test_the_torchrun_command_of_the_page_runs_as_written(tmp_path):
    page = (ROOT / "normstab/docs/many-cells.md").read_text(encoding="utf-8")
    (tmp_path / "train.py").write_text(re.search(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1])
    command = re.search(r"^torchrun (.*train\.py)$", page, re.MULTILINE)[1]
    start = [sys.executable, "-m", "torch.distributed.run", *command.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(start, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "in 2 processes together" in done.stdout


# ------------------------------------------------------------------------------------------- without processes


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize("collective", [None, "fp16:ring", "e4m3fn:saturate:tree", "fp64:ring"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic:11"])
@pytest.mark.parametrize("n", [0, 5, 24])
def test_chunks_by_their_owners_are_what_one_process_adds(size, collective, rounding, n):
    torch.manual_seed(size + n)
    x = [torch.randn(n) * 10 ** (2 * rank) for rank in range(size)]
    if n > 4:
        x[0][1], x[1][2], x[0][3], x[1][3] = torch.inf, torch.nan, torch.inf, -torch.inf
    by_owners, at_once = ns.Ledger(), ns.Ledger()
    parsed = None if collective is None else Collective.parse(collective)
    found = owners_of(x, parsed, rounding, by_owners)
    kept = ns.Arithmetic("bf16", rounding=rounding, ledger=at_once, key=ns.Key()).at("w").towards("backward")
    wire = None
    if parsed is not None:
        wire = ns.Arithmetic(parsed.format, rounding=rounding, ledger=at_once, key=ns.Key()).at("w").towards("backward")
    wanted = all_reduce_in_one_process(x, kept, wire=wire, order=parsed.order if parsed else "ring")
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=0, equal_nan=True)
    assert {str(s): t for s, t in by_owners.items() if t.count} == {str(s): t for s, t in at_once.items() if t.count}


def owners_of(x, collective, rounding, ledger):
    """Return the mean of `x` as its chunks' owners form it, in as many arithmetics."""
    size, n = len(x), x[0].numel()
    joinings = []
    for _ in range(size):
        ar = ns.Arithmetic("bf16", rounding=rounding, ledger=ledger, key=ns.Key()).at("w").towards("backward")
        joinings.append(
            Joining("all_reduce", ar, collective, FORMATS["bf16"], size, size, kept_rounding=ar.precision.rounding)
        )
    addends = [joining.load(gradient, rank) for rank, (joining, gradient) in enumerate(zip(joinings, x, strict=True))]
    length = max(1, -(-n // size))
    chunks = []
    for owner, joining in enumerate(joinings):
        chunk = slice(owner * length, (owner + 1) * length)
        chunks.append(joining.add([addend[chunk] for addend in addends], owner, owner * length))
    return torch.cat(chunks)


def test_joined_ledgers_add_and_name_the_earliest_first():
    parts = []
    for rank, steps in enumerate([(3, 1), (2, 2), (2, 5)]):
        ledger = ns.Ledger(histogram=True)
        for step, site in zip(steps, ("a", "b"), strict=True):
            ns.Arithmetic("fp16", ledger=ledger, key=ns.Key(step=step)).at(site).cast(torch.tensor([1e6, 1.0 + rank]))
        parts.append(ledger)
    whole = ns.Ledger(histogram=True)
    whole.become_joined(parts)
    assert whole["a"].count == whole["b"].count == 6 and whole["a"].overflow == 3
    assert whole["a"].histogram.binades == {0: 1, 1: 2, 19: 3}
    assert whole.first("overflow") == (Site("b", "cast"), 1, 0)
    assert whole.first("overflow", besides={("overflow", Site("b", "cast"))}) == (Site("a", "cast"), 2, 1)
    again = ns.Ledger(histogram=True)
    again.become_joined([whole, ns.Ledger(histogram=True)])
    going_on = ns.Ledger()  # in a next simulation, whose steps begin at 0: what it meets first comes after
    ns.Arithmetic("fp16", ledger=going_on, key=ns.Key(step=0)).at("c").cast(torch.tensor([1e6]))
    both = ns.Ledger(histogram=True)
    both.become_joined([whole, going_on])
    assert both.first("overflow") == whole.first("overflow")
    besides = {("overflow", Site(name, "cast")) for name in "ab"}
    assert both.first("overflow", besides=besides) == (Site("c", "cast"), 0, 1)
    assert again.first("overflow") == whole.first("overflow") and dict(again) == dict(whole)
