"""Optimizers, corrections and stored formats: each by its exact law, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normstab as ns
from normstab.errors import NormstabError
from normstab.experiment.network.models import build_model
from normstab.experiment.network.networks import Task
from normstab.experiment.network.weighted_layers import channel_norms, hidden_layers, last_layer
from normstab.experiment.scenario.spec import ModelSpec, NumericsSpec, OptimizerSpec
from normstab.experiment.training.corrections import (
    CorrectedGradient,
    CorrectedRate,
    FollowedNorms,
    NormSchedule,
    RecordedNorms,
)
from normstab.experiment.training.optimizers import (
    OPTIMIZERS,
    CompensatedAdamW,
    CompensatedSGD,
    make_optimizer,
    parameter_groups,
    set_rate,
)
from normstab.experiment.training.schedules import Span
from normstab.experiment.training.storage import Storage

TASK = Task(channels=2, side=8, classes=5)
STEPS = 5

SPAN = Span(10, 10)  # one epoch


def images(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(12, 2, 8, 8, generator=generator), torch.randint(0, 5, (12,), generator=generator)


def network(name: str = "lenet", norm: str = "l2", scale: float = 1.0) -> nn.Module:
    return build_model(ModelSpec(name, width=8, norm=norm, eps=0.0), TASK, seed=1, weight_scale=scale)


def trajectory(
    model: nn.Module,
    step: Callable[[int], object],
    optimizer: torch.optim.Optimizer,
    precision: str = "native",
) -> Tensor:
    """Return the logits of every step of a short training run."""
    seen = []
    with ns.simulate(model, precision):
        for t in range(STEPS):
            x, y = images(t)
            optimizer.zero_grad()
            logits = model(x)
            F.cross_entropy(logits, y).backward()
            seen.append(logits.detach().clone())
            step(t)
    return torch.stack(seen)


def split(model: nn.Module, rate: float, hidden_rate: float) -> list[dict[str, object]]:
    """Return the parameters under a norm at one rate, all others at another."""
    hidden = {id(p) for layer in hidden_layers(model).values() for p in layer.parameters()}
    groups = [[p for p in model.parameters() if (id(p) in hidden) == is_hidden] for is_hidden in (True, False)]
    return [{"params": groups[0], "lr": hidden_rate}, {"params": groups[1], "lr": rate}]


@pytest.mark.parametrize("precision", ["native", "fp32", "bf16"])
@pytest.mark.parametrize("norm", ["l2", "l1", "top10"])
@pytest.mark.parametrize(("momentum", "k"), [(0.0, -3), (0.9, 4)])
@pytest.mark.parametrize("compensated", [False, True])
def test_weights_times_a_and_rate_times_a_squared_give_the_same_function(
    precision: str, norm: str, momentum: float, compensated: bool, k: int
) -> None:
    found = []
    for a in (1.0, 2.0**k):
        model = network(norm=norm, scale=a)
        groups = split(model, 0.1, 0.1 * a * a)
        make = CompensatedSGD if compensated else torch.optim.SGD
        optimizer = make(groups, lr=0.1, momentum=momentum)  # type: ignore[operator]
        found.append(trajectory(model, lambda t, o=optimizer: o.step(), optimizer, precision))
    assert torch.equal(*found)
    assert not torch.equal(found[0][0], found[0][-1])


@pytest.mark.parametrize("make", [torch.optim.Adam, CompensatedAdamW])
def test_adam_follows_weights_times_a_at_a_times_the_rate(make: Callable[..., torch.optim.Optimizer]) -> None:
    found = []
    for a in (1.0, 2.0**5):
        # No feature of the MLP is zero for all images: where a gradient is exactly zero, eps = 0 makes 0 / 0.
        model = network("mlp", scale=a)
        optimizer = make(split(model, 1e-3, 1e-3 * a), lr=1e-3, eps=0.0)
        found.append(trajectory(model, lambda t, o=optimizer: o.step(), optimizer))
    assert bool(found[0].isfinite().all())
    assert torch.equal(*found)


@pytest.mark.parametrize("correction", [CorrectedRate, CorrectedGradient])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("k", [-4, 3])
def test_a_correction_makes_the_scale_of_the_weights_irrelevant(
    momentum: float, k: int, correction: type[FollowedNorms]
) -> None:
    found = []
    for a in (1.0, 2.0**k):
        model = network("vgg11", scale=a)
        optimizer = CompensatedSGD([{"params": list(model.parameters())}], lr=0.1, momentum=momentum)
        recorded = RecordedNorms(
            model, [{n: torch.full((len(m.weight),), 0.7) for n, m in hidden_layers(model).items()}]
        )

        def step(t: int, o: CompensatedSGD = optimizer, r: RecordedNorms = recorded) -> None:
            correction(r, SPAN).before(o, 0)
            o.step()

        found.append(trajectory(model, step, optimizer))
    assert torch.equal(*found)


def test_the_corrected_rate_is_the_rate_where_the_norms_are_the_recorded_ones() -> None:
    found = []
    for corrects in (False, True):
        model = network()
        optimizer = CompensatedSGD([{"params": list(model.parameters())}], lr=0.1)

        def step(t: int, o: CompensatedSGD = optimizer, m: nn.Module = model, corrects: bool = corrects) -> None:
            if corrects:
                norms = {n: channel_norms(layer.weight) for n, layer in hidden_layers(m).items()}
                CorrectedRate(RecordedNorms(m, [norms]), SPAN).before(o, 0)
            o.step()

        found.append(trajectory(model, step, optimizer))
    assert torch.equal(*found)


def test_a_jump_of_the_norms_multiplies_no_older_gradient() -> None:
    model = network("vgg11")
    layers = hidden_layers(model)
    optimizer = CompensatedSGD([{"params": list(model.parameters())}], lr=0.1, momentum=0.9)
    recorded = RecordedNorms(model, [{name: channel_norms(layer.weight) for name, layer in layers.items()}])
    weight = next(iter(layers.values())).weight
    for grad in (1.0, 0.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, grad)
        CorrectedGradient(recorded, SPAN).before(optimizer, 0)
        optimizer.step()
        buffer = optimizer.state[weight]["momentum_buffer"]
        with torch.no_grad():
            weight.mul_(8)  # the norm jumps, the gradient of the next step is zero
    assert torch.equal(buffer, torch.full_like(buffer, 0.9))


def test_a_norm_schedule_sets_every_channel_to_its_norm() -> None:
    model = network("vgg11")
    target = {name: channel_norms(layer.weight) * 3 for name, layer in hidden_layers(model).items()}
    before = last_layer(model).weight.clone()  # type: ignore[operator]
    NormSchedule(RecordedNorms(model, [target]), SPAN).after(0, factor=0.01)
    for name, layer in hidden_layers(model).items():
        # Each element is rounded once to float32: relative error 2^-24 of each, so of their norm.
        assert torch.allclose(channel_norms(layer.weight), 10 * target[name], rtol=2.0**-24, atol=0)
    assert torch.equal(last_layer(model).weight, before)  # type: ignore[arg-type]


def test_recorded_norms_of_another_network_or_of_too_few_epochs_are_refused(tmp_path: Path) -> None:
    from normstab.experiment.training.train_cell import run_cell
    from tests.experiment.cells import small_cell

    run_cell(small_cell(), tmp_path)
    with pytest.raises(NormstabError, match="channel norms of 2 epochs"):
        RecordedNorms.read(tmp_path, network("mlp"), epochs=3)
    with pytest.raises(NormstabError, match="no channel norms of conv1"):
        RecordedNorms.read(tmp_path, network("lenet"), epochs=2)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("kahan", [False, True])
def test_compensated_sgd_is_torchs_up_to_rounding(kahan: bool, nesterov: bool) -> None:
    spec = OptimizerSpec("sgd", lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01, kahan=kahan)
    models = [network().double(), network().double()]
    ours = make_optimizer(models[0], spec, per_channel=True)
    oracle = torch.optim.SGD(models[1].parameters(), 0.1, 0.9, weight_decay=0.01, nesterov=nesterov)
    _same_after_steps(models, [ours, oracle])


def test_compensated_adamw_is_torchs_up_to_rounding() -> None:
    spec = OptimizerSpec("adamw", lr=0.01, weight_decay=0.1, kahan=True)
    models = [network().double(), network().double()]
    oracle = torch.optim.AdamW(models[1].parameters(), 0.01, weight_decay=0.1)
    _same_after_steps(models, [make_optimizer(models[0], spec), oracle])


def _same_after_steps(models: list[nn.Module], optimizers: list[torch.optim.Optimizer]) -> None:
    for t in range(STEPS):
        x, y = images(t)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x.double()), y).backward()
            optimizer.step()
    for ours, oracle in zip(models[0].parameters(), models[1].parameters(), strict=True):
        # Both are float64; a few operations a step and five steps stay far below 1e-9.
        assert torch.allclose(ours, oracle, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kahan", "reached"), [(False, 1.0), (True, 1.5)])
def test_kahan_keeps_updates_that_nearest_rounding_loses(kahan: bool, reached: float) -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = CompensatedSGD(
        [{"params": [w]}], lr=2.0**-10, kahan=kahan, keep=lambda p, value: ns.cast(value, "bf16")
    )
    for _ in range(512):
        w.grad = -torch.ones(3)
        optimizer.step()
    assert w.detach().tolist() == [reached] * 3


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_stored_states_and_parameters_are_in_their_formats(optimizer: str) -> None:
    model = network("mlp")
    made = make_optimizer(model, OptimizerSpec(optimizer, lr=0.01, momentum=0.9))
    numerics = NumericsSpec("bf16;optimizer=e4m3fn;parameter=e5m10", master_weights=False)
    storage = Storage(model, numerics, seed=0)
    with ns.simulate(model, numerics.precision, master_weights=False) as run:
        storage.use(run.arithmetic)
        x, y = images(0)
        F.cross_entropy(model(x), y).backward()
        made.step()
        storage.keep_all_(made)
    for parameter in model.parameters():
        assert torch.equal(parameter.detach(), ns.cast(parameter.detach(), "e5m10"))
        for name, value in made.state[parameter].items():
            if name != "step":
                assert torch.equal(value, ns.cast(value, "e4m3fn")), name
    assert any(str(site).endswith("[optimizer]") for site in run.ledger)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_multiplies_its_peak_rate(name: str) -> None:
    optimizer = make_optimizer(network("mlp"), OptimizerSpec(name, lr=0.5))
    set_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}


def test_decay_spares_what_it_should() -> None:
    model = network("mlp")
    decayed = parameter_groups(model, OptimizerSpec(weight_decay=0.1, decay_norms=False))
    assert all(parameter.ndim == 2 for parameter in decayed[0]["params"])
    assert all(parameter.ndim == 1 for parameter in decayed[1]["params"])
    last = parameter_groups(model, OptimizerSpec(weight_decay=0.1, decay_only_last=True))
    assert [id(p) for p in last[0]["params"]] == [id(p) for p in last_layer(model).parameters()]
    assert (last[0]["weight_decay"], last[1]["weight_decay"]) == (0.1, 0.0)
