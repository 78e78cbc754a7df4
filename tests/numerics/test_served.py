"""Which implementation serves: none of the calls beside the fast ones reaches the slow reference."""

from __future__ import annotations

import pytest
import torch

import normstab as ns
from normstab.numerics import accumulate
from normstab.numerics.dispatch import is_served
from normstab.numerics.readable import sums as readable_sums
from normstab.numerics.sums import matmul

pytest.importorskip("numba")
cpu_matmul = pytest.importorskip("normstab.numerics.kernels.cpu.sums.cpu_matmul")
cpu_sums = pytest.importorskip("normstab.numerics.kernels.cpu.sums.cpu_sums")

SUMS = (
    "fp16/nearest/q7.8",
    "fp16/nearest/q3.4:wrap:sequential",
    "fp16/nearest/e4m3fnuz:pairwise",
    "fp16/nearest/e2m1",
    "fp16/nearest/e8m15:blocked64",
    "fp16/nearest/fp64",
    "fp16/toward-zero/fp16",
    "fp16/up/fp16:sequential",
    "fp16/stochastic/fp16",
    "fp16/nearest/fp16:blocked64+kahan",
    "fp16/nearest/exact",
    "fp16/stochastic/exact",
)
PRODUCTS = (
    "fp16;matmul=fp16:blocked64",
    "fp16/toward-zero/fp32;matmul=fp16:blocked64",
    "fp16/stochastic/fp32;matmul=fp16:sequential",
    "fp16;matmul=fp16:blocked64+kahan",
    "fp16;matmul=fp16:sequential+fused",
    "fp16;matmul=exact",
    "q7.8/nearest/fp32;matmul=q7.8:lanes64",
    "fp16;matmul=e6m12:pairwise",
    "fp16;matmul=fp32:blocked64",
)
# Those whose sums float32 carries, so that the kernels in lanes compute them, whatever saturates; stochastic ones of
# addends in the format.
CARRIED_SUMS = (
    "fp16/nearest/fp16",
    "fp16/nearest/q7.8",
    "fp16/nearest/e4m3fnuz:pairwise",
    "fp16/nearest/e8m15:blocked64",
    "fp16/nearest/e2m1",
    "fp16/nearest/e2m1:sequential+kahan",
    "fp16/up/q2.3:pairwise",
    "fp16/toward-zero/fp16",
    "fp16/up/fp16:sequential",
    "fp16/stochastic/fp16",
    "fp16/stochastic/fp16:pairwise",
    "fp16/nearest/fp16:blocked64+kahan",
    "fp16/nearest/fp32:sequential+kahan",
)
CARRIED_PRODUCTS = (
    "fp16;matmul=fp16:blocked64",
    "fp16/toward-zero/fp32;matmul=fp16:blocked64",
    "fp16/stochastic/fp32;matmul=fp16:sequential",
    "fp16;matmul=fp16:blocked64+kahan",
    "fp16;matmul=fp16:sequential+fused",
    "q7.8/nearest/fp32;matmul=q7.8:lanes64",
    "fp16;matmul=e6m12:pairwise",
    "fp16;matmul=fp32:blocked64",
)
CAREFUL_PRODUCTS = (
    "fp16;matmul=fp16:blocked64",
    "fp16/toward-zero/fp32;matmul=fp16:blocked64",
    "fp16/stochastic/fp32;matmul=fp16:sequential",
    "fp16;matmul=fp16:blocked64+kahan",
    "fp16;matmul=e4m3fn:lanes64",
    "fp16;matmul=e2m1:pairwise",
    "q7.8/nearest/fp32;matmul=q7.8:lanes64",
    "fp16;matmul=fp32:blocked64",
)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize(
    ("precision", "neighbour"),
    [
        ("u7.8", "the signed format"),
        ("q7.7:saturate-zero", "overflow 'saturate' has kernels"),
        ("q-2.9:wrap", "a point inside the bits, has kernels"),
        ("e4m2/stochastic:7:unbiased", "stochastic:7 has kernels"),
    ],
)
def test_what_has_no_kernels_says_so_once_and_names_what_has(precision: str, neighbour: str) -> None:
    is_served.cache_clear()
    ar, x = ns.Arithmetic(precision, key=ns.Key(0)), torch.rand(8)
    with pytest.warns(RuntimeWarning, match="hundreds of times slower") as told:
        ar.cast(x)
        ar.add(x, x)
    assert len(told) == 1 and neighbour in str(told[0].message)


