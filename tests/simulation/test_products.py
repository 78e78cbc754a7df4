"""Convolutions and products: one rounding of torch's own result, or an emulated accumulator."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import normstab as ns
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Site
from normstab.simulation import simulate
from normstab.simulation.aten.parts.grouped_products import grouped_mm

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


class Experts(nn.Module):
    """Four experts on rows sorted by expert, one without a row: by torch's grouped product, or one by one."""

    def __init__(self, *, is_grouped: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 8, 16))
        self.is_grouped = is_grouped
        self.register_buffer("ends", torch.tensor([3, 3, 9, 12], dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.is_grouped:
            return torch._grouped_mm(x, self.weight, offs=self.ends)
        starts = [0, *self.ends.tolist()]
        return torch.cat([x[starts[i] : starts[i + 1]] @ self.weight[i] for i in range(4)])


@pytest.mark.parametrize(
    "machine", ["half", "bfloat16", "uniform:fp16", "fp16;matmul=fp16:sequential", "mxfp8", "fp8-rowwise", "int8"]
)
def test_a_grouped_product_is_one_product_for_each_expert(machine: str) -> None:
    found = []
    for is_grouped in (True, False):
        model = Experts(is_grouped=is_grouped)
        x = torch.randn(12, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with ns.simulate(model, machine) as run:
            y = model(x)
            y.float().square().sum().backward()
        assert not run.unrecognised
        found.append((y.detach(), x.grad, model.weight.grad, run.ledger["mm[forward]"].count))
    (y, d_x, d_weight, count), expected = found
    assert torch.equal(y, expected[0]) and torch.equal(d_x, expected[1])
    assert torch.equal(d_weight, expected[2]) and count == expected[3] == y.numel()


def test_grouped_products_have_the_shapes_and_numbers_of_torch_s() -> None:
    torch.manual_seed(0)
    ends = torch.tensor([8, 8, 24], dtype=torch.int32)  # torch wants strides of 16 bytes
    experts = torch.randn(3, 8, 16)
    for a, b, offs in (
        (torch.randn(24, 8), experts, ends),
        (experts, torch.randn(16, 24), ends),
        (torch.randn(8, 24), torch.randn(24, 16), ends),
        (torch.randn(3, 8, 8), experts, None),
    ):
        with ns.simulate(nn.Identity(), "fp32"):
            found = torch._grouped_mm(a.bfloat16(), b.bfloat16(), offs=offs)
        wide = grouped_mm(a.bfloat16().double(), b.bfloat16().double(), offs)
        plain = torch._grouped_mm(a.bfloat16(), b.bfloat16(), offs=offs)
        assert found.shape == plain.shape == wide.shape
        assert (plain.double() - wide).abs().max() <= 2.0**-8 * wide.abs().max()  # one rounding to eight bits
