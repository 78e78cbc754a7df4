"""Cells that several processes train together: by `run_cell` in gloo processes, and by the command under torchrun."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from normstab.errors import NormstabError
from normstab.experiment.execution.executor import check_ranks, run_cells
from normstab.experiment.execution.torchrun import Launch, _cause
from normstab.experiment.execution.worker import Message
from normstab.experiment.scenario.spec import SweepSpec
from normstab.experiment.training.train_cell import run_cell
from tests.experiment.cells import small_cell
from tests.experiment.ranks_cases import PRECISIONS, TOKENS, cell_of, in_one_process
from tests.simulation.processes import run_cases

ROOT = Path(__file__).parents[2]
CASES = "tests.experiment.ranks_cases"
SCENARIO = """\
version: 1
name: tiny
question: Does it train in two processes?
source: none
dataset: {name: fashion-mnist-sample, size: 8, train: 96, test: 64}
model: {name: mlp, width: 16, norm: none}
train: {epochs: 2, batch: 32, optimizer: {name: sgd, lr: 0.1}}
grid: {precision: ["fp16;collective=fp16:ring", bf16], seed: [0]}
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    of_cells = [f"cell_{name}" for name in (*PRECISIONS, *TOKENS)]
    names = [*of_cells, "resumed", "swept", "too_small", "overflowing", "exponents"]
    return run_cases(CASES, names, 2, tmp_path_factory.mktemp("two"))


def check(found, name, size):
    losses, weights = in_one_process(name, size)
    for of_rank in found:
        assert isinstance(of_rank, tuple), of_rank
        record, files, logged = of_rank
        assert logged == losses
        assert record["weights_sha256"] == weights
        assert record == found[0][0] and record["cell"]["train"]["ranks"] == size
        assert record["steps"] == len(losses) == 6 and record["unrecognised"] == {}
        assert files == ["record.json", "steps.jsonl"]


@pytest.mark.parametrize("name", [*PRECISIONS, *TOKENS])
def test_losses_and_weights_of_two_processes_are_those_of_one_that_joins_in_the_stated_order(two, name):
    check(two[f"cell_{name}"], name, 2)


def test_losses_and_weights_of_four_processes_are_those_of_one(tmp_path):
    check(run_cases(CASES, ["cell_ring"], 4, tmp_path)["cell_ring"], "ring", 4)


def test_a_checkpoint_resumes_every_process_bit_for_bit(two):
    assert all(isinstance(found, tuple) for found in two["resumed"]), two["resumed"]
    (equal, notes), (equal_too, none) = two["resumed"]
    assert equal and equal_too
    assert [re.sub(r"^.*: ", "", note) for note in notes] == ["resumed after step 4"] and none == []


def test_a_sweep_is_made_by_the_first_process_and_known_to_all(two):
    (record, files), other = two["swept"]
    assert record["sweep"] and files == ["record.json"] and other == (record, files)
    check_ranks([small_cell(cell__sweep=SweepSpec((-1, 1))), cell_of("fp16", 2)], 2)
    with pytest.raises(NormstabError, match=r"train.ranks says that 2 processes .* one is here"):
        check_ranks([cell_of("fp16", 2)], 1)


def test_a_batch_without_a_sample_for_every_process_is_refused(two):
    assert all(
        "2 processes have their parts of every batch, and an epoch has a batch of 1" in x for x in two["too_small"]
    )


def test_what_becomes_non_finite_ends_alike_everywhere_and_names_its_rank(two):
    found, other = two["overflowing"]
    assert isinstance(found, dict), found
    assert repr(found) == repr(other) and found["status"] == "nonfinite"  # NaN is no other NaN
    assert found["first"]["overflow"]["rank"] in (0, 1)


def test_exponents_that_every_process_recorded_are_added(two):
    (found, alone), (other, _) = two["exponents"]
    assert found == other and sum(found.values()) > 0
    # Batches are shared and the test set is seen by one: what there is one of in each process is counted twice.
    in_each = ("weight", "bias", "nll_loss")
    forward = [site for site in alone if site.endswith("[forward]") and not any(name in site for name in in_each)]
    assert forward and all(found[site] == alone[site] for site in forward)


# --------------------------------------------------------------------------------------- what needs no processes


def test_the_number_of_processes_is_a_part_of_what_is_trained_and_one_leaves_ids_as_they_were():
    cell = small_cell()
    assert "ranks" not in cell.to_json()["train"]
    together = replace(cell, train=replace(cell.train, ranks=2))
    assert together.id != cell.id and together.to_json()["train"]["ranks"] == 2
    assert type(cell).from_json(together.to_json()) == together


def test_a_cell_of_several_processes_is_refused_by_one(tmp_path):
    cell = cell_of("fp16", 2)
    with pytest.raises(NormstabError, match="torchrun --nproc-per-node 2 -m normstab run"):
        run_cell(cell, tmp_path / cell.id)
    with pytest.raises(NormstabError, match="2 processes train the cell together, and one is here"):
        run_cells([cell], tmp_path)


def test_the_process_that_failed_by_itself_is_named():
    lost = Message("crashed", "RuntimeError: Connection closed by peer")
    own = Message("crashed", "MemoryError: ", "where")
    assert _cause([lost, own]) == Message("crashed", "rank 1 of 2: MemoryError: ", "where")
    assert _cause([own, lost]) == own
    assert _cause([Message("finished")] * 2) == Message("finished")


def test_a_process_of_this_host_that_is_gone_is_named():
    import platform

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    launch = Launch(0, 2, None)
    launch.processes = [[platform.node(), os.getpid()], [platform.node(), ended.pid]]
    assert launch.dead() == [f"rank 1 of 2 (process {ended.pid}) has died"]
    launch.processes[1][0] = "elsewhere"
    assert launch.dead() == []