@pytest.fixture
def no_reference(monkeypatch):
    """Make what only the reference of sums calls fail."""

    def refuse(*_, **__):
        raise AssertionError("the slow reference was reached")

    for module, name in (
        (accumulate, "sum_terms"),
        (accumulate, "_blocks"),
        (accumulate, "exact_sum"),
        (matmul, "_rows"),
        (matmul, "exact_sum"),
        (readable_sums, "_welford_reference"),
    ):
        monkeypatch.setattr(module, name, refuse)


def arithmetic(precision: str) -> ns.Arithmetic:
    return ns.Arithmetic(precision, ledger=ns.Ledger(inexact=True, histogram=True), key=ns.Key(seed=1))


def operand(*shape: int) -> torch.Tensor:
    """Numbers off every narrow format, and among them what is special."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x.view(-1)[:4] = torch.tensor([torch.nan, torch.inf, 1e-30, -0.0])
    return x


@pytest.mark.parametrize("precision", SUMS)
def test_no_sum_reaches_the_reference(precision, no_reference):
    for dtype in DTYPES:
        arithmetic(precision).sum(operand(5, 70).to(dtype), 1)


@pytest.mark.parametrize("precision", PRODUCTS)
def test_no_emulated_product_reaches_the_reference(precision, no_reference):
    for dtype in DTYPES:
        arithmetic(precision).matmul(operand(3, 70).to(dtype), operand(70, 5).to(dtype))


@pytest.fixture
def no_general_kernel(monkeypatch):
    """Make the kernels that serve every case, many times slower, fail."""

    def refuse(*_, **__):
        raise AssertionError("a general kernel was reached")

    monkeypatch.setattr(cpu_sums, "_general", refuse)
    monkeypatch.setattr(cpu_matmul, "_general", refuse)


@pytest.mark.parametrize("precision", CARRIED_SUMS)
def test_no_sum_that_float32_carries_reaches_the_general_kernel(precision, no_general_kernel):
    x = ns.cast(torch.randn(70, 70, generator=torch.Generator().manual_seed(0)), "fp16")
    for ledger in (None, ns.Ledger(), ns.Ledger(inexact=True, histogram=True)):
        ns.Arithmetic(precision, ledger=ledger, key=ns.Key(seed=1)).sum(x, 1)


@pytest.mark.parametrize("precision", CARRIED_PRODUCTS)
def test_no_product_that_float32_carries_reaches_the_general_kernel(precision, no_general_kernel):
    a = ns.cast(torch.randn(70, 70, generator=torch.Generator().manual_seed(0)), "fp16")
    for ledger in (None, ns.Ledger(), ns.Ledger(inexact=True, histogram=True)):
        ns.Arithmetic(precision, ledger=ledger, key=ns.Key(seed=1)).matmul(a, a)


@pytest.mark.parametrize("precision", CAREFUL_PRODUCTS)
def test_no_product_that_leaves_the_range_reaches_the_general_kernel(precision, no_general_kernel):
    a = ns.cast(torch.randn(70, 70, generator=torch.Generator().manual_seed(0)), "fp16")
    with_inf = a.clone()
    with_inf[0, 0], with_inf[1, 1] = torch.inf, torch.nan
    for ledger in (None, ns.Ledger(), ns.Ledger(inexact=True)):
        ar = ns.Arithmetic(precision, ledger=ledger, key=ns.Key(seed=1))
        for left, right in ((8192 * a, a), (with_inf, a), (a, with_inf)):
            ar.matmul(left, right)


@pytest.mark.parametrize("form", ["welford", "blockwise16"])
def test_no_mean_reaches_the_reference(form, no_reference):
    for precision in ("fp16/nearest/fp32", "fp16/stochastic/fp16", "q7.8/nearest/q7.8"):
        arithmetic(f"{precision};mean={form}").mean(operand(5, 70), 1)


def test_the_reference_serves_what_no_kernel_has(no_reference):
    with pytest.raises(AssertionError, match="reference"):
        ns.Arithmetic("fp16/nearest/u8.8").sum(operand(5, 70), 1)
