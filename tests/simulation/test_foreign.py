"""Code that nobody here wrote: what cannot be seen is expanded or listed by name, never passed in silence."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from normstab.numerics.ledger import Site
from normstab.simulation import simulate


def data(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_an_lstm_is_listed():
    model = nn.LSTM(4, 5)
    with simulate(model, "fp16") as run:
        model(data(3, 2, 4))[0].sum().backward()
    assert any("rnn" in name or "lstm" in name for name in run.unrecognised) or "sigmoid" in {
        site.operation for site in run.ledger
    }


@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_layer_shows_its_parts_or_is_listed(training):
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).train(training)
    with simulate(model, "fp16") as run, torch.set_grad_enabled(training):
        model(data(2, 3, 8))
    operations = {site.operation for site in run.ledger}
    if run.unrecognised:
        assert not training
        assert set(run.unrecognised) <= {"_transformer_encoder_layer_fwd", "_native_multi_head_attention"}
    else:
        assert {"addmm", "square"} <= operations


def test_with_expand_the_encoder_and_its_attention_show_every_part():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    with simulate(model, "fp16", expand=True) as run, torch.no_grad():
        model(data(2, 3, 8))
    assert not run.unrecognised
    assert Site("self_attn", "bmm") in run.ledger
    assert Site("self_attn", "exp") in run.ledger
    assert Site("norm1", "square") in run.ledger


def test_expand_takes_softmax_and_losses_apart_and_fp64_stays_fp64():
    x, y = data(4, 5).double().requires_grad_(), torch.tensor([0, 1, 2, 3])
    for loss in (lambda: functional.cross_entropy(x, y), lambda: functional.mse_loss(x.softmax(1), x.detach())):
        (expected,) = torch.autograd.grad(loss(), x)
        with simulate(nn.Identity(), "fp64", expand=True) as run:
            (found,) = torch.autograd.grad(loss(), x)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert not run.unrecognised
        assert {"exp"} <= {site.operation for site in run.ledger}


def test_softmax_and_losses_are_one_rounding_without_expand():
    x, y = data(4, 5).half().float(), torch.tensor([0, 1, 2, 3])
    with simulate(nn.Identity(), "uniform:fp16"):
        soft, loss = x.softmax(1), functional.cross_entropy(x, y)
        logs = x.log_softmax(1)
    assert torch.equal(soft, x.double().softmax(1).half().float())
    assert torch.equal(logs, x.double().log_softmax(1).half().float())
    assert torch.equal(loss, functional.nll_loss(logs.double(), y).half().float())


def test_a_custom_function_is_seen_inside_and_its_gradient_too():
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 0.3

        @staticmethod
        def backward(ctx, grad):
            return grad * 0.7

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()
            self.inner.forward = Scaled.apply

        def forward(self, x):
            return self.inner(x)

    x = data(3).requires_grad_()
    with simulate(Model(), "fp16") as run:
        model = Model()
    model = Model()
    with simulate(model, "fp16") as run:
        model(x).sum().backward()
    assert Site("inner", "mul") in run.ledger
    assert Site("inner", "mul", "backward") in run.ledger


@pytest.mark.parametrize(
    "name, operation",
    {
        "linalg_svd": lambda x: torch.linalg.svdvals(x),
        "cholesky": lambda x: torch.linalg.cholesky(x @ x.t() + 9 * torch.eye(4, dtype=x.dtype)),
    }.items(),
)
def test_an_operation_that_is_not_understood_is_listed_and_computed_as_torch_does(name, operation):
    x = data(4, 4).double()
    with simulate(nn.Identity(), "fp64") as run:
        found = operation(x)
    torch.testing.assert_close(found, operation(x))
    assert run.unrecognised
    assert "not understood" in run.report()


def test_operations_without_floating_operands_pass():
    with simulate(nn.Identity(), "fp16") as run:
        indices = torch.arange(5) * 2 + 1
        torch.randn(3), torch.zeros(2), indices.sum(), (indices > 3).any(), torch.full((2,), 0.1)
    assert not run.unrecognised
    assert len(run.ledger) == 0


def test_half_tensors_are_rounded_where_their_dtype_can_hold_the_format():
    x = data(8).half()
    with simulate(nn.Identity(), "e5m2") as run:
        found = x * x
    assert found.dtype == torch.float16
    assert torch.equal(found, found.to(torch.float8_e5m2).half())
    with simulate(nn.Identity(), "bf16") as run:
        assert torch.equal(x + x, x + x)
    assert "add(float16)" in run.unrecognised


def test_inference_mode_is_simulated_like_no_grad():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    found = []
    for context in (torch.no_grad, torch.inference_mode):
        with simulate(model, "bf16") as run, context():
            found.append(model(data(2, 1, 4, 4)).clone())
        assert not run.unrecognised
        assert Site("2", "addmm") in run.ledger
    assert torch.equal(*found)


def test_a_compiled_submodule_is_said_to_be():
    model = nn.Sequential(torch.compile(nn.Linear(3, 3), backend="eager"), nn.ReLU())
    with simulate(model, "fp16") as run, torch.no_grad():
        found = model(data(2, 3))
    assert torch.equal(found, found.half().float())
    assert any("compile" in note for note in run.notes)


def test_a_model_compiled_and_run_before_is_still_rounded_inside():
    model = torch.compile(nn.Linear(3, 3), backend="eager")
    with torch.no_grad():
        model(data(2, 3))
        with simulate(model, "fp16") as run:
            found = model(data(2, 3))
    assert torch.equal(found, found.half().float())
    assert any(site.operation == "addmm" for site in run.ledger)


POOLS = {
    "avg": nn.AvgPool2d(2),
    "adaptive": nn.AdaptiveAvgPool2d(2),
    "max": nn.MaxPool2d(2),
    "adaptive max": nn.AdaptiveMaxPool2d(2),
    "upsample": nn.Upsample(scale_factor=2, mode="bilinear"),
    "pad": nn.ReflectionPad2d(1),
    "unfold": nn.Unfold(2),
    "shuffle": nn.PixelShuffle(2),
    "prelu": nn.PReLU(),
    "silu": nn.SiLU(),
    "softplus": nn.Softplus(),
    "glu": nn.GLU(1),
    "dropout": nn.Dropout(0.5),
    "bilinear": nn.Flatten(),
    "cosine": nn.CosineSimilarity(),
}


@pytest.mark.parametrize("name", POOLS)
def test_common_layers_are_understood_in_both_directions(name):
    model = POOLS[name]
    x = data(2, 4, 4, 4).requires_grad_()
    with simulate(model, "fp16") as run:
        y = model(x, x.detach() + 1) if name == "cosine" else model(x)
        y.sum().backward()
    assert not run.unrecognised
    assert torch.equal(y, y.detach().half().float())
    assert torch.equal(x.grad, x.grad.half().float())


LOSSES = {
    "mse": lambda x, y: functional.mse_loss(x, y),
    "l1": lambda x, y: functional.l1_loss(x, y),
    "smooth": lambda x, y: functional.smooth_l1_loss(x, y),
    "huber": lambda x, y: functional.huber_loss(x, y),
    "bce": lambda x, y: functional.binary_cross_entropy_with_logits(x, y.sigmoid()),
    "kl": lambda x, y: functional.kl_div(x.log_softmax(1), y.softmax(1), reduction="batchmean"),
    "smoothing": lambda x, y: functional.cross_entropy(x, y.argmax(1), label_smoothing=0.1),
    "soft targets": lambda x, y: functional.cross_entropy(x, y.softmax(1)),
    "poisson": lambda x, y: functional.poisson_nll_loss(x, y.exp()),
    "margin": lambda x, y: functional.multi_margin_loss(x, y.argmax(1)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_understood_in_both_directions(name):
    x, y = data(4, 5).requires_grad_(), data(4, 5, seed=1)
    with simulate(nn.Identity(), "fp16") as run:
        LOSSES[name](x, y).backward()
    assert not run.unrecognised
    torch.testing.assert_close(x.grad, torch.autograd.grad(LOSSES[name](x, y), x)[0], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("mask", [None, "causal", "bool", "float"])
def test_attention_in_steps_equals_the_fused_kernel_in_fp64(mask):
    q, k, v = (data(2, 2, 4, 3, seed=i).double().requires_grad_() for i in range(3))
    given = {"bool": torch.ones(4, 4).tril().bool(), "float": data(4, 4).double()}.get(mask)
    options = {"attn_mask": given, "is_causal": mask == "causal"}
    grad = data(2, 2, 4, 3, seed=9).double()

    def run():
        out = functional.scaled_dot_product_attention(q, k, v, **options)
        return out, *torch.autograd.grad(out, (q, k, v), grad)

    expected = run()
    with simulate(nn.Identity(), "fp64", expand=True) as r:
        found = run()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    assert {"bmm", "exp"} <= {site.operation for site in r.ledger}


def test_a_tensor_subclass_is_seen_through():
    from torch.testing._internal.two_tensor import TwoTensor

    a, b = data(3), data(3, seed=1)
    with simulate(nn.Identity(), "uniform:fp16") as run:
        found = TwoTensor(a, b) * 0.3
    assert torch.equal(found.a, (a.double() * 0.3).half().float())
    assert torch.equal(found.b, (b.double() * 0.3).half().float())
    assert run.ledger["(outside).mul"].count == 6


def test_questions_with_no_number_for_an_answer_are_not_listed():
    with simulate(nn.Identity(), "fp16") as run:
        torch.histc(data(5)), torch.isposinf(data(3)), data(3).argsort(), data(2).tolist(), data(3).unique().shape
    assert not run.unrecognised
