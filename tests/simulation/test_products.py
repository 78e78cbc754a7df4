"""Convolutions and products: one rounding of torch's own result, or an emulated accumulator."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Site
from normstab.simulation import simulate

GEOMETRIES = {
    "plain": (nn.Conv2d(3, 4, 3), (2, 3, 6, 5)),
    "strided": (nn.Conv2d(3, 4, 3, stride=(2, 1), padding=1), (2, 3, 7, 6)),
    "dilated": (nn.Conv2d(2, 4, (3, 2), dilation=2, padding=(2, 1), bias=False), (1, 2, 8, 7)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 5, 5)),
    "1d": (nn.Conv1d(3, 2, 4, stride=2, padding=3), (2, 3, 9)),
    "3d": (nn.Conv3d(2, 3, 2, stride=2), (1, 2, 4, 5, 4)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (2, 3, 4, 5)),
    "transposed grouped": (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2, dilation=2), (2, 4, 5)),
}


def integers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.fixture(params=GEOMETRIES)
def layer_and_input(request):
    layer, shape = GEOMETRIES[request.param]
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(integers(*p.shape, seed=i))
            p.grad = None
    return layer, integers(*shape, seed=9).requires_grad_()


@pytest.mark.parametrize("matmul", ["fp32:sequential", "exact", "fp64:lanes8"])
def test_an_emulated_convolution_sums_the_same_products(layer_and_input, matmul):
    layer, x = layer_and_input
    expected = layer(x)
    grad = integers(*expected.shape, seed=5)
    wanted = torch.autograd.grad(expected, [x, *layer.parameters()], grad)
    with simulate(layer, f"fp32;matmul={matmul}") as run:
        found = layer(x)
        got = torch.autograd.grad(found, [x, *layer.parameters()], grad)
    assert torch.equal(found, expected), "small integers are exact in every order"
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert not run.unrecognised


def test_a_narrow_accumulator_overflows_where_a_wide_one_does_not():
    layer = nn.Linear(64, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(32.0)
    x = torch.cat([torch.full((1, 32), 64.0), torch.full((1, 32), -64.0)], 1)
    found = {}
    for matmul in ("native", "fp16:sequential"):
        with simulate(layer, f"fp16;matmul={matmul}") as run:
            found[matmul] = layer(x).item()
        assert (run.ledger.total().overflow > 0) is (matmul != "native")
    assert found["native"] == 0.0
    assert found["fp16:sequential"] != 0.0


def test_an_emulated_linear_layer_is_the_arithmetics_own_product_and_addition():
    layer = nn.Linear(33, 5)
    x = torch.randn(4, 33, generator=torch.Generator().manual_seed(0))
    spec = "bf16;matmul=fp16:blocked8"
    with simulate(layer, spec), torch.no_grad():
        found = layer(x)
    ar = Arithmetic(spec)
    a, w, b = (ar.cast(t.detach()) for t in (x, layer.weight, layer.bias))
    assert torch.equal(found, ar.add(ar.matmul(a, w.t()), b))


def test_native_accumulation_is_one_rounding_of_torchs_result():
    layer = nn.Conv2d(3, 8, 3)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with simulate(layer, "bf16"), torch.no_grad():
        found = layer(x)
    half = [t.detach().bfloat16().float() for t in (x, layer.weight, layer.bias)]
    assert torch.equal(found, functional.conv2d(*half).bfloat16().float())


def test_the_three_gradients_of_a_convolution_have_their_own_sites():
    layer = nn.Conv2d(2, 3, 3)
    x = torch.randn(2, 2, 5, 5, requires_grad=True)
    with simulate(layer, "fp16") as run:
        layer(x).sum().backward()
    counts = {
        name: run.ledger[Site("", f"convolution_backward.{name}", "backward")].count
        for name in ("input", "weight", "bias")
    }
    assert counts == {"input": x.numel(), "weight": layer.weight.numel(), "bias": 3}


@pytest.mark.parametrize("name", ["mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv", "addbmm"])
def test_every_product_is_rounded_and_counted(name):
    a, b, v = integers(3, 4), integers(4, 5, seed=1), integers(4, seed=2)
    inputs = {
        "mm": (a, b),
        "bmm": (a[None], b[None]),
        "mv": (a, v),
        "dot": (v, v),
        "addmm": (integers(3, 5), a, b),
        "baddbmm": (integers(1, 3, 5), a[None], b[None]),
        "addmv": (integers(3), a, v),
        "addbmm": (integers(3, 5), a[None], b[None]),
    }[name]
    expected = getattr(torch, name)(*inputs)
    for matmul in ("native", "fp32:pairwise"):
        with simulate(nn.Identity(), f"uniform:fp16;matmul={matmul}") as run:
            found = getattr(torch, name)(*(x / 2 for x in inputs)) * 0.0 + getattr(torch, name)(*inputs)
        assert torch.equal(found, expected)
        assert run.ledger[f"(outside).{name}"].count
        assert not run.unrecognised
