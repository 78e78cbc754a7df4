"""What callers pass by mistake: a right answer, or a sentence that says what was found and what is allowed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import normstab as ns
from normstab import Arithmetic, Key, Ledger, NormstabError, cast

LAST = 2**64 - 1
ar = Arithmetic("fp16", ledger=Ledger())


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


x = data(4, 5)
simulated = torch.nn.Linear(5, 3)


def simulate(model: Any = simulated, **options: Any) -> None:
    with ns.simulate(model, "fp16", **options):
        model(x)


# What is passed -> words of the sentence that it gets.
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "two scalars": (lambda: ar.add(1.0, 2.0), "one operand at least is a tensor, found 1.0, 2.0"),
    "a root of a scalar": (lambda: ar.sqrt(2.0), "is a tensor, found 2.0"),  # type: ignore[arg-type]
    "text": (lambda: ar.mul(x, "a"), "mul: expected a tensor or a real number, found str: 'a'"),  # type: ignore[arg-type]
    "nothing": (lambda: ar.div(x, None), "found NoneType"),  # type: ignore[arg-type]
    "an array": (lambda: ar.sub(x, np.ones(5)), "found ndarray"),  # type: ignore[arg-type]
    "a complex number": (lambda: ar.add(x, 1j), "found complex"),  # type: ignore[arg-type]
    "a number beyond float64": (lambda: ar.add(x, 10**400), "is no float64 number"),
    "a number between float64s": (lambda: ar.fma(x, 2**60 + 1, x), "is no float64 number"),
    "a power of text": (lambda: ar.power(x, "a"), "power: the exponent"),  # type: ignore[arg-type]
    "a power of a scalar": (lambda: ar.power(2.0, 2), "is a tensor"),  # type: ignore[arg-type]
    "a root of degree 0": (lambda: ar.root(x, 0), "the degree is 0"),
    "a function of a scalar": (lambda: ar.apply(torch.exp, 1.0, operation="exp"), "exp: one operand at least"),
    "a constant of text": (lambda: ar.constant("a", "eps"), "eps: expected"),  # type: ignore[arg-type]
    "max of a scalar": (lambda: ar.max(x, 1.0), "max: expected a tensor, found float: 1.0"),  # type: ignore[arg-type]
    "relu of a scalar": (lambda: ar.relu(1.0), "relu: expected a tensor"),  # type: ignore[arg-type]
    "clamp by text": (lambda: ar.clamp(x, "a"), "clamp: expected"),  # type: ignore[arg-type]
    "clamp by nothing": (lambda: ar.clamp(x), "a bound at least"),
    "an axis of text": (lambda: ar.sum(x, "a"), "sum: dim is a whole number, found str"),  # type: ignore[arg-type]
    "half an axis": (lambda: ar.mean(x, 0.5), "mean: dim is a whole number, found float"),  # type: ignore[arg-type]
    "a list of half axes": (lambda: ar.sum(x, (0, 0.5)), "found float: 0.5"),  # type: ignore[arg-type]
    "out= of whole numbers": (lambda: ar.add(x, x, out=torch.empty(4, 5, dtype=torch.int32)), "out= is int32"),
    "out= too narrow": (
        lambda: ar.add(x, x, out=torch.empty(4, 5, dtype=torch.bfloat16)),
        "out= is bfloat16, which cannot hold fp16; float16, float32, float64 can",
    ),
    "cast to out= too narrow": (lambda: ar.cast(x, out=torch.empty(4, 5, dtype=torch.int32)), "out= is int32"),
    "out= of another shape": (lambda: ar.add(x, x, out=torch.empty(5)), "out= has shape (5,); allowed: that of the"),
    "cast to no tensor": (lambda: ar.cast(x, out=3), "out= takes a tensor, found int: 3"),  # type: ignore[arg-type]
    "out= no tensor": (lambda: ar.add(x, x, out=3), "out= takes a tensor, found int: 3"),  # type: ignore[arg-type]
    "a key that is a number": (lambda: Arithmetic("fp16", key=3), "key is a normstab.Key"),  # type: ignore[arg-type]
    "a ledger that is a dict": (lambda: Arithmetic("fp16", ledger={}), "ledger is a normstab.Ledger"),  # type: ignore[arg-type]
    "a cast's key": (lambda: cast(x, "fp16", rounding="stochastic", key="a"), "key is a normstab.Key"),  # type: ignore[arg-type]
    "a cast's ledger": (lambda: cast(x, "fp16", ledger={}), "ledger is a normstab.Ledger"),  # type: ignore[arg-type]
    "a cast's site": (lambda: cast(x, "fp16", site=None), "cast: site is a name, found NoneType"),  # type: ignore[arg-type]
    "a key's site": (lambda: Key(0, None), "Key: site is a name"),  # type: ignore[arg-type]
    "another key's site": (lambda: Key(0).at(3), "Key: site is a name, found int"),  # type: ignore[arg-type]
    "a seed of text": (lambda: Key("a"), "seed is a whole number in 0 .. 2^64 - 1"),  # type: ignore[arg-type]
    "a seed below 0": (lambda: Key(-1), "found -1"),
    "a step beyond 64 bits": (lambda: Key(0, "", 2**64), "step is a whole number"),
    "a place that is no name": (lambda: ar.at(None), "Arithmetic.at is a name"),  # type: ignore[arg-type]
    "an operation that is no name": (lambda: ar.add(x, x, operation=3), "operation is a name"),  # type: ignore[arg-type]
    "an unknown role": (lambda: ar.in_format("nope"), "unknown role 'nope' (square, sum,"),
    "a counter that is no name": (lambda: ar.ledger.first(3), "a counter is given by its name"),  # type: ignore[union-attr,arg-type]
    "quantize's site": (lambda: ns.quantize(x, "mxfp8", site=None), "quantize: site is a name"),  # type: ignore[arg-type]
    "quantize's axis": (lambda: ns.quantize(x, "mxfp8", axis=None), "axis is a whole number"),  # type: ignore[arg-type]
    "no model": (lambda: simulate(lambda y: y), "simulate: model is a torch.nn.Module, found function"),
    "a simulation's ledger": (lambda: simulate(ledger={}), "simulate: ledger is a normstab.Ledger"),
    "rules that are text": (lambda: simulate(rules="a"), "simulate: rules is a mapping"),
    "rules for numbers": (lambda: simulate(rules={3: "fp16"}), "a rule's key is a name"),
    "a list of scales": (lambda: simulate(loss_scale=[1]), "loss_scale is a number > 0"),
    "a recording of nothing": (lambda: ns.record(None).__enter__(), "record: model"),  # type: ignore[arg-type]
    "norms of nothing": (lambda: ns.replace_norms_(None, "l1"), "replace_norms_: model"),  # type: ignore[arg-type]
    "a range of text": (lambda: ns.scale_range("l2", "fp16", "a"), "scale_range: n is a whole number"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_passed_by_mistake_is_refused_in_a_sentence(case: str) -> None:
    call, words = REFUSED[case]
    with pytest.raises(NormstabError) as raised:
        call()
    assert words in str(raised.value)


def test_numbers_of_numpy_are_numbers() -> None:
    assert torch.equal(ar.add(x, np.float32(1.5)), ar.add(x, 1.5))
    assert torch.equal(ar.mul(np.int64(2), x), ar.mul(2, x))
    assert torch.equal(ar.sum(x, np.int64(1)), ar.sum(x, 1))
    assert Key(np.int64(3), "a", np.uint8(4)) == Key(3, "a", 4)  # type: ignore[arg-type]
    draws = [cast(x, "fp16", rounding="stochastic", key=Key(seed)) for seed in (3, np.int64(3))]  # type: ignore[arg-type]
    assert torch.equal(*draws)
    assert ar.constant(np.float64(0.1), "eps") == float(torch.tensor(0.1).half())


@pytest.mark.parametrize("dims", [(), []])
def test_no_axis_is_every_axis_as_in_torch(dims: Any) -> None:
    assert torch.equal(ar.sum(x, dims), ar.sum(x)) and ar.sum(x, dims).shape == torch.sum(x, dims).shape
    assert torch.equal(ar.mean(x, dims), ar.mean(x)) and ar.mean(x, dims, keepdim=True).shape == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_out_of_a_dtype_that_holds_the_format_gets_the_same_numbers(dtype: torch.dtype) -> None:
    plain = Arithmetic("fp16")
    for out in (torch.empty(4, 5, dtype=dtype), torch.empty(5, 4, dtype=dtype).T):
        assert plain.add(x, 1.5, out=out) is out and torch.equal(out.float(), plain.add(x, 1.5))
        assert plain.cast(x, out=out) is out and torch.equal(out.float(), plain.cast(x))
        assert Arithmetic("native").cast(x, out=out) is out and torch.equal(out, x.to(dtype))


@pytest.mark.parametrize("step", [2**63 - 1, 2**63, 2**63 + 5, LAST])
def test_every_step_of_64_bits(step: int) -> None:
    """The same bits as the readable code's, in every operation that draws, and the step of a first offence."""
    large = 1e5 * x
    ledger = Ledger(inexact=True, histogram=True)
    live = Arithmetic("fp16/stochastic;matmul=fp16", ledger=ledger, key=Key(0, "a", step))
    found = [live.add(x, large), live.sum(x, 1), live.sum(x.double()), live.mean(large, 0), live.matmul(x, x.T)]
    again = Arithmetic("fp16/stochastic;matmul=fp16", key=Key(0, "a", step))
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            found,
            [again.add(x, large), again.sum(x, 1), again.sum(x.double()), again.mean(large, 0), again.matmul(x, x.T)],
            strict=True,
        )
    )
    first = ledger.first("overflow")
    assert first is not None and first.step == step and ledger.first_step(first.site, "overflow") == step
    layer = ns.BatchNorm1d(5)
    layer.arithmetic = live.at("bn")
    assert layer(x).isfinite().all()
    counted = Ledger()
    cast(large, "fp16", ledger=counted, site="s", key=Key(0, "s", step))
    assert counted.first("overflow").step == step  # type: ignore[union-attr]
    quantized = Ledger()
    ns.quantize(x, "mxfp8", rounding="stochastic", key=Key(0, "q", step), ledger=quantized, site="q")
    assert quantized["q"].count == 20


@pytest.mark.parametrize("options", [{"histogram": True}, {"histogram": True, "inexact": True}, {}])
def test_threads_that_share_a_ledger_lose_no_count(options: dict[str, bool]) -> None:
    ledger, times, threads = Ledger(**options), 60, 6
    y = data(6000)
    works: list[Callable[[Arithmetic], Any]] = [
        lambda one: one.add(y, 1.5),
        lambda one: one.cast(y),
        lambda one: one.sum(y.view(60, 100), 1),
        lambda one: Arithmetic("fp32", ledger=ledger).at("wide").cast(y),
        lambda one: cast(y, "fp16", ledger=ledger, site="bare"),
    ]
    one = Arithmetic("fp16/nearest/fp16", ledger=ledger)
    for work in works:  # the rows exist, the kernels are compiled
        work(one)
    single = ledger.drain()

    def run() -> None:
        for _ in range(times):
            for work in works:
                work(one)

    started = [threading.Thread(target=run) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    for site, tally in ledger.items():
        before = single[site]
        assert tally.count == before.count * times * threads, site
        if before.histogram is not None and tally.histogram is not None:
            expected = {binade: n * times * threads for binade, n in before.histogram.binades.items()}
            assert tally.histogram.binades == expected, site
