"""Training that stands still without an overflow: updates lost, addends absorbed, digits cancelled."""

import contextlib

import pytest
import torch
from torch import nn

import normstab as ns
from normstab.errors import NormstabError
from normstab.simulation.around import parameter_updates

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def ones() -> nn.Linear:
    model = nn.Linear(4, 4)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 4)).float().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("machine", ["fp16", "half", "amp-bf16", "uniform:fp16", "fp32"])
def test_a_rate_too_small_for_the_weights_loses_every_update(machine: str, name: str, foreach: bool) -> None:
    for lr, is_lost in ((1e-9, True), (0.1, False)):
        model = ones()
        optimizer = OPTIMIZERS[name](model.parameters(), lr=lr, foreach=foreach)
        with ns.simulate(model, machine, optimizer=optimizer) as run:
            step(model, optimizer)
        moves = [t.lost_updates for s, t in run.ledger.items() if s.operation in ("add", "addcdiv")]
        assert max(moves, default=0) == (20 if is_lost else 0)
        assert (run.first("lost_updates") is not None) == is_lost
        assert ("lost_updates" in run.report()) == is_lost


def test_what_a_parameter_without_master_cannot_hold_is_lost_where_a_master_holds_it() -> None:
    # Half of an ulp of 1 in half precision is 2^-11.
    for machine, expected in (("half", 20), ("fp16", 0), ("fp16;master=off", 20)):
        model = ones()
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-13)
        with ns.simulate(model, machine, optimizer=optimizer) as run:
            step(model, optimizer)
        assert run.ledger.total().lost_updates == expected


def test_a_gradient_of_zero_is_no_lost_update() -> None:
    model = ones()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ns.simulate(model, "fp16", optimizer=optimizer) as run:
        (model(torch.ones(2, 4)) * 0).float().sum().backward()
        optimizer.step()
    assert run.ledger.total().lost_updates == 0


def test_updates_by_hand_are_looked_at_too() -> None:
    model = ones()
    with ns.simulate(model, "half") as run, torch.no_grad():
        model.weight.copy_(torch.full((4, 4), 1 + 2.0**-13))
        model.bias -= 2.0**-12
    assert run.ledger["(outside).copy"].lost_updates == 16
    assert run.ledger["(outside).sub"].lost_updates == 4


def test_an_accumulator_of_gradients_that_stands_still_is_seen() -> None:
    total = torch.tensor([256.0], dtype=torch.bfloat16)

    class Accumulates(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = total.to(x.dtype)
            for _ in range(3):
                y = y + x
            return y

    for losses in (False, True):
        with ns.simulate(Accumulates(), "bfloat16", losses=losses) as run:
            assert run.ledger.counts_losses is losses
            model = Accumulates()
        with ns.simulate(model, "bfloat16", losses=losses) as run:
            assert model(torch.ones(1)).item() == 256
        assert run.ledger.total().absorbed == (3 if losses else 0)
    assert "absorbed" in run.report()


def test_a_variance_by_subtraction_cancels() -> None:
    class OnePass(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * x).mean() - x.mean() ** 2

    model = OnePass()
    with ns.simulate(model, "fp16", losses=True) as run:
        model(torch.linspace(99, 101, 64))
    assert run.first("cancelled").site.operation == "sub"


def test_a_ledger_that_counts_no_losses_is_refused_where_they_are_asked_for() -> None:
    with pytest.raises(NormstabError, match="losses"), ns.simulate(ones(), "fp16", ledger=ns.Ledger(), losses=True):
        pass


def test_masters_follow_the_precision_unless_said_otherwise() -> None:
    for machine, given, expected in (
        ("half", None, False),
        ("half", True, True),
        ("fp16", None, True),
        ("fp16", False, False),
    ):
        model = ones()
        with torch.no_grad():
            model.weight.fill_(1 + 2.0**-20)
        with ns.simulate(model, machine, master_weights=given):
            model(torch.ones(1, 4))
        assert bool((model.weight != 1).all()) is expected


def test_counting_a_lost_update_draws_no_random_bits() -> None:
    """What the second parameter becomes does not depend on whether the first one's update was lost."""

    def second(step_of_first: float) -> tuple[torch.Tensor, int]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
        first, other = model.parameters()
        torch.nn.init.ones_(first)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, foreach=False)
        with ns.simulate(model, "bf16/stochastic;optimizer=bf16", optimizer=optimizer) as run:
            for _ in range(3):
                first.grad, other.grad = torch.full_like(first, step_of_first), torch.ones_like(other)
                optimizer.step()
        return other.detach().clone(), run.ledger.total().lost_updates

    (lost, count), (moved, none) = second(1e-12), second(50.0)
    assert count > none and torch.equal(lost, moved)


