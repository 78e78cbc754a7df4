"""Schedules: torch's own schedulers are the oracle; a factor is a function of the step."""

import pytest
import torch

from normstab.experiment.scenario.spec import ScheduleSpec
from normstab.experiment.training.schedules import SCHEDULES, Span, rate_factor

SPAN = Span(steps=60, steps_per_epoch=10)


def rates(spec: ScheduleSpec, span: Span = SPAN) -> list[float]:
    return [rate_factor(spec, step, span) for step in range(span.steps)]


def torch_rates(make, n: int) -> list[float]:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(n):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_step_is_torchs() -> None:
    spec = ScheduleSpec("step", milestones=(2, 4), gamma=0.1)
    oracle = torch_rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [20, 40], gamma=0.1), 60)
    assert rates(spec) == pytest.approx(oracle, rel=1e-12)


def test_cosine_is_torchs() -> None:
    oracle = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 60), 60)
    assert rates(ScheduleSpec("cosine")) == pytest.approx(oracle, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("warmup", "share"), [(0.0, 0.3), (3.0, 0.5)])
def test_one_cycle_is_torchs(warmup: float, share: float) -> None:
    oracle = torch_rates(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=60, pct_start=share), 60)
    assert rates(ScheduleSpec("one-cycle", warmup=warmup)) == pytest.approx(oracle, rel=1e-9)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "one-cycle"])
def test_a_warm_up_rises_linearly_to_the_peak(name: str) -> None:
    found = rates(ScheduleSpec(name, warmup=0.5))
    assert found[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert found[5] == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("span", [Span(1, 1), Span(2, 1), SPAN])
@pytest.mark.parametrize("warmup", [0.0, 1.0, 9.0])
def test_every_factor_is_positive_and_at_most_one(name: str, span: Span, warmup: float) -> None:
    assert all(0 < factor <= 1 for factor in rates(ScheduleSpec(name, warmup=warmup, milestones=(1, 3)), span))
