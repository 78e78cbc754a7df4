"""Loss scaling: torch.amp.GradScaler's rules, and what it saves."""

import pytest
import torch
from torch import nn

from normstab.errors import NormstabError
from normstab.simulation import LossScaler, simulate


def scaled_step(model, optimizer, run, x, loss_factor=1.0):
    optimizer.zero_grad()
    loss = model(x).sum() * loss_factor
    run.scaler.scale(loss).backward()
    run.scaler.step(optimizer)
    run.scaler.update()


def one_weight(value=1.0):
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(value)
    return layer, torch.optim.SGD(layer.parameters(), lr=1.0)


def test_a_static_scale_saves_gradients_that_would_vanish():
    for loss_scale, survives in ((None, False), (2.0**12, True)):
        layer, optimizer = one_weight()
        with simulate(layer, "fp16", loss_scale=loss_scale) as run:
            scaled_step(layer, optimizer, run, torch.full((1, 1), 2.0**-14), loss_factor=2.0**-12)
        assert (layer.weight.grad.item() != 0) is survives
        if survives:
            assert layer.weight.grad.item() == 2.0**-26


def test_without_over_and_underflow_scaling_changes_no_bit():
    weights = []
    for loss_scale in (None, 2.0**7):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with simulate(model, "fp16", loss_scale=loss_scale) as run:
            for _ in range(3):
                scaled_step(model, optimizer, run, torch.ones(2, 4))
        assert run.ledger.total().underflow == 0
        weights.append(model[0].weight.detach().clone())
    assert torch.equal(*weights)


def test_a_skipped_step_is_a_step_of_its_own():
    steps = []
    for is_skipped in (False, True):
        layer, optimizer = one_weight()
        with simulate(layer, "fp16/stochastic", loss_scale="dynamic") as run:
            for number in range(4):
                steps.append(run.step)
                scaled_step(layer, optimizer, run, torch.full((1, 1), float("inf") if is_skipped and number else 1.0))
    assert steps == [0, 1, 2, 3] * 2


def test_a_step_that_is_skipped_first_does_not_shift_those_after_it():
    layer, optimizer = one_weight()
    with simulate(layer, "fp16", loss_scale="dynamic") as run:
        steps = []
        layer.register_forward_hook(lambda *_: steps.append(run.step))
        for x in (float("inf"), float("inf"), 1.0, 1.0):
            scaled_step(layer, optimizer, run, torch.full((1, 1), x))
    assert steps == [0, 1, 2, 3]


def test_a_dynamic_scale_follows_grad_scaler():
    ours, theirs = LossScaler("dynamic"), torch.amp.GradScaler("cpu")
    gradients = [1.0, float("inf"), 1.0, float("nan"), *[1.0] * 5]
    ours._good_steps = 1996
    theirs._init_growth_tracker, weights = 1996, []
    layers = [one_weight() for _ in range(2)]
    for gradient in gradients:
        for scaler, (layer, optimizer) in zip((ours, theirs), layers, strict=True):
            scaler.scale(torch.zeros(1))
            layer.weight.grad = torch.full((1, 1), gradient)
            scaler.step(optimizer)
            scaler.update()
        assert ours.get_scale() == theirs.get_scale()
        weights.append([layer.weight.item() for layer, _ in layers])
    assert all(a == b for a, b in weights)
    assert ours.skipped_steps == 2


def test_a_dynamic_scale_shrinks_until_the_simulated_gradients_are_finite():
    layer, optimizer = one_weight()
    with simulate(layer, "fp16", loss_scale="dynamic") as run:
        for _ in range(8):
            scaled_step(layer, optimizer, run, torch.full((1, 1), 16.0))
    assert run.scaler.get_scale() == 2.0**11
    assert run.scaler.skipped_steps == 5
    assert torch.isfinite(layer.weight).all()


def test_unscaling_twice_divides_once():
    layer, optimizer = one_weight()
    scaler = LossScaler(8.0)
    layer.weight.grad = torch.full((1, 1), 8.0)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert layer.weight.item() == 0.0


def test_state_resumes():
    scaler = LossScaler("dynamic")
    scaler._found_nonfinite = True
    scaler.update()
    twin = LossScaler("dynamic")
    twin.load_state_dict(scaler.state_dict())
    assert twin.get_scale() == scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("wrong", ["static", 0.0, -1.0])
def test_a_wrong_loss_scale_is_an_error(wrong):
    with pytest.raises(NormstabError, match="loss_scale"):
        LossScaler(wrong)


def test_torchs_own_grad_scaler_works_inside():
    layer, optimizer = one_weight()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    with simulate(layer, "fp16", optimizer=optimizer) as run:
        loss = layer(torch.ones(1, 1)).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert layer.weight.item() == 0.0
    assert not run.unrecognised


def test_a_dynamic_scale_grows_after_its_own_interval() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = LossScaler("dynamic", interval=3)
    scales = []
    for _ in range(6):
        optimizer.zero_grad()
        scaler.scale((weight * 1e-3).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale() / 2.0**16)
    assert scales == [1, 1, 2, 2, 2, 4]


@pytest.mark.parametrize(("scale", "asked"), [(8.0, 0), ("dynamic", 1)])
def test_gradients_are_asked_about_once_a_step_and_of_a_static_scale_never(scale, asked, monkeypatch):
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    optimizer, scaler, answers = torch.optim.SGD(net.parameters(), lr=0.1), LossScaler(scale), []
    scaler.scale(net(torch.ones(1, 3)).sum()).backward()
    own = torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda x: answers.append(own(x)) or answers[-1])
    scaler.unscale_(optimizer)
    assert answers == [False] * asked


@pytest.mark.parametrize("broken", [False, True])
def test_a_scale_that_asks_later_takes_its_step_and_leaves_the_answer(broken: bool) -> None:
    model, scaler = nn.Linear(2, 1), LossScaler("dynamic", interval=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler.asks_later = True
    scaler.scale(model(torch.tensor([[torch.inf if broken else 1.0, 1.0]])).sum()).backward()
    before = model.bias.detach().clone()
    scaler.unscale_(optimizer)
    answer = scaler.take_answer()
    assert answer is not None and bool(answer) is broken
    assert scaler.take_answer() is None
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(model.bias.detach(), before)
    assert (scaler.skipped_steps, scaler.scale_factor) == (0, 2.0**16)
