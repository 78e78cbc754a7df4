"""torch.compile, make_fx, torch.jit.trace, torch.func and second derivatives: computed, or refused in a sentence.

The law: whatever records a computation keeps its roundings, or says that it cannot.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx

import normstab as ns


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def rounded(x):
    return ns.cast(x * 3, "fp16") + 1


@pytest.mark.parametrize("mode", ("real", "fake", "symbolic"))
def test_make_fx_records_the_rounding(mode):
    x = torch.randn(8)
    graph = make_fx(rounded, tracing_mode=mode)(x)
    assert "normstab.cast" in graph.code
    assert torch.equal(graph(x + 1), rounded(x + 1))


@pytest.mark.filterwarnings("ignore")
def test_jit_trace_records_the_rounding():
    x = torch.randn(8)
    traced = torch.jit.trace(rounded, x)
    assert "normstab::cast" in str(traced.graph)
    assert torch.equal(traced(x + 1), rounded(x + 1))


def test_an_arithmetic_under_make_fx_is_refused_rather_than_lost():
    ar = ns.Arithmetic("fp16")
    with pytest.raises(ns.NormstabError, match="make_fx"):
        make_fx(lambda x: ar.add(x, x))(torch.randn(8))


def test_a_step_that_changes_compiles_at_most_twice():
    counter = CompileCounter()
    draw = torch.compile(lambda x, key: ns.cast(x, "fp16", rounding="stochastic", key=key), backend=counter)
    x = torch.rand(100)
    for step in (0, 1, 5, 6, 7, 2**40, 8):
        key = ns.Key(3, "here", step)
        assert torch.equal(draw(x, key), ns.cast(x, "fp16", rounding="stochastic", key=key))
    assert counter.frame_count <= 3


def test_the_upper_half_of_the_steps_is_kept_in_a_graph():
    key = ns.Key(3, "here", 2**64 - 5)
    draw = torch.compile(lambda x: ns.cast(x, "fp16", rounding="stochastic", key=key), backend="eager")
    x = torch.rand(100)
    assert torch.equal(draw(x), ns.cast(x, "fp16", rounding="stochastic", key=key))


@pytest.mark.parametrize("method", ("add", "sub", "mul", "div", "max", "min"))
def test_a_compiled_function_may_call_an_arithmetic(method):
    ar = ns.Arithmetic("fp16", ledger=ns.Ledger())

    def step(a, b):
        return getattr(ar, method)(a * 2, b) * 3

    a, b = torch.randn(8), torch.rand(8)
    assert torch.equal(torch.compile(step, backend="eager")(a, b), step(a, b))


def test_an_arithmetic_in_one_whole_graph_is_refused_with_the_reason():
    ar = ns.Arithmetic("fp16")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="normstab: an emulated operation counts"):
        torch.compile(lambda a: ar.add(a, a), backend="eager", fullgraph=True)(torch.randn(8))


def test_a_native_arithmetic_is_traced_whole():
    ar = ns.Arithmetic("native")
    a = torch.randn(8)
    assert torch.equal(torch.compile(lambda a: ar.add(a, a), backend="eager", fullgraph=True)(a), a + a)


@pytest.mark.parametrize("norm", ("l2", "l1", "top2"))
def test_a_compiled_network_with_an_emulated_layer_computes_and_differentiates(norm):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    ns.replace_norms_(net, norm)
    net[1].arithmetic = ns.Arithmetic("fp16", ledger=ns.Ledger())
    x = torch.randn(5, 4)
    expected = net(x)
    expected.sum().backward()
    gradient, net[0].weight.grad = net[0].weight.grad, None
    found = torch.compile(net, backend="eager")(x)
    found.sum().backward()
    assert torch.equal(found, expected) and torch.equal(net[0].weight.grad, gradient)


def test_a_compiled_cast_that_counts_counts():
    ledger = ns.Ledger()
    counted = torch.compile(lambda x: ns.cast(x * 2, "fp16", ledger=ledger, site="here") + 1, backend="eager")
    counted(torch.ones(8))
    assert ledger["here"].count == 8


@pytest.mark.parametrize("transform", ("grad", "jvp", "vmap"))
def test_torch_func_is_refused_by_layers_and_arithmetics(transform):
    layer = ns.LayerNorm(4)
    layer.arithmetic = "fp16"
    ar, x = ns.Arithmetic("fp16"), torch.randn(3, 4)
    transformed = {
        "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(x),
        "jvp": lambda f: torch.func.jvp(f, (x,), (x,)),
        "vmap": lambda f: torch.func.vmap(f)(x),
    }[transform]
    for function in (layer, lambda x: ar.add(x, x), lambda x: ar.sum(x)):
        with pytest.raises(ns.NormstabError, match=r"torch\.func"):
            transformed(function)


def test_the_second_derivative_through_a_rounded_gradient_is_that_of_straight_through():
    x = torch.tensor([1.5, -2.25, 3.0], requires_grad=True)
    y = (ns.cast(x, "fp16", gradient="bf16") ** 3).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    assert first.requires_grad
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, ns.cast(6 * x.detach(), "bf16"))


def test_a_layer_refuses_second_derivatives_rather_than_dropping_them():
    layer = ns.LayerNorm(4)
    layer.arithmetic = "fp16"
    x = torch.randn(3, 4, requires_grad=True)
    (first,) = torch.autograd.grad((layer(x) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()
