"""A rate that grows as decay would have shrunk the weights: the same directions, step by step."""

from pathlib import Path

import pytest
import torch
from torch import nn

from normstab.experiment.scenario.spec import OptimizerSpec, ScheduleSpec, TrainSpec
from normstab.experiment.training.corrections import correction_of
from normstab.experiment.training.optimizers import make_optimizer, set_rate
from normstab.experiment.training.schedules import Span, rate_factor

STEPS = 20
SPAN = Span(STEPS, 10)
DECAY = OptimizerSpec(lr=0.1, weight_decay=0.5, decay_norms=False)
GROWTH = OptimizerSpec(lr=0.1, weight_decay=0.5, decay_norms=False, decay_only_last=True)


def network() -> nn.Sequential:
    """Return a convolution and a linear layer under norms that know no scale, for any variance swallows their eps."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-300), nn.ReLU(), nn.Flatten()]
    layers += [nn.Linear(4 * 36, 8, bias=False), nn.BatchNorm1d(8, eps=1e-300), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def trained(optimizer: OptimizerSpec, correction: str | None, schedule: ScheduleSpec) -> nn.Sequential:
    """Return the network after STEPS steps on batches of noise."""
    train = TrainSpec(optimizer=optimizer, schedule=schedule, weight_decay_correction=correction)  # type: ignore[arg-type]
    model = network()
    corrected = correction_of(train, model, Path("nowhere"), SPAN)
    steps = make_optimizer(model, optimizer, per_channel=corrected is not None and corrected.has_factors)
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        x = torch.randn(16, 2, 8, 8, generator=generator, dtype=torch.float64)
        y = torch.randint(3, (16,), generator=generator)
        set_rate(steps, rate_factor(schedule, step, SPAN))
        steps.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if corrected is not None:
            corrected.before(steps, step)
        steps.step()
        if corrected is not None:
            corrected.after(step, rate_factor(schedule, step, SPAN))
    return model


def farthest(a: nn.Module, b: nn.Module, *, directions: bool) -> float:
    """Return the greatest distance of two networks' weights, of length 1 each where only `directions` are compared."""
    pairs = [(v, w) for v, w in zip(a.parameters(), b.parameters(), strict=True) if v.ndim > 1]
    hidden = [(v / v.norm(), w / w.norm()) for v, w in pairs[:-1]] if directions else pairs[:-1]
    return max((v - w).norm().item() for v, w in [*hidden, pairs[-1]])


@pytest.mark.parametrize("schedule", [ScheduleSpec(), ScheduleSpec("step", milestones=(1.0,)), ScheduleSpec("cosine")])
def test_a_growing_rate_turns_the_weights_as_decay_does(schedule: ScheduleSpec) -> None:
    # Li and Arora 2020, theorem 2.1, in exact arithmetic. In float64 a step rounds to 2^-53; were each distance doubled
    # by the step after it, 20 steps would reach 2^-53 * 2^21 = 2^-32.
    decayed, grown = trained(DECAY, None, schedule), trained(GROWTH, "exponential", schedule)
    assert farthest(decayed, grown, directions=True) < 2.0**-32
    assert farthest(decayed, grown, directions=False) > 0.1
    plain = trained(GROWTH, None, schedule)
    assert farthest(decayed, plain, directions=True) > 0.01


def test_weights_grow_by_what_decay_would_have_left() -> None:
    decayed, grown = (trained(spec, kind, ScheduleSpec()) for spec, kind in ((DECAY, None), (GROWTH, "exponential")))
    ratio = next(grown.parameters()).norm() / next(decayed.parameters()).norm()
    assert ratio.item() == pytest.approx(0.95**-STEPS, rel=2.0**-32)
