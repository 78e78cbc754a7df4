"""Activation checkpointing: recomputed activations are those of the forward, bit for bit, and are counted apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import checkpoint

import normstab as ns

BOTH = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
MACHINES = ["fp16/stochastic", "e6m9/stochastic", "bf16", "fp16;casts=ignore", "amp-bf16"]


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Blocks(nn.Module):
    """Layers that are called twice in a forward, with functions in between, each perhaps in a checkpoint."""

    def __init__(self, how: str, *, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.reentrant = how, reentrant
        self.first, self.second, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6)

    def keep(self, function: Callable[..., Tensor], x: Tensor, name: str) -> Tensor:
        """Call a function, in a checkpoint where `how` names it."""
        if name not in self.how.split("+"):
            return function(x)
        return checkpoint.checkpoint(function, x, use_reentrant=self.reentrant)

    def inner(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.first(x)) * 0.3

    def outer(self, x: Tensor) -> Tensor:
        return self.second(self.keep(self.inner, x * 0.9, "inner")).sin() * 1.7

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.keep(lambda t: t * 1.1 + t.square(), x, "function")
            x = self.keep(nn.Sequential(self.norm, nn.Tanh()), x, "module")
            x = self.keep(self.outer, x, "outer")
        return x


Trained = tuple[list[Tensor], list[Tensor], ns.Ledger]


def trained(how: str, precision: str, *, reentrant: bool, steps: int = 1) -> Trained:
    """Return outputs and gradients of inputs, gradients of parameters, and what was counted, of some steps."""
    model, found, gradients = Blocks(how, reentrant=reentrant), [], []
    with ns.simulate(model, precision, ledger=ns.Ledger(inexact=True, histogram=True)) as run:
        for step in range(steps):
            x = data(5, 6, seed=step).requires_grad_()
            y = model(x)
            y.float().square().sum().backward()
            found += [y.detach(), x.grad]
            gradients += [p.grad.clone() for p in model.parameters()]
    return found, gradients, run.ledger


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


HOW = ["module", "function", "outer", "inner", "outer+inner", "module+function+outer+inner"]


@BOTH
@pytest.mark.parametrize("precision", MACHINES)
@pytest.mark.parametrize("how", HOW)
def test_a_checkpoint_changes_no_bit_and_no_count(how: str, precision: str, reentrant: bool) -> None:
    expected, gradients, plain = trained("", precision, reentrant=reentrant)
    found, checkpointed, ledger = trained(how, precision, reentrant=reentrant)
    if not reentrant:
        assert same(found, expected) and same(checkpointed, gradients)
        assert list(ledger.items()) == list(plain.items())
    else:
        # torch adds the gradients of one parameter up in float32, checkpoint by checkpoint, not in the graph: other
        # calls of a site are the n-th, and draw its bits.
        kept = slice(None, None, 2 if "stochastic" in precision else 1)
        assert same(found[kept], expected[kept])
        if not precision.startswith("amp"):  # where autocast casts weights for each checkpoint
            assert forward(ledger) == forward(plain)
    assert len(plain.recomputed) == 0
    assert ledger.recomputed.total().count > 0 or (how, precision) == ("module", "amp-bf16")  # all float32
    for site, tally in ledger.recomputed.items():
        assert site.direction == "forward" and tally.count <= 2 * ledger[site].count


def forward(ledger: ns.Ledger) -> dict[ns.Site, ns.Tally]:
    return {site: tally for site, tally in ledger.items() if site.direction == "forward"}


def test_every_result_that_is_recomputed_is_the_one_before() -> None:
    seen: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        y = (x * 1.1).exp() * 0.7
        seen.append(y.detach().clone())
        return y

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = checkpoint.checkpoint(function, x, use_reentrant=True)
            return x

    x = data(4, 4).requires_grad_()
    model = Twice()
    with ns.simulate(model, "fp16/stochastic"):
        model(x).float().sum().backward()
    assert same(seen[3:], seen[2::-1])


@BOTH
def test_steps_that_went_on_in_between_are_gone_back_to(reentrant: bool) -> None:
    """Two forwards, each a step where there is no optimizer, then one backward for both."""
    found = []
    for how in ("", "function"):
        model = Blocks(how, reentrant=reentrant)
        inputs = [data(5, 6, seed=seed).requires_grad_() for seed in (0, 1)]
        with ns.simulate(model, "fp16/stochastic") as run:
            outputs = [model(x) for x in inputs]
            sum(y.float().sum() for y in reversed(outputs)).backward()
            assert run.step == 1
        found.append([*outputs, *(x.grad for x in inputs)])
    assert same(*found)


@BOTH
def test_own_layers_alone_in_a_checkpoint(reentrant: bool) -> None:
    found, ledgers = [], []
    for is_checkpointed in (False, True):
        layer = ns.BatchNorm1d(6)
        ledger = ns.Ledger()
        layer.arithmetic = ns.Arithmetic("fp16/stochastic", ledger=ledger, key=ns.Key(3)).at("bn")
        x = data(8, 6).requires_grad_()
        y = x
        for _ in range(2):
            y = checkpoint.checkpoint(layer, y, use_reentrant=reentrant) if is_checkpointed else layer(y)
        y.square().sum().backward()
        found.append([y, x.grad] if reentrant else [y, x.grad, layer.weight.grad])
        ledgers.append(ledger)
    assert same(*found)
    plain, counted = ({s: t for s, t in one.items() if "running" not in s.operation} for one in ledgers)
    assert plain == counted and ledgers[1].recomputed["bn"].count > 0


@BOTH
def test_recordings_and_reports_count_what_is_recomputed_apart(reentrant: bool) -> None:
    counts = []
    for how in ("", "outer"):
        model = Blocks(how, reentrant=reentrant)
        with ns.record(model) as log:
            model(data(5, 6).requires_grad_()).sum().backward()
        counts.append(sum(t.count for s, t in log.ledger.items() if s.direction == "forward"))
    assert counts[0] == counts[1]
    with ns.simulate(model, "fp16") as run:
        model(data(5, 6).requires_grad_()).sum().backward()
    n = run.ledger.recomputed.total().count
    assert n and f"{n} results computed once more in backward passes, counted apart" in run.report()
    run.ledger.drain()
    assert run.ledger.recomputed.total().count == 0


def test_an_observer_is_shown_each_result_once() -> None:
    shown = []
    for how in ("", "function"):
        seen: list[str] = []
        model: Any = Blocks(how, reentrant=False)
        with ns.simulate(model, "fp16", observer=lambda site, value, seen=seen: seen.append(str(site))):
            model(data(5, 6).requires_grad_()).float().sum().backward()
        shown.append(seen)
    assert shown[0] == shown[1]


@BOTH
def test_what_is_not_understood_is_listed_once(reentrant: bool) -> None:
    class Segments(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint.checkpoint(self.sums, x, use_reentrant=reentrant) * 2

        def sums(self, x: Tensor) -> Tensor:
            return torch.segment_reduce(x * 1.5, "sum", lengths=torch.tensor([2, 3])).exp()

    model = Segments()
    with ns.simulate(model, "fp16") as run:
        model(data(5, 6).requires_grad_()).float().sum().backward()
    assert run.unrecognised["segment_reduce"] == 1
