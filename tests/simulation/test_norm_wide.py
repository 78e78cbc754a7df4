"""`norm=wide`: a norm is float32 inside and rounds what leaves it, as torch's own kernels on 16-bit tensors do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import normstab as ns

DTYPES = {torch.float16: "fp16;norm=wide", torch.bfloat16: "bf16;norm=wide"}
LAYERS = {
    "layer": (nn.LayerNorm(30), (8, 30)),
    "rms": (nn.RMSNorm(30, eps=1e-3), (8, 30)),
    "group": (nn.GroupNorm(2, 6), (4, 6, 5, 5)),
    "batch": (nn.BatchNorm2d(6), (4, 6, 5, 5)),
    "instance": (nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (4, 6, 5, 5)),
}


def steps_apart(ours: Tensor, half: Tensor) -> int:
    """Return how many numbers of the 16-bit dtype lie between two tensors, at most."""
    bits = [x.to(half.dtype).contiguous().view(torch.int16).to(torch.int32) for x in (ours, half)]
    ordered = [torch.where(b < 0, -(b & 0x7FFF), b) for b in bits]
    return int((ordered[0] - ordered[1]).abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_statistics_are_those_of_torch_s_own_half(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, shape = copy.deepcopy(LAYERS[name])
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    half, start = copy.deepcopy(layer).to(dtype), copy.deepcopy(layer.state_dict())
    x = 100 * torch.randn(shape)
    expected = half(x.to(dtype))
    with ns.simulate(layer, DTYPES[dtype]) as run:
        found = layer(x)
    assert found.dtype == dtype
    if name in ("layer", "rms"):
        assert torch.equal(found, expected)
    # torch's batch and group norms add beta - mean gamma / sigma to x gamma / sigma: results near zero are off by more.
    wide = copy.deepcopy(LAYERS[name][0])
    wide.load_state_dict(start)
    exact = wide(x.to(dtype).float())
    assert (found.float() - expected.float()).norm() <= 2 * (expected.float() - exact).norm()
    for ours, torch_s in zip(layer.buffers(), half.buffers(), strict=True):
        assert ours.is_floating_point() is False or steps_apart(ours, torch_s) <= 1
    assert not run.unrecognised


@pytest.mark.parametrize("name", LAYERS)
def test_each_gradient_is_rounded_once_at_a_site_of_its_own(name: str) -> None:
    torch.manual_seed(0)
    layer, shape = copy.deepcopy(LAYERS[name])
    half = copy.deepcopy(layer).half()
    x, g = torch.randn(shape), torch.randn(shape).half()
    leaves = x.clone().requires_grad_(), x.half().requires_grad_()
    with ns.simulate(layer, "fp16;norm=wide") as run:
        layer(leaves[0]).backward(g)
    half(leaves[1]).backward(g)
    wide = copy.deepcopy(LAYERS[name][0])
    exact = x.half().float().requires_grad_()
    wide(exact).backward(g.float())
    ours = (leaves[0].grad - exact.grad).norm()
    assert ours <= 2 * (leaves[1].grad.float() - exact.grad).norm()
    names = {site.operation for site in run.ledger if site.direction == "backward"}
    assert not {"project", "subtract"} & names
    assert {"input.grad", "gamma.grad"} <= names or name == "rms"  # of which torch itself makes casts and products


def test_squares_that_overflow_half_do_no_harm_inside() -> None:
    torch.manual_seed(0)
    layer, x = nn.LayerNorm(64), 300 * torch.randn(4, 64)
    with ns.simulate(layer, "fp16") as each:
        rounded = layer(x)
    with ns.simulate(layer, "fp16;norm=wide") as wide:
        kept = layer(x)
    assert each.first("overflow") is not None and rounded.float().abs().max() < 0.1
    assert wide.first("overflow") is None and kept.float().abs().max() > 1


@pytest.mark.parametrize("norm", ["l2", "l1", "linf", "range", "lp3"])
def test_own_layers_are_float32_inside(norm: str) -> None:
    torch.manual_seed(0)
    layer = ns.BatchNorm2d(6, norm=norm)
    layer.arithmetic = ns.Arithmetic("fp16;norm=wide")
    native = ns.BatchNorm2d(6, norm=norm)
    x = (100 * torch.randn(4, 6, 5, 5)).half().float()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = layer(a), native(b)
    assert torch.equal(found, expected.half().float())
    g = torch.randn_like(x).half().float()
    found.backward(g)
    expected.backward(g)
    # One rounding to half precision is 2^-11 of each element; float32 inside rounds 2^13 times finer.
    assert (a.grad - b.grad).norm() <= 2.0**-10 * b.grad.norm()
    assert torch.equal(a.grad, a.grad.half().float())
    assert torch.equal(layer.running_var, layer.running_var.half().float())


def test_float32_is_torch_s_own() -> None:
    torch.manual_seed(0)
    layer, x = nn.LayerNorm(30), torch.randn(8, 30)
    with ns.simulate(layer, "fp32;norm=wide"):
        found = layer(x)
    assert torch.allclose(found, layer(x), rtol=2.0**-21, atol=2.0**-21)


@pytest.mark.parametrize("shape", [(16, 5), (4, 5, 7), (4, 5, 6, 6)])
@pytest.mark.parametrize("machine", ["half", "bfloat16"])
def test_batch_norm_is_torchs_kernel_in_float32_with_one_rounding(machine: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    dtype = torch.float16 if machine == "half" else torch.bfloat16
    x, g = torch.randn(shape).to(dtype).float(), torch.randn(shape).to(dtype).float()
    layer = (nn.BatchNorm1d if len(shape) < 4 else nn.BatchNorm2d)(5)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2).copy_(layer.weight.to(dtype))
    plain = copy.deepcopy(layer)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    with ns.simulate(layer, machine):
        y = layer(a)
        y.backward(g.to(y.dtype))
    expected = plain(b)
    expected.backward(g)
    assert torch.equal(y.float(), expected.detach().to(dtype).float())
    assert torch.equal(a.grad, b.grad.to(dtype).float())
    assert torch.equal(layer.weight.grad, plain.weight.grad.to(dtype).float())
    assert torch.equal(layer.running_var, plain.running_var.to(dtype).float())
