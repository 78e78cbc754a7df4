"""Tensors whose memory does not hold what they read: written out, or refused by name, at one door.

The law: f(x) equals f of a plain copy of x, or says in one sentence that it is not defined for such an x.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import normstab as ns

WEIGHT = torch.arange(12.0).view(3, 4)
PRECISIONS = ("fp16", "fp16/up", "fp16;matmul=fp16:sequential", "fp16;mean=welford")


def made_lazily():
    """Return views that torch negates or zeroes only when they are read, each with a plain copy."""
    values = torch.arange(1.0, 7.0).view(2, 3)
    negated, zeros = torch.complex(values, values).conj().imag, torch._efficientzerotensor((2, 3))
    return {"negated": (negated, -values), "of zeros": (zeros, torch.zeros(2, 3))}


def computations(ar):
    """Return every kind of computation of an Arithmetic, as functions of one (2, 3) tensor."""
    return {
        "cast": lambda x: ns.cast(x, "fp16"),
        "ar.cast": ar.cast,
        "add": lambda x: ar.add(x, 0.1),
        "sub": lambda x: ar.sub(1.0, x),
        "mul": lambda x: ar.mul(x, x),
        "div": lambda x: ar.div(x, 3.0),
        "sqrt": ar.sqrt,
        "fma": lambda x: ar.fma(x, x, 0.5),
        "root": lambda x: ar.root(x, 3),
        "power": lambda x: ar.power(x, 2.5),
        "apply": lambda x: ar.apply(torch.exp, x, operation="exp"),
        "sum": lambda x: ar.sum(x, 1),
        "mean": lambda x: ar.mean(x),
        "matmul": lambda x: ar.matmul(x, WEIGHT),
    }


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", made_lazily())
def test_a_lazy_view_computes_as_its_values_do(precision, kind):
    x, copy = made_lazily()[kind]
    for name, compute in computations(ns.Arithmetic(precision)).items():
        found, expected = compute(x), compute(copy)
        assert torch.equal(found, expected) or (found.isnan() == expected.isnan()).all(), name


def test_a_sum_of_negated_numbers_is_negative():
    assert ns.Arithmetic("fp16").sum(torch.complex(torch.zeros(8), torch.arange(1.0, 9.0)).conj().imag).item() == -36


@pytest.mark.parametrize("name", computations(ns.Arithmetic("fp16")))
def test_a_tensor_without_plain_memory_is_refused_by_name(name):
    compute = computations(ns.Arithmetic("fp16"))[name]
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    refused = {"NestedTensor": nested, "sparse": torch.eye(3).to_sparse(), "complex": torch.zeros(2, 3) * 1j}
    for word, x in refused.items():
        with pytest.raises(ns.NormstabError, match=word):
            compute(x)


@pytest.mark.parametrize("name", [n for n in computations(ns.Arithmetic("fp16")) if n != "cast"])
def test_a_fake_tensor_is_refused_and_does_not_end_the_process(name):
    compute = computations(ns.Arithmetic("fp16"))[name]
    with FakeTensorMode() as mode:
        x = mode.from_tensor(torch.ones(2, 3))
        with pytest.raises(ns.NormstabError, match="FakeTensor"):
            compute(x)


def test_a_real_tensor_under_a_fake_mode_is_refused_too():
    x = torch.ones(2, 3)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ns.NormstabError, match="FakeTensorMode"):
        ns.Arithmetic("fp16").add(x, x)


def test_a_cast_of_a_fake_tensor_has_its_shape_and_dtype():
    with FakeTensorMode() as mode:
        y = ns.cast(mode.from_tensor(torch.ones(2, 3)), "fp16")
    assert y.shape == (2, 3) and y.dtype == torch.float32


def test_a_default_device_of_meta_changes_nothing():
    x = torch.rand(5, 6).t()
    ar = ns.Arithmetic("fp16/nearest/fp16")
    expected = [compute(x[:2, :3]) for compute in computations(ar).values()]
    layer = ns.BatchNorm1d(6, norm="l1")
    layer.arithmetic = "fp16"
    y = layer(x.t())
    try:
        torch.set_default_device("meta")
        found = [compute(x[:2, :3]) for compute in computations(ar).values()]
        again = layer(x.t())
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(again, y)


def test_tensors_of_the_meta_device_give_shapes():
    for name, compute in computations(ns.Arithmetic("fp16", ledger=ns.Ledger())).items():
        expected, found = compute(torch.ones(2, 3)), compute(torch.ones(2, 3, device="meta"))
        assert found.shape == expected.shape and found.device.type == "meta", name