@pytest.mark.parametrize("precision", ["uniform:fp16", "bf16;optimizer=bf16", "half"])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.Adam, {"amsgrad": True, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"weight_decay": 0.1, "maximize": True}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (torch.optim.SGD, {}),
        (torch.optim.Adagrad, {"lr_decay": 0.1}),
    ],
    ids=str,
)
def test_a_fused_step_is_the_plain_one_operation_by_operation(precision: str, optimizer: type, options: dict) -> None:
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        steps = optimizer(model.parameters(), lr=0.05, fused=fused, **({} if fused else {"foreach": False}), **options)
        with ns.simulate(model, precision, optimizer=steps) as run:
            for _ in range(3):
                steps.zero_grad()
                model(torch.ones(3, 4)).float().square().sum().backward()
                steps.step()
        assert not run.unrecognised
        counts = {str(site): tally.count for site, tally in run.ledger.items() if site.direction == "optimizer"}
        found.append(([p.detach().clone() for p in model.parameters()], counts.get("addcdiv[optimizer]")))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True)) and found[0][1] == found[1][1]


def test_a_fused_step_outside_the_simulation_is_torch_s_own() -> None:
    found = []
    for is_simulated in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        steps = torch.optim.Adam(model.parameters(), lr=0.05, fused=True)
        model(torch.ones(2, 4)).sum().backward()
        with ns.simulate(model, "fp16") if is_simulated else contextlib.nullcontext():
            steps.step()
        found.append(model.weight.detach().clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_fused_step_obeys_a_gradient_scaler_and_a_rate_that_is_a_tensor(is_lost: bool) -> None:
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.05), fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        with ns.simulate(model, "fp16;optimizer=fp16", optimizer=optimizer) as run:
            scaler.scale(model(torch.ones(3, 4)).float().sum() * (torch.inf if is_lost else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert not run.unrecognised and scaler.get_scale() == (2.0 if is_lost else 4.0)
        found.append(model.weight.detach().clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("master", ["on", "off"])
@pytest.mark.parametrize("name", ["add_", "sub_"])
@pytest.mark.parametrize("alpha", [1, -0.5, 0])
def test_lost_updates_that_a_kernel_counts_are_those_of_the_readable_code(
    name: str, alpha: float, master: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    special = [0.0, -0.0, 1.0, -1.0, 2.0**-149, 2.0**-30, 65504.0, float("inf"), float("nan")]
    before, steps = (x.flatten() for x in torch.meshgrid(torch.tensor(special), torch.tensor(special), indexing="ij"))

    def lost(step: torch.Tensor) -> tuple[list[object], torch.Tensor]:
        model = nn.Linear(9, 9, bias=False)
        model.weight.data.copy_(before.view(9, 9))
        with ns.simulate(model, f"fp16;master={master}") as run, torch.no_grad():
            getattr(model.weight, name)(step, alpha=alpha)
        return [(str(site), tally.lost_updates, tally.nan_produced) for site, tally in run.ledger.items()], model.weight

    square = steps.view(9, 9)
    for step in (square, square.t(), square.contiguous().t().contiguous()):
        counted, after = lost(step)
        with monkeypatch.context() as patch:
            patch.setattr(parameter_updates, "_kernels", lambda x: None)
            wanted, expected = lost(step)
        assert counted == wanted and torch.equal(after.nan_to_num(), expected.nan_to_num())
        assert step is not square or (sum(n for _, n, _ in counted) > 0) == (alpha != 0)


def test_a_parameter_that_is_added_to_itself_is_looked_at_as_it_was() -> None:
    model = ones()
    with ns.simulate(model, "fp16") as run, torch.no_grad():
        model.weight.add_(model.weight)
        model.weight.add_(model.weight, alpha=2.0**-40)
    assert run.ledger["(outside).add"].lost_updates == 16
