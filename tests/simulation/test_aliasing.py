"""In-place, out=, view and foreach forms write where torch writes them, and read what torch reads."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from normstab.simulation import simulate

NOTHING = nn.Identity()
FP16 = torch.float16


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.to(FP16).to(x.dtype)


A = torch.tensor([[1.0, 2.0003], [3.0, -4.0001]])
B = torch.tensor([[0.1, 0.2], [0.3, 0.4]])


@pytest.mark.parametrize("name", ["add_", "sub_", "mul_", "div_"])
def test_an_in_place_operation_writes_its_rounded_result_through_every_view(name):
    x = A.clone()
    view = x.t()[0]
    with simulate(NOTHING, "uniform:fp16"):
        result = getattr(x, name)(B)
    assert result is x
    assert torch.equal(x, rounded(getattr(A.double(), name)(B.double())).float())
    assert torch.equal(view, x[:, 0])


def test_an_in_place_operation_on_a_view_changes_only_what_it_shows():
    x = A.clone()
    with simulate(NOTHING, "uniform:fp16"):
        x[:, 1].mul_(1 / 3)
    assert torch.equal(x[:, 0], A[:, 0])
    assert torch.equal(x[:, 1], rounded(A[:, 1].double() / 3).float())


@pytest.mark.parametrize("out", [torch.zeros(2, 2), torch.zeros(0), torch.zeros(2, 2).t()])
def test_out_receives_the_rounded_result(out):
    out = out.clone()
    with simulate(NOTHING, "uniform:fp16"):
        result = torch.mul(A, B, out=out)
    assert result is out
    assert torch.equal(out, rounded(A.double() * B.double()).float())


def test_out_may_be_an_operand():
    x = A.clone()
    with simulate(NOTHING, "uniform:fp16"):
        torch.exp(x, out=x)
    assert torch.equal(x, rounded(A.double().exp()).float())


@pytest.mark.parametrize("name", ["_foreach_add", "_foreach_mul", "_foreach_sub", "_foreach_div"])
def test_a_foreach_form_is_its_operation_for_every_tensor(name):
    xs, ys = [A.clone(), B.clone()], [B.clone(), A.clone()]
    plain = getattr(torch, name.removeprefix("_foreach_"))
    with simulate(NOTHING, "uniform:fp16") as run:
        fresh = getattr(torch, name)(xs, ys)
        scaled = getattr(torch, name)(xs, 0.7)
        getattr(torch, name + "_")(xs, ys)
    assert not run.unrecognised
    for x, y, new, by_scalar, written in zip([A, B], [B, A], fresh, scaled, xs, strict=True):
        assert torch.equal(new, rounded(plain(x.double(), y.double())).float())
        assert torch.equal(by_scalar, rounded(plain(x.double(), 0.7)).float())
        assert torch.equal(written, new)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_optimizers_run_alike_tensor_by_tensor_and_foreach(make, foreach):
    weights = []
    for use in (False, foreach):
        model = nn.Linear(4, 3)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
        optimizer = make(model.parameters(), lr=0.1, foreach=use)
        with simulate(model, "bf16", optimizer=optimizer, master_weights=False) as run:
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.ones(2, 4)).square().sum().backward()
                optimizer.step()
        assert not run.unrecognised
        weights.append(model.weight.detach().clone())
    assert torch.equal(*weights)
    assert torch.equal(weights[0], weights[0].bfloat16().float())


def test_an_activation_in_place_keeps_autograd_right():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    gradients = []
    for in_place in (False, True):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=in_place), nn.Linear(4, 1))
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
        with simulate(model, "fp16"):
            model(x).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_views_of_a_parameter_are_of_its_rounded_copy():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(0.1, 0.9, 12).view(4, 3))

        def forward(self, x):
            first, second = self.weight.chunk(2)
            return functional.linear(x, first), x @ second.t(), self.weight[1:3, 2] * 1.0, self.weight.view(-1)[5] * 1.0

    model, x = Halves(), torch.eye(3)
    with simulate(model, "e4m3fn") as run, torch.no_grad():
        found = model(x)
    weight = model.weight.detach().to(torch.float8_e4m3fn).float()
    expected = (weight[:2].t(), weight[2:].t(), weight[1:3, 2], weight.view(-1)[5])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert run.ledger["weight"].count == 12


def test_writing_to_a_parameter_or_its_view_is_seen_by_the_next_use():
    model = nn.Linear(2, 2, bias=False)
    with simulate(model, "fp16"), torch.no_grad():
        model(torch.eye(2))
        model.weight[0].fill_(0.5)
        model.weight.data[1].copy_(torch.tensor([0.1, 0.3]))
        found = model(torch.eye(2)).t()
    assert torch.equal(model.weight[1], torch.tensor([0.1, 0.3])), "the master keeps its value"
    assert torch.equal(found, rounded(model.weight.detach()))


def test_a_parameter_that_moves_is_found_again():
    model = nn.Linear(2, 2, bias=False)
    with simulate(model, "fp16"), torch.no_grad():
        model(torch.eye(2))
        model.weight.data = torch.full((2, 2), 0.1)
        found = model(torch.eye(2))
    assert torch.equal(found, torch.full((2, 2), 0.1).half().float())


def test_gradients_of_gradients_are_rounded_too():
    x = torch.tensor([1.1, 2.2], requires_grad=True)
    with simulate(NOTHING, "uniform:fp16"):
        (first,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, rounded(second))
    torch.testing.assert_close(second, 6 * x.detach(), rtol=5e-3, atol=0)


def test_a_parameter_that_is_not_dense_is_cast_all_the_same():
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(0.1, 0.9, 12).view(3, 4)[:, ::2])

        def forward(self, x):
            return x @ self.weight, x @ self.weight.t().t(), self.weight[1] * 1.0

    model = Strided()
    with simulate(model, "e5m2"), torch.no_grad():
        found = model(torch.eye(3))
    weight = model.weight.detach().to(torch.float8_e5m2).float()
    assert all(torch.equal(a, b) for a, b in zip(found, (weight, weight, weight[1]), strict=True))


def test_the_old_memory_of_a_parameter_that_moved_is_nobodys():
    model = nn.Linear(2, 2, bias=False)
    with simulate(model, "uniform:e5m2"), torch.no_grad():
        model(torch.eye(2))
        old = model.weight.data
        model.weight.data = torch.zeros(2, 2)
        found = old * 1.0
        assert torch.equal(found, old.to(torch.float8_e5m2).float())


def test_half_tensors_are_written_in_place_too():
    x, factor = A.half(), B.half()
    with simulate(NOTHING, "e5m2") as run:
        result = x.mul_(factor)
    assert result is x and x.dtype == torch.float16
    assert torch.equal(x, (A.half().float() * B.half().float()).to(torch.float8_e5m2).half())
    assert not run.unrecognised


def test_copies_and_comparisons_outside_modules_see_the_parameter_itself():
    model = nn.Linear(3, 3)
    with simulate(model, "e2m1"):
        saved = model.weight.clone()
        assert torch.equal(model.weight, saved)
    assert torch.equal(model.weight, saved)
