"""The compiled exact sums against fractions and the readable superaccumulator: the same bits and the same counters."""

from __future__ import annotations

import pytest
import torch

import normstab as ns
from normstab.numerics import accumulate
from normstab.numerics.readable.exact_sum import exact_sum
from normstab.numerics.sums import matmul

pytest.importorskip("numba")
cpu_exact = pytest.importorskip("normstab.numerics.kernels.cpu.exact.cpu_exact")
cut_products = pytest.importorskip("normstab.numerics.kernels.cpu.exact.cut_products")


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


def spread(*shape: int, binades: int, seed: int) -> torch.Tensor:
    """Float32 with all digits over so many binades; a row of zeros of both signs, and a column of numbers and zeros."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-binades, binades + 1, shape, generator=generator)
    x = torch.ldexp(torch.randn(shape, generator=generator), exponents)
    x[..., 1, ::2], x[..., 1, 1::2] = 0.0, -0.0
    x[..., ::2, 0] = -0.0
    return x


@pytest.mark.parametrize("rounds_down", [True, False])
@pytest.mark.parametrize("k", [1, 2, 64, 301])
@pytest.mark.parametrize("binades", [0, 12, 30])
@pytest.mark.parametrize("is_special", [True, False])
def test_products_of_slices_equal_the_superaccumulator(rounds_down, k, binades, is_special, monkeypatch):
    monkeypatch.setattr(cut_products, "NUMBERS_AT_ONCE", 64)  # several panels
    monkeypatch.setattr(cut_products, "NUMBERS_A_THREAD", 16)
    a, b = spread(2, 1, 7, k, binades=binades, seed=k), spread(3, 5, k, binades=binades, seed=k + 1).mT
    a[0, 0, 2, : k // 2], b[0, : k // 2, 3] = -a[0, 0, 2, k - k // 2 :], b[0, k - k // 2 :, 3]  # sums that cancel
    a[:, :, 3], b[:, :, 4] = 2.0**-140, -(2.0**-149)  # subnormals
    a[1, 0, 4] = torch.ldexp(torch.ones(k), torch.arange(k) % 100)
    if is_special:
        a[0, 0, 5, -1], a[0, 0, 6, 0], b[0, 0, 0], b[1, -1, 0] = torch.inf, torch.nan, -torch.inf, torch.nan
    shapes = matmul.shapes_of(a, b)
    found = cut_products.cut_products(a, b, shapes, rounds_down=rounds_down)
    left, right = a.double().unsqueeze(-2), b.double().mT.unsqueeze(-3)
    expected = exact_sum((left * right).reshape(-1, k), to_odd=True, rounds_down=rounds_down)
    same = found.value.view(torch.int64) == expected.view(torch.int64)
    assert bool((same | (found.value.isnan() & expected.isnan())).all())
    for seen, operands in (
        (found.operand_nan, (left.isnan(), right.isnan())),
        (found.operand_inf, (left.isinf(), right.isinf())),
    ):
        assert torch.equal(seen, (operands[0] | operands[1]).any(-1).flatten())


def test_products_of_slices_need_no_subnormals():
    a, b = torch.full((3, 5), 2.0**-149), torch.full((5, 4), 2.0**-130)
    expected = cut_products.cut_products(a, b, matmul.shapes_of(a, b), rounds_down=False).value
    assert torch.set_flush_denormal(True)
    try:
        found = cut_products.cut_products(a, b, matmul.shapes_of(a, b), rounds_down=False).value
    finally:
        torch.set_flush_denormal(False)
    assert found.tolist() == expected.tolist() == [5 * 2.0**-279] * 12


def test_usual_products_are_cut_into_few_slices_and_wild_ones_are_refused(monkeypatch):
    monkeypatch.setattr(cpu_exact, "exact_products", None)
    for a in (torch.randn(20, 300, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 5)):
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            ns.Arithmetic("fp16;matmul=exact").matmul(a.to(dtype), a.to(dtype).mT)
    x = torch.ldexp(torch.ones(8, 200), torch.arange(200) - 100)
    assert cut_products.cut_products(x, x.mT, matmul.shapes_of(x, x.mT), rounds_down=False) is None
