"""The compiled exact sums against fractions and the readable superaccumulator: the same bits and the same counters."""

from __future__ import annotations

import pytest
import torch

import normstab as ns
from normstab.numerics import accumulate
from normstab.numerics.readable.exact_sum import exact_sum
from normstab.numerics.sums import matmul

pytest.importorskip("numba")
cpu_exact = pytest.importorskip("normstab.numerics.kernels.cpu.sums.cpu_exact")


def wild(*shape: int, seed: int = 0, share: float = 0.02, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers over all binades of a dtype, few of them special."""
    generator = torch.Generator().manual_seed(seed)
    integer, size = (torch.int32, 31) if dtype == torch.float32 else (torch.int64, 63)
    bits = torch.randint(-(2**size), 2**size - 1, shape, generator=generator, dtype=torch.int64)
    patterns = bits.to(integer).view(dtype)
    usual = torch.randn(shape, generator=generator, dtype=dtype)
    chosen = torch.where(torch.rand(shape, generator=generator) < 0.5, patterns, usual)
    is_special = torch.rand(shape, generator=generator) < share
    return torch.where(chosen.isfinite() | is_special, chosen, 1.0)


@pytest.mark.parametrize("to_odd", [True, False])
@pytest.mark.parametrize("rounds_down", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_sums_equal_the_superaccumulator(to_odd, rounds_down, dtype):
    rows = [wild(40, n, seed=n, share=share, dtype=dtype) for n in (1, 2, 3, 33) for share in (0.0, 0.02)]
    x = wild(30, 9, dtype=dtype, share=0.0)
    rows += [torch.cat([x, -x], 1), torch.cat([x, -x, x[:, :1] * 2.0**-60], 1)]
    limits = torch.finfo(dtype)
    rows += [torch.full((2, 5), value, dtype=dtype) for value in (0.0, -0.0, limits.max, limits.tiny)]
    rows += [rows[-1] * 2.0**-20, torch.tensor([[0.0, -0.0, 0.0]], dtype=dtype)]
    for values in rows:
        found = cpu_exact.sums(values, (1,), to_odd=to_odd, rounds_down=rounds_down)
        expected = exact_sum(values.double(), to_odd=to_odd, rounds_down=rounds_down)
        same = found.value.view(torch.int64) == expected.view(torch.int64)
        assert bool((same | (found.value.isnan() & expected.isnan())).all())
        assert torch.equal(found.operand_nan, values.isnan().any(1))
        assert torch.equal(found.operand_inf, values.isinf().any(1))


def run(compute, precision: str):
    """The bits of the result and all tallies."""
    ledger = ns.Ledger(inexact=True, histogram=True)
    result = compute(ns.Arithmetic(precision, ledger=ledger, key=ns.Key(seed=3)))
    integer = torch.int32 if result.dtype == torch.float32 else torch.int64
    return result.view(integer).tolist(), dict(ledger), ledger.first("overflow")


@pytest.mark.parametrize("mode", ["nearest", "down", "to-odd", "stochastic", "stochastic:24"])
@pytest.mark.parametrize("format", ["fp16", "fp32", "fp64", "e2m1", "q7.8"])
def test_exact_sums_and_products_equal_the_reference(format, mode, monkeypatch):
    x, a, b = wild(3, 5, 11), wild(2, 3, 9, seed=1), wild(9, 4, seed=2)
    computations = (
        (lambda ar: ar.sum(x, (0, 2)), f"{format}/{mode}/exact"),
        (lambda ar: ar.sum(x.double().mT, 1), f"{format}/{mode}/exact"),
        (lambda ar: ar.matmul(a, b), f"{format}/{mode};matmul=exact"),
        (lambda ar: ar.matmul(a[0, 0], b.mT.contiguous().mT), f"{format}/{mode};matmul=exact"),
        (lambda ar: ar.matmul(a[:, :, :0], b[:0]), f"{format}/{mode};matmul=exact"),
    )
    for compute, precision in computations:
        found = run(compute, precision)
        for module in (accumulate, matmul):
            monkeypatch.setattr(module, "kernels_for", lambda *_: None)
        assert found == run(compute, precision), precision
        monkeypatch.undo()
