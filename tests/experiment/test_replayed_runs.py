"""A run whose steps are recorded and replayed has the record of a run on the CPU, bit for bit.

There is no GPU here: kernels run in Triton's interpreter, in a process of its own, and a stand-in for CUDA's graphs
runs what was recorded again, at the same addresses.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton")
pytest.importorskip("numba")

from normstab.experiment.training.steps.replayed_gradients import REPLAYED, Gradients
from normstab.experiment.training.train_cell import run_cell
from normstab.simulation.captured.captured_step import CapturedStep
from tests.experiment.cells import small_cell
from tests.norms.test_cuda_walks import IS_INTERPRETED
from tests.numerics.test_cuda_sums import run_interpreted
from tests.simulation.fake_graph import fake_graphs
from tests.simulation.test_host_waits import TRAINED, needs_interpreter, on_device

CELL = {**TRAINED, "dataset__train": 15, "train__loss_scale": 128.0}  # eight steps, the last one shorter


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
@pytest.mark.parametrize("chosen", ["nearest", pytest.param("stochastic or waits", marks=pytest.mark.nightly)])
def test_runs_of_replays_have_their_records_in_tritons_interpreter(chosen):
    run_interpreted(__file__, chosen)


def ran(cell, folder, monkeypatch):
    """The record of a run on the CPU, that of a replayed one, and of which steps each replay was."""
    replayed, own = [], CapturedStep._replay
    monkeypatch.setattr(CapturedStep, "_replay", lambda step: (replayed.append(step._simulated.run.step), own(step))[1])
    now = run_cell(cell, folder / "now", look_every=4)
    with on_device(), fake_graphs():
        later = run_cell(cell, folder / "later", look_every=4)
    return now, later, replayed


@needs_interpreter
@pytest.mark.parametrize("precision", ["fp16", "bf16/stochastic/bf16"], ids=["nearest", "stochastic"])
def test_a_run_of_replays_has_the_record_of_one_without(precision, tmp_path, monkeypatch):
    now, later, replayed = ran(small_cell(precision, **CELL), tmp_path, monkeypatch)
    assert set(later.notes) - set(now.notes) == {REPLAYED}
    assert replace(later, notes=now.notes) == now
    assert replayed == [3, 4, 4, 5, 6]  # of steps 3 and 4 the first ones are the proof's


@needs_interpreter
def test_a_step_that_waits_is_not_replayed_and_the_run_says_so(tmp_path, monkeypatch):
    own = Gradients._compute
    monkeypatch.setattr(Gradients, "_compute", lambda *given: [found := own(*given), float(found[0].detach())][0])
    now, later, replayed = ran(small_cell("fp16", **CELL), tmp_path, monkeypatch)
    (said,) = set(later.notes) - set(now.notes)
    assert said.startswith("training steps were not replayed as CUDA graphs: the step cannot be captured: RuntimeError")
    assert replace(later, notes=now.notes) == now and not replayed
