"""Gradients of several backward passes add up in the format in which the machine stores its parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normstab as ns
from normstab.errors import NormstabError
from normstab.norms.replace import replace_norms_

DTYPES = {"half": torch.float16, "bfloat16": torch.bfloat16, "fp16;master=off": torch.float16}
BACKWARDS = 12


class Network(nn.Module):
    """Two layers of small whole numbers, whose products and sums are exact in every format: only `.grad` rounds."""

    def __init__(self, recomputed: str = "") -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 2)
        self.tied = nn.Linear(5, 2, bias=False)
        self.tied.weight = self.last.weight
        self.recomputed = recomputed
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randint(0, 2, p.shape, generator=torch.Generator().manual_seed(p.numel())))

    def forward(self, x: Tensor) -> Tensor:
        if self.recomputed:
            x = checkpoint(self.first, x, use_reentrant=self.recomputed == "reentrant")
        else:
            x = self.first(x)
        return self.last(x) + self.tied(x)


def batches() -> list[Tensor]:
    """Return inputs that give great gradients first, of few digits, and then small ones."""
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randint(0, 4, (3, 4), generator=generator).float() for _ in range(BACKWARDS)]
    return [64 * x if i < 4 else x for i, x in enumerate(drawn)]


def gradients_after_each(model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    """Return the gradients of all parameters after each of several backward passes, in float32."""
    found: list[Tensor] = []
    for x in batches():
        model(x.to(dtype).requires_grad_()).sum().backward()
        found += [p.grad.float().clone() for p in model.parameters()]
    return found


def assert_equal_gradients(model: nn.Module, half: nn.Module) -> None:
    for ours, theirs in zip(model.parameters(), half.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert ours.grad.dtype == torch.float32 and torch.equal(ours.grad, theirs.grad.float())


@pytest.mark.parametrize(("recomputed", "has_optimizer"), [("", False), ("reentrant", True), ("not reentrant", False)])
@pytest.mark.parametrize("precision", DTYPES)
def test_without_masters_gradients_add_up_as_in_torchs_own_16_bits(precision, has_optimizer, recomputed) -> None:
    model, dtype = Network(recomputed), DTYPES[precision]
    half = copy.deepcopy(model).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if has_optimizer else None
    with ns.simulate(model, precision, optimizer=optimizer, losses=True) as run:
        ours = gradients_after_each(model, torch.float32)
    theirs, exact = gradients_after_each(half, dtype), gradients_after_each(Network(), torch.float32)
    assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
    assert not all(map(torch.equal, ours, exact))
    for name, module in (("first", model.first), ("last", model.last)):
        numbers = sum(p.numel() for p in module.parameters())
        tally = run.ledger[f"{name}.add[backward]"]
        assert tally.count >= (BACKWARDS - 1) * numbers


@pytest.mark.parametrize("precision", ["half", "bfloat16"])
def test_gradients_of_two_forwards_meet_in_16_bits_too(precision) -> None:
    model, dtype = nn.Linear(1, 1), DTYPES[precision]
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(0.0)
    half = copy.deepcopy(model).to(dtype)
    inputs = [torch.full((1, 1), v) for v in (1.0, 1.0, 2048.0)]
    with ns.simulate(model, precision, losses=True) as run:
        sum(model(x).sum() for x in inputs).backward()
    sum(half(x.to(dtype)).sum() for x in inputs).backward()
    assert_equal_gradients(model, half)
    assert model.weight.grad.item() == 2048 and run.ledger["add[backward]"].absorbed > 0


def test_the_first_gradient_is_no_sum_and_neither_is_that_of_a_graph_of_gradients() -> None:
    model = nn.Linear(2, 1, bias=False)
    with ns.simulate(model, "half") as run:
        for i in range(2):
            loss = model(torch.ones(1, 2)).square().sum()
            torch.autograd.grad(loss, list(model.parameters()))
            if i == 0:
                model(torch.ones(1, 2)).sum().backward()
    assert "add[backward]" not in [str(site) for site in run.ledger]


def test_sums_that_keep_their_graph_are_rounded() -> None:
    model = nn.Linear(1, 1, bias=False)
    with ns.simulate(model, "half") as run:
        for value in (2048.0, 1.0):
            model(torch.full((1, 1), value)).sum().backward(create_graph=True)
    assert model.weight.grad.item() == 2048 and run.ledger["add[backward]"].count == 1


@pytest.mark.parametrize("precision", ["fp16", "bf16", "amp-fp16", "amp-bf16", "half;master=on", "mxfp8"])
def test_with_masters_gradients_add_up_in_float32(precision) -> None:
    model = nn.Linear(1, 1, bias=False)
    with ns.simulate(model, precision) as run:
        for value in (2048.0, 1.0, 1.0):
            model(torch.full((1, 1), value)).sum().backward()
    assert model.weight.grad.item() == 2050 and "add[backward]" not in [str(site) for site in run.ledger]


@pytest.mark.parametrize("precision", ["fp16", "amp-fp16", "half", "uniform:fp16"])
def test_a_rule_about_accumulate_grad_says_in_what_gradients_add_up(precision) -> None:
    found = {}
    for kept in ("fp32", "bf16"):
        model = nn.Linear(1, 1, bias=False)
        with ns.simulate(model, precision, rules={"op:accumulate_grad": kept}) as run:
            for value in (2048.0, 1.0, 1.0, 4.0):
                model(torch.full((1, 1), value)).sum().backward()
        found[kept] = model.weight.grad.item()
        assert run.ledger["add[backward]"].count == 3
    has_masters = precision in ("fp16", "amp-fp16")
    # Without masters each wide sum comes back to fp16: 2048 + 1 = 2049 lies between two numbers, and goes to the even.
    assert found == {"fp32": 2054 if has_masters else 2052, "bf16": 2048}
    with (
        pytest.raises(NormstabError, match="no operation met it"),
        ns.simulate(model, precision, rules={"op:accumulate_grad": "bf16"}),
    ):
        model.zero_grad()
        model(torch.ones(1, 1)).sum().backward()


def test_a_module_kept_wide_adds_up_wide_and_a_norm_of_ours_as_the_code_outside() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.LayerNorm(1))
    replace_norms_(model, "l2")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    with ns.simulate(model, "half", rules={"1": "native"}) as run:
        for value in (2048.0, 1.0, 1.0):
            (model[1](model[0](torch.full((1, 1), value))) + 0 * model(torch.ones(1, 1))).sum().backward()
    assert model[0].weight.grad.item() == 2048 and model[1].weight.grad.item() == 2050
    assert "1.add[backward]" not in [str(site) for site in run.ledger]
    assert run.ledger["(outside).add[backward]"].count >= 2 * 2
