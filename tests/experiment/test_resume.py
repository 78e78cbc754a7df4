"""A run of real cells, killed with `kill -9` at random moments and started again, ends as if nothing had happened."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normstab.experiment.execution.executor import Execution, run_cells
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.reader import load_scenario

SCENARIO = """\
version: 1
name: killed
dataset: {name: synthetic, size: 8, train: 256, test: 64}
model: {name: mlp, width: 16}
train: {epochs: 2, batch: 16, probe_every: 8, optimizer: {lr: 0.1, momentum: 0.9}}
grid: {precision: [fp16, bf16/stochastic/fp32]}
"""
ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.experiment.test_resume import run

if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
"""
KILLS, KILLS_AT_NIGHT = 3, 50
MOST_S = 15.0  # of a run before it is killed: the first one may have compiled kernels for minutes


def run(scenario: Path, out: Path) -> None:
    execution = Execution(jobs=2, run_cell="tests.experiment.fake_cells:run_real_cell")
    outcome = run_cells(expand(load_scenario(scenario)), out, execution=execution)
    assert not outcome.failures, outcome.failures


def results(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for name in ("record.json", "steps.jsonl")
        for path in sorted(out.glob(f"records/*/{name}"))
    }


def survives(tmp_path: Path, *, kills: int, seed: int) -> None:
    scenario, script = tmp_path / "s.yaml", tmp_path / "run.py"
    scenario.write_text(SCENARIO)
    script.write_text(SCRIPT.format(root=str(ROOT)))
    start = time.monotonic()
    run(scenario, tmp_path / "whole")
    longest_s = min(time.monotonic() - start, MOST_S)
    whole = results(tmp_path / "whole")
    assert len(whole) == 2 * 3
    chance = random.Random(seed)
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, str(script), str(scenario), str(tmp_path / "killed")])
        time.sleep(chance.uniform(0.2, 1.0) * longest_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(scenario, tmp_path / "killed")
    assert results(tmp_path / "killed") == whole


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    survives(tmp_path, kills=KILLS, seed=1)


@pytest.mark.nightly
def test_a_run_killed_fifty_times_ends_with_the_same_bytes(tmp_path: Path) -> None:
    survives(tmp_path, kills=KILLS_AT_NIGHT, seed=2)
