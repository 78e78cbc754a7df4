"""Narrow tensors are widened once at the door, and kernels serve: the call one dtype away is no cliff.

Not timed: the reference is replaced by something that fails the test.
"""

from __future__ import annotations

import pytest
import torch

import normstab as ns
from normstab.numerics import accumulate, execute
from normstab.numerics.kernels.cpu import cpu_tensors
from normstab.numerics.sums import matmul

DTYPES = (torch.float16, torch.bfloat16)


@pytest.fixture
def no_reference(monkeypatch):
    """Make every way into the reference an error."""

    def reached(*args, **kwargs):
        raise AssertionError("the reference was reached")

    monkeypatch.setattr(accumulate, "terms_of", reached)
    monkeypatch.setattr(matmul, "_factors", reached)
    monkeypatch.setattr(execute, "carried_for", reached)


@pytest.mark.parametrize("accumulation", ("fp32", "fp16:sequential", "fp16:pairwise", "bf16:blocked8", "fp32:lanes16"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_16_bit_tensors_take_the_kernels(no_reference, dtype, accumulation):
    x = torch.randn(64, 300).to(dtype)
    found, wide = (ns.Ledger() for _ in range(2))
    total = ns.Arithmetic("fp16", accumulate=accumulation, ledger=found).sum(x, 1)
    expected = ns.Arithmetic("fp16", accumulate=accumulation, ledger=wide).sum(x.float(), 1)
    assert torch.equal(total, expected) and total.dtype == torch.float32 and dict(found) == dict(wide)


@pytest.mark.parametrize("accumulation", ("fp16:sequential", "fp32", "fp16:blocked8+fused", "bf16:pairwise"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_of_16_bit_tensors_take_the_kernels(no_reference, dtype, accumulation):
    a, b = torch.randn(20, 30).to(dtype), torch.randn(30, 40).to(dtype)
    ar = ns.Arithmetic(f"fp16;matmul={accumulation}")
    assert torch.equal(ar.matmul(a, b), ar.matmul(a.float(), b.float()))


@pytest.mark.parametrize("dtype", (*DTYPES, torch.int8, torch.int32, torch.int64, torch.bool), ids=str)
@pytest.mark.parametrize("operation", ("add", "sub", "mul", "div"))
def test_operations_on_narrow_and_whole_numbers_take_the_kernels(no_reference, dtype, operation):
    a, b = (torch.randn(30) * 9).to(dtype), torch.rand(30) + 1
    ar = ns.Arithmetic("fp16")
    found, expected = getattr(ar, operation)(a, b), getattr(ar, operation)(a.float(), b)
    assert torch.equal(found, expected) and found.dtype == torch.float32


@pytest.mark.parametrize("dtype", (torch.int32, torch.int64), ids=str)
@pytest.mark.parametrize("operation", ("add", "mul", "div", "fma"))
def test_whole_numbers_that_float32_has_go_in_float32_and_longer_ones_as_they_are(monkeypatch, dtype, operation):
    seen = []
    pointwise = cpu_tensors.pointwise
    monkeypatch.setattr(
        cpu_tensors, "pointwise", lambda name, operands, *rest: seen.append(operands[1].dtype)
        or pointwise(name, operands, *rest),
    )  # fmt: skip
    a, generator = torch.rand(999) + 1, torch.Generator().manual_seed(1)
    for precision in ("fp16", "fp32", "e8m20/up", "bf16/stochastic"):
        for most, carrier in ((2**24, torch.float32), (2**24 + 1, torch.float64), (2**31 - 1, torch.float64)):
            whole = torch.randint(-most, most, (999,), generator=generator).to(dtype)
            whole[0] = -most  # the bound itself
            found, wide = (ns.Ledger(inexact=True) for _ in range(2))
            ar, expected = (ns.Arithmetic(precision, ledger=x, key=ns.Key(seed=1)).at("a") for x in (found, wide))
            rest = (a,) if operation == "fma" else ()
            result = getattr(ar, operation)(a, whole, *rest)
            assert seen[-1] == carrier and result.dtype == torch.float32
            assert torch.equal(result.double(), getattr(expected, operation)(a, whole.double(), *rest))
            assert dict(found) == dict(wide)
    assert ns.Arithmetic("fp16").add(a[:0], torch.zeros(0, dtype=dtype)).shape == (0,)