# ---------------------------------------------------------------------------------------------------- the command


def command(scenario, out, *options):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*start, "-m", "normstab", "run", str(scenario), "--out", str(out), *options]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(scenario, out, *options):
    line = command(scenario, out, *options)
    return subprocess.run(line, env=environment(), cwd=out.parent, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ran")
    scenario = folder / "tiny.yaml"
    scenario.write_text(SCENARIO)
    return scenario, folder / "out", run(scenario, folder / "out")


def test_the_command_trains_every_cell_in_both_processes_and_reports_once(ran):
    _, out, done = ran
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("[3/3]") == 1 and done.stderr.count("report: ") == 1
    records = [json.loads(path.read_text()) for path in out.glob("records/*/record.json")]
    assert len(records) == 3 and all(record["cell"]["train"]["ranks"] == 2 for record in records)
    assert all(record["status"] == "finished" and record["steps"] == 6 for record in records)
    collective = next(record for record in records if "collective" in record["id"])
    assert any(".all_reduce.sum" in site for site in collective["epochs"][0]["sites"])
    (entry,) = json.loads((out / "run.json").read_text())["runs"]
    assert entry["executor"] == "torchrun" and entry["ranks"] == 2 and "complete" in entry["ended"]
    assert "tiny" in (out / "report.md").read_text()


def test_the_same_command_trains_nothing_twice(ran):
    scenario, out, _ = ran
    before = {path: path.read_bytes() for path in out.glob("records/*/*") if path.is_file()}
    done = run(scenario, out)
    assert done.returncode == 0 and done.stderr.count("reused") == 3
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "2"], "--jobs 2: torchrun started 2 processes"),
        (["--executor", "ray"], "--executor ray: torchrun started 2 processes"),
        (["--set", "train.epochs=none"], "expected a whole number, found 'none'"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_once(ran, tmp_path, options, message):
    done = run(ran[0], tmp_path / "out", *options)
    assert done.returncode != 0 and done.stderr.count(message) == 1, done.stderr
    assert "has died" not in done.stderr


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.nightly)])
def test_a_process_that_dies_is_named_and_the_same_command_goes_on(tmp_path, victim):
    scenario, out = tmp_path / "tiny.yaml", tmp_path / "out"
    # The reference is soon finished; the cell that follows it, with norms op by op, is killed under way.
    scenario.write_text(SCENARIO.replace("epochs: 2", "epochs: 40"))
    with open(tmp_path / "log", "w+") as log:
        started = subprocess.Popen(command(scenario, out), env=environment(), cwd=tmp_path, stderr=log, stdout=log)
        wait_for(lambda: list(out.glob("records/native*/record.json")) and list(out.glob("records/fp16*/steps.jsonl")))
        finished = {path: path.read_bytes() for path in out.glob("records/native*/record.json")}
        os.kill(process_of(started.pid, victim), signal.SIGKILL)
        began = time.monotonic()
        assert started.wait(60) != 0
        assert time.monotonic() - began < 40
        log.seek(0)
        said = log.read()
    assert re.search(rf"normstab, rank {1 - victim}: rank {victim} of 2 \(process \d+\) has died", said), said
    assert finished and finished == {path: path.read_bytes() for path in finished}
    done = run(scenario, out)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("reused") >= 1
    assert len(list(out.glob("records/*/record.json"))) == 3
    assert finished == {path: path.read_bytes() for path in finished}


def test_the_command_trains_another_librarys_language_model_in_both_processes(tmp_path):
    scenario = tmp_path / "tiny.yaml"
    text = re.sub(r"dataset: .*", "dataset: {name: kjv-sample, size: 16, train: 96, test: 8}", SCENARIO)
    text = re.sub(r"precision: .*?, seed", 'precision: ["fp16;collective=fp16:ring"], seed', text)
    scenario.write_text(re.sub(r"model: .*", 'model: {name: "foreign_nets:llama"}', text))
    (tmp_path / "foreign_nets.py").write_text((Path(__file__).parent / "foreign_nets.py").read_text())
    done = run(scenario, tmp_path / "out", "--allow-import", "--set", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("out/records/*/record.json")]
    assert [record["cell"]["train"]["ranks"] for record in records] == [2, 2]
    assert all(record["status"] == "finished" and record["steps"] == 3 for record in records)
    assert all(record["unrecognised"] == {} for record in records)


# On rank 1 the second network cannot be built; its cell is then the second one, that of fp16.
OWN = """\
import os
from torch import nn

built = []

def build(channels, side, classes):
    built.append(1)
    if os.environ["RANK"] == "1" and len(built) == 2:
        raise MemoryError("no room on this one")
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes), nn.LayerNorm(classes))
"""


def test_a_cell_that_fails_in_one_process_alone_fails_and_the_next_one_is_trained(tmp_path):
    (tmp_path / "own_nets.py").write_text(OWN)
    scenario = tmp_path / "tiny.yaml"
    scenario.write_text(re.sub(r"model: .*", 'model: {name: "own_nets:build"}', SCENARIO))
    done = run(scenario, tmp_path / "out", "--allow-import")
    assert done.returncode != 0
    assert re.search(r"fp16\S*: refused: rank 1 of 2: model .* cannot be built: MemoryError", done.stderr), done.stderr
    names = sorted(path.parent.name.partition("-")[0] for path in tmp_path.glob("out/records/*/record.json"))
    assert names == ["bf16", "native"]


def wait_for(condition):
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def process_of(launcher, rank):
    """Return the process that torchrun started as a rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        told = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in told:
            return int(child)
    raise AssertionError(children)
