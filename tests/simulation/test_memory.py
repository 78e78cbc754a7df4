"""What a simulated step holds in memory: in a network of 16 bits hardly more than the plain one, and the same bits."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normstab as ns
from normstab.norms.modules import BatchNorm2d, RMSNorm
from normstab.simulation import record
from tests.simulation.allocations import most_allocated

CHANNELS, DEPTH = 8, 8
# Norms by the fused kernels, op by op, by torch's own kernel, and wherever autocast has them.
MACHINES = ["fp16", "uniform:fp16", "half", "amp-fp16", "bf16/stochastic"]
CHECKPOINTS = [None, True, False]


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), norm

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Network(nn.Module):
    """Blocks one after another, in pairs that may be checkpointed."""

    def __init__(self, *, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        pairs = [nn.Sequential(*(Block(nn.BatchNorm2d(CHANNELS)) for _ in range(2))) for _ in range(DEPTH // 2)]
        self.pairs = nn.ModuleList(pairs)

    def forward(self, x: Tensor) -> Tensor:
        for pair in self.pairs:
            x = pair(x) if self.reentrant is None else checkpoint(pair, x, use_reentrant=self.reentrant)
        return x


def held(context: Any, reentrant: bool | None) -> int:
    """Return what a step holds at most beyond what there is between two plain steps."""
    torch.manual_seed(0)
    model, x = Network(reentrant=reentrant), torch.randn(8, CHANNELS, 16, 16, requires_grad=True)

    def step() -> None:
        model(x).float().square().mean().backward()
        model.zero_grad()

    def steps() -> None:
        with context(model):
            step()
            step()

    step()
    gc.collect()
    return most_allocated(steps)


@pytest.mark.parametrize("reentrant", CHECKPOINTS, ids=["kept", "reentrant", "not reentrant"])
def test_a_simulated_step_holds_at_most_a_quarter_more_than_the_plain_one(reentrant):
    plain = held(lambda model: contextlib.nullcontext(), reentrant)
    found = {name: held(lambda model, name=name: ns.simulate(model, name), reentrant) for name in MACHINES}
    found["record"] = held(lambda model: record(model, every=1), reentrant)
    assert {name: size / plain for name, size in found.items() if size > 1.25 * plain} == {}


def test_no_float32_copy_of_a_parameter_stays_in_a_network_of_16_bits():
    model, x = nn.Linear(4, 4), torch.ones(2, 4)
    for precision, kept in (("fp16", 0), ("tf32", 2)):
        with ns.simulate(model, precision) as run:
            model(x).sum().backward()
            assert sum(held.copy is not None for held in run.parameters) == kept


@pytest.mark.parametrize("precision", ["fp16", "fp16/stochastic", "fp16/stochastic;parameter=e5m2"])
def test_what_a_forward_writes_to_a_parameter_leaves_the_rest_of_it_and_its_counts_as_they_were(precision):
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(0.1, 0.9, 16))

        def forward(self, x: Tensor) -> Tensor:
            y = self.weight.detach() * x
            with torch.no_grad():
                self.weight[0] = 0.5
            return y

    model = Writes()
    before = model.weight.detach().clone()
    with ns.simulate(model, precision) as run:
        model(torch.ones(16))
    assert model.weight[0] == 0.5 and torch.equal(model.weight[1:], before[1:])
    assert run.ledger["weight"].count == 16


@pytest.mark.parametrize(
    "precision", ["fp16", "fp16/stochastic", "fp16/nearest/fp16", "fp16;norm=wide", "e4m3;norm=wide"]
)
@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm2d(3),
        lambda: nn.BatchNorm2d(3).eval(),
        lambda: nn.GroupNorm(3, 3),
        lambda: nn.LayerNorm(5),
        lambda: RMSNorm(5, eps=1e-5),  # torch's own computes in float32 where its input has 16 bits
        lambda: BatchNorm2d(3, norm="l1"),
        lambda: BatchNorm2d(3, norm="linf"),
    ],
    ids=["batch", "evaluated batch", "group", "layer", "rms", "l1", "linf"],
)
def test_a_norm_that_keeps_16_bits_for_its_gradient_has_the_bits_and_counts_of_one_that_keeps_32(precision, norm):
    grad = torch.arange(450).remainder(13).sub(6).div(4).view(6, 3, 5, 5)  # numbers of every format
    grads = {dtype: grad.to(dtype) for dtype in (torch.float32, torch.float16)}
    found = []
    for machine in (precision, f"{precision};casts=ignore"):
        torch.manual_seed(0)
        model, x = norm(), torch.randn(6, 3, 5, 5).mul_(3).requires_grad_()
        with ns.simulate(model, machine) as run:
            output = model(x)
            output.backward(grads[output.dtype])
        found.append(([output.float(), x.grad, *(p.grad for p in model.parameters())], run.ledger))
    (kept, counts), (wide, counts_too) = found
    assert all(torch.equal(a, b) for a, b in zip(kept, wide, strict=True))
    assert dict(counts) == dict(counts_too)
