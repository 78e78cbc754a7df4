"""The angle of a step: exact for known angles, at equilibrium that of the formula, and recorded with every epoch."""

import math
from pathlib import Path

import pytest
import torch

from normstab.assess.metrics import METRICS
from normstab.assess.run_reader import read_runs
from normstab.assess.runs import group_runs
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.training.angular_updates import angle_between
from normstab.experiment.training.train_cell import run_cell
from tests.experiment.cells import small_cell


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 0.3, math.pi / 2, 3.0, math.pi])
def test_the_angle_of_known_vectors(angle: float) -> None:
    a = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    b = 5.0 * torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64)
    assert angle_between(a, b) == pytest.approx(angle, rel=1e-14, abs=1e-300)
    assert angle_between(a, torch.zeros(3)) == 0.0


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_a_scale_invariant_layer_at_equilibrium_turns_by_the_formulas_angle(momentum: float) -> None:
    # The loss is that of a direction alone, its gradient new in every step. Means over 600 steps of 512 weights vary by
    # less than 1 %, and what the formula leaves out is of the order of rate decay / (1 - momentum) = 0.01.
    # Source: Wan et al. 2021, theorem 2: sqrt(2 eta lambda / (1 + alpha)).
    rate, size = 0.1, 512
    decay = 0.01 * (1 - momentum) / rate
    draws = torch.Generator().manual_seed(0)
    w = torch.randn(size, generator=draws, dtype=torch.float64)
    w = torch.nn.Parameter(w / w.norm() * (rate * size / (2 * decay * (1 - momentum))) ** 0.25)
    optimizer = torch.optim.SGD([w], lr=rate, momentum=momentum, weight_decay=decay)
    angles = []
    for _ in range(1200):
        optimizer.zero_grad()
        (torch.randn(size, generator=draws, dtype=torch.float64) @ (w / w.norm())).backward()
        before = w.detach().clone()
        optimizer.step()
        angles.append(angle_between(before, w.detach()))
    found = sum(angles[600:]) / 600
    assert found == pytest.approx(math.sqrt(2 * rate * decay / (1 + momentum)), rel=0.03)


def test_the_angles_of_the_layers_under_a_norm_are_recorded_and_their_mean_is_a_metric(tmp_path: Path) -> None:
    cell = small_cell(optimizer__weight_decay=0.0)
    run_cell(cell, tmp_path / "records" / cell.id)
    epochs = read_record(tmp_path / "records" / cell.id).epochs
    assert all(set(epoch.angular_update) == {"fc1", "fc2"} for epoch in epochs)  # the last layer is under no norm
    assert all(0 < angle < 1 for epoch in epochs for angle in epoch.angular_update.values())
    (run,), problems = read_runs(tmp_path)
    (group,) = group_runs([run], tolerance=0.01)
    wanted = sum(epochs[-1].angular_update.values()) / 2
    assert not problems and METRICS["angular_update"].compute(run, group) == pytest.approx(wanted)


def test_a_rate_of_zero_turns_nothing_and_a_run_without_probes_does_not_tell(tmp_path: Path) -> None:
    still = small_cell(optimizer__lr=0.0)
    run_cell(still, tmp_path / "still")
    assert read_record(tmp_path / "still").epochs[-1].angular_update == {"fc1": 0.0, "fc2": 0.0}
    run_cell(small_cell(train__probe_every=0), tmp_path / "unprobed")
    assert read_record(tmp_path / "unprobed").epochs[-1].angular_update == {}
