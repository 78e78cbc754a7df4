"""Small inputs that a simulation once got wrong or did not survive, each with the right answer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normstab as ns

MACHINES = ["fp16", "fp16;casts=ignore", "half", "amp-bf16"]


class Calls(nn.Module):
    """A module that calls a function."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


@pytest.mark.parametrize("machine", MACHINES)
def test_log_sigmoid_of_every_preference_loss_runs_in_both_directions(machine: str) -> None:
    x = torch.linspace(-4, 4, 9, requires_grad=True)
    model = Calls(F.logsigmoid)
    with ns.simulate(model, machine) as run:
        y = model(x)
        y.float().sum().backward()
    # Two roundings to bfloat16, of the input and of the result, 2^-9 each.
    assert torch.allclose(y.float(), F.logsigmoid(x), rtol=2.0**-8, atol=2.0**-8)
    assert torch.allclose(x.grad, torch.sigmoid(-x), rtol=2.0**-8, atol=2.0**-8)
    assert not run.unrecognised


@pytest.mark.parametrize("machine", ["fp16", "fp16;casts=ignore", "half"])
def test_sparse_products_are_torch_s_and_named(machine: str) -> None:
    x = torch.randn(4, 5, requires_grad=True)
    model = Calls(lambda a: torch.sparse.mm(torch.eye(4).to_sparse(), a))
    with ns.simulate(model, machine) as run:
        y = model(x)
        y.float().sum().backward()
    assert {"_sparse_addmm", "_sparse_addmm(sparse_coo)"} & set(run.unrecognised)
    assert torch.equal(y.float(), x.half().float()) and torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("machine", MACHINES)
def test_an_embedding_with_sparse_gradients(machine: str) -> None:
    model = nn.Embedding(5, 3, sparse=True)
    with ns.simulate(model, machine):
        model(torch.tensor([1, 2, 1])).float().sum().backward()
    assert torch.equal(model.weight.grad.to_dense().sum(1), torch.tensor([0.0, 6.0, 3.0, 0.0, 0.0]))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_taken_apart(kind: type[nn.RNNBase], machine: str) -> None:
    torch.manual_seed(0)
    model, x = kind(3, 4, 2, bidirectional=True), torch.randn(5, 2, 3)
    expected, _ = model(x)
    with ns.simulate(model, machine) as run:
        y, _ = model(x)
        y.float().sum().backward()
    assert not run.unrecognised
    assert {"addmm", "tanh"} <= {site.operation for site in run.ledger} or machine == "amp-bf16"
    # Two layers of five steps add up some ten roundings of 2^-9 (bfloat16) along the longest path.
    assert (y.float() - expected).norm() <= 10 * 2.0**-9 * expected.norm()
    assert torch.backends.mkldnn.is_available() is False or torch._C._get_mkldnn_enabled()


def test_torch_func_grad_and_vmap_go_through_a_simulated_model() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 3), torch.randn(4, 3)

    def loss(weight: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"weight": weight}, (x,)).float().sum()

    expected = torch.func.grad(loss)(model.weight.detach())
    with ns.simulate(model, "fp16") as run:
        found = torch.func.grad(loss)(model.weight.detach())
        mapped = torch.func.vmap(model)(x)
    assert (found - expected).norm() <= 2.0**-9 * expected.norm() and not run.unrecognised
    assert mapped.dtype == torch.float16


def test_autocast_inside_simulated_code_is_refused_by_name_unless_it_is_the_machine_s_own() -> None:
    layer = nn.Linear(3, 3)

    def body(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    model = Calls(body)
    model.layer = layer
    for machine in ("fp16", "fp16;casts=ignore", "fp32"):
        refused = pytest.raises(ns.NormstabError, match=r"torch.autocast to bfloat16 .* simulate amp-bf16")
        with refused, ns.simulate(model, machine):
            model(torch.ones(2, 3))
    with ns.simulate(model, "bf16") as run:
        assert model(torch.ones(2, 3)).dtype == torch.bfloat16
    assert not run.unrecognised


@pytest.mark.parametrize("foreach", [False, True])
def test_nans_born_in_an_optimizer_are_counted_at_its_site(foreach: bool) -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.Adam(model.parameters(), foreach=foreach)
    with ns.simulate(model, "fp16", optimizer=optimizer) as run:
        for _ in range(2):
            optimizer.zero_grad()
            (0 * model(torch.zeros(2, 3)).float().sum()).backward()
            optimizer.step()
    assert model.weight.isnan().all()  # eps = 1e-8 is zero in half precision, and so is the root: 0 / 0
    first = run.first("nan_produced")
    assert first is not None and str(first.site) == "(outside).addcdiv[optimizer]" and first.step == 0
    assert run.ledger[first.site].nan_produced == 9 + 3
    assert "nan_produced" in run.report()


class Bag(nn.Module):
    """Embeddings added up in bags."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(10, 4, mode="sum", sparse=sparse)

    def forward(self, ids: Tensor) -> Tensor:
        return self.bag(ids)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("machine", ["uniform:fp16", "half", "mxfp8"])
def test_the_gradient_of_bags_is_rounded_once(machine: str, sparse: bool) -> None:
    torch.manual_seed(0)
    model, ids = Bag(sparse=sparse), torch.tensor([[1, 1, 2], [2, 3, 1]])
    format = "bf16" if machine == "mxfp8" else "fp16"
    pulled = ns.cast(torch.randn(2, 4), format)
    with ns.simulate(model, machine) as run:
        result = model(ids)
        result.backward(pulled.to(result.dtype))
    gradient = model.bag.weight.grad.to_dense().double()
    expected = torch.zeros(10, 4, dtype=torch.float64)
    for bag, row in enumerate(ids):
        for i in row:
            expected[i] += pulled[bag].double()
    if sparse:  # one number for each occurrence; who adds them up is the optimizer
        assert torch.equal(model.bag.weight.grad._values(), pulled.repeat_interleave(3, 0))
    else:
        assert torch.equal(gradient, ns.cast(expected, format).double())
    assert not run.unrecognised


@pytest.mark.parametrize("machine", ["uniform:fp16", "half"])
def test_pooling_at_random_places_and_householder_products_are_recognised(machine: str) -> None:
    torch.manual_seed(0)
    pool = nn.Sequential(nn.Conv2d(1, 1, 1), nn.FractionalMaxPool2d(2, output_size=3))
    turn = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="householder")
    renormed = nn.Embedding(10, 4, max_norm=1.0)
    for model, x in ((pool, torch.randn(2, 1, 8, 8)), (turn, torch.randn(3, 4)), (renormed, torch.tensor([[1, 2]]))):
        with ns.simulate(model, machine) as run:
            model(x).square().sum().backward()
        assert not run.unrecognised, run.unrecognised
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
