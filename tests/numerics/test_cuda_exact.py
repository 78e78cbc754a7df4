"""Exact sums and products of CUDA tensors have the bits and the counters of the reference, and no float64 in 32 bits.

As in test_cuda_sums they run on a GPU, or else in Triton's interpreter, in a process of its own.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("numba")  # which the oracle's own module imports

import triton

import normstab as ns
from normstab.numerics import accumulate
from normstab.numerics.call import Call
from normstab.numerics.kernels.cuda.sums import cuda_exact, exact_kernel
from normstab.numerics.precision import Rounding
from normstab.numerics.sums import kernels_of_sums, matmul
from tests.numerics.test_cuda_kernels import IS_INTERPRETED, needs_device
from tests.numerics.test_cuda_sums import check, run_interpreted
from tests.numerics.test_exact_kernels import wild
from tests.numerics.test_float32_kernels import FORBIDDEN, check_resources

# Of each kind: rounded again, float32's own digits, no rounding, random bits of two widths, an end that wraps.
FORMATS = ("fp16/nearest", "fp32/down", "fp64/nearest", "bf16/stochastic", "q3.4:wrap/up", "e4m3fnuz/to-odd")
FORMATS += ("fp32/stochastic:24", "e5m2/toward-zero")


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """CPU tensors go to the Triton kernel too; numpy is silent about infinities."""
    if IS_INTERPRETED:
        what = "exact, rounded"
        monkeypatch.setitem(kernels_of_sums.KERNELS, ("cpu", what), kernels_of_sums.KERNELS["cuda", what])
    with np.errstate(all="ignore"):
        yield


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
@pytest.mark.parametrize("chosen", ["not every", pytest.param("every", marks=pytest.mark.nightly)])
def test_exact_sums_and_products_equal_the_reference_in_tritons_interpreter(chosen):
    run_interpreted(__file__, chosen)


def check_sum(x, dims, precision, **options):
    check(lambda ar, x: ar.sum(x, dims), x, f"{precision}/exact", what=cuda_exact, **options)


def check_product(a, b, precision, **options):
    compute = lambda ar, both: ar.matmul(*both)  # noqa: E731
    check(compute, (a, b), f"{precision};matmul=exact", what=cuda_exact, **options)


def cancelling(dtype):
    """Rows whose large addends cancel, to zeros of both signs and to what lies far below."""
    x = wild(4, 9, dtype=dtype, share=0.0)
    zeros = torch.tensor([[0.0, -0.0, 0.0], [-0.0, -0.0, -0.0], [0.0, 0.0, 0.0], [1.0, -1.0, -0.0]], dtype=dtype)
    return torch.cat([x, -x, x[:, :1] * torch.tensor([[0.0], [1.0], [2.0**-60], [-(2.0**-20)]]).to(dtype), zeros], 1)


@needs_device
@pytest.mark.parametrize("precision", FORMATS)
def test_sums_of_all_binades_equal_the_reference_over_any_axes(precision):
    i = FORMATS.index(precision)
    check_sum(wild(2, 3, 7, seed=i, share=(0.0, 0.02)[i % 2]), [(0, 2), (1,), (2,), None][i % 4], precision)
    check_sum(cancelling((torch.float32, torch.float64)[i % 2]), 1, precision)


@needs_device
@pytest.mark.parametrize("precision", FORMATS)
def test_products_of_all_binades_equal_the_reference(precision):
    i = FORMATS.index(precision)
    a, b = wild(2, 3, 7, seed=i, share=(0.0, 0.05)[i % 2]), wild(7, 4, seed=i + 1, share=0.0)
    check_product(a, b, precision)
    x = cancelling(torch.float32)
    check_product(x, torch.ones(x.shape[1], 1), precision)


@needs_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_many_equal_addends_carry_as_far_as_they_go(dtype):
    limits = torch.finfo(dtype)
    for value in (0.0, -0.0, limits.max, limits.smallest_normal * limits.eps, -torch.inf):
        x = torch.tensor(value, dtype=dtype).expand(2, 40).clone()
        check_sum(x, 1, "fp32/nearest")
        check_sum(-x, 1, "fp64/down")


@needs_device
def test_what_is_no_number_is_told_from_what_becomes_none():
    rows = [[torch.inf, -torch.inf, 1.0], [torch.nan, 1.0, 2.0], [-torch.inf, 2.0, 0.0], [0.0, torch.inf, -1.0]]
    a = torch.tensor(rows)
    for b in (torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([[1.0], [-1.0], [torch.inf]])):
        check_product(a, b, "fp16/nearest")
        check_product(a.double(), b.double() * 1e308, "e4m3fnuz/nearest")
    check_sum(a, 1, "q7.8/nearest")


@needs_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_are_read_where_they_lie(dtype, monkeypatch):
    monkeypatch.setattr(kernels_of_sums, "READING_HALVES", ["cuda", "cpu"])
    x = wild(4, 6, share=0.0).to(dtype)
    check_sum(x[:, ::2], 0, "fp16/nearest")


@needs_device
def test_operands_broadcast_and_are_read_where_they_lie():
    shapes = [((4,), (4,)), ((3, 4), (4,)), ((4,), (2, 4, 3)), ((2, 1, 3, 4), (3, 4, 2))]
    for i, (of_a, of_b) in enumerate(shapes):
        a, b = wild(*of_a, seed=i, share=0.0), wild(*of_b, seed=i, share=0.0)
        check_product(a, b.mT.contiguous().mT if b.dim() > 1 and i % 2 else b, "bf16/stochastic")
    check_product(wild(3, 4).double(), wild(4, 3), "fp16/nearest", histogram=True)
    check_sum(torch._neg_view(wild(2, 4, 3, 2).permute(3, 1, 0, 2)), (0, 2), "fp16/stochastic:8", histogram=True)
    check_sum(wild(3, 5), 1, "fp16/nearest", inexact=False)


@needs_device
@pytest.mark.parametrize("precision", ["fp16/nearest", "fp64/down", "bf16/stochastic"])
def test_rows_that_programs_share_have_the_sum_of_one(precision, monkeypatch):
    monkeypatch.setattr(cuda_exact, "BUSY", 30)
    monkeypatch.setattr(cuda_exact, "LEAST_SPAN", 2)
    monkeypatch.setattr(cuda_exact, "TILE", 8)
    for dtype in (torch.float32, torch.float64):
        x = cancelling(dtype)
        walk = cuda_exact.walk_of(tuple(x.shape), x.stride(), (1,))
        assert cuda_exact.cut_of(walk, x.device).chunks > 1
        check_sum(x, 1, precision)
        check_sum(wild(1, 23, share=0.1, dtype=dtype), None, precision, histogram=True)
    check_product(wild(1, 25), wild(25, 1, seed=1), precision)


@needs_device
@pytest.mark.parametrize("mode", ["nearest", "half-up", "toward-zero", "up", "down", "to-odd", "stochastic:20"])
@pytest.mark.parametrize("format", ["fp16", "bf16", "fp32", "fp64", "e5m2", "e2m1", "e9m10", "q0.24", "q3.4:wrap"])
def test_every_format_and_mode_equals_the_reference(format, mode):
    for seed in range(3):
        check_sum(wild(2, 5, 37, seed=seed), (0, 2), f"{format}/{mode}")
        check_sum(cancelling(torch.float64), 1, f"{format}/{mode}")
        check_product(wild(2, 3, 9, seed=seed), wild(9, 4, seed=seed + 1), f"{format}/{mode}")


def test_exact_sums_of_cuda_tensors_are_told_to_take_the_kernels():
    assert kernels_of_sums.KERNELS["cuda", "exact, rounded"] == "cuda.sums.cuda_exact"
    assert accumulate.kernels_for is matmul.kernels_for is kernels_of_sums.kernels_for


def compiled(kind, cut, capability, folder, monkeypatch):
    """The PTX of the kernel for addends of a kind."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    kernel, is_wide = exact_kernel.exact_kernel, bool(kind & cuda_exact.Kind.WIDE)
    constants = {"DIGITS": 52 if is_wide else 23, "BIAS": 1023 if is_wide else 127, "KIND": kind, "bins": None}
    constants |= {"UNIT": cuda_exact.unit_of(kind), "SIGNIFICAND": cuda_exact.bits_of_addend(kind), "WIDTH": 0}
    constants |= {"PLACES": 0 if cut.chunks == 1 else cuda_exact.places_of(kind), "COUNTS": True, "HISTOGRAM": False}
    constants |= {"ROWS": cut.rows, "LANES": cut.lanes}
    constants |= {"later": None}  # nothing is drawn
    source = "*i64" if is_wide else "*i32"
    axes = (((), ("i32",)), (("i32",), ("i32", "i32")))
    types = {"first": source, "second": source, "target": source, "noted": "*i32", "kept": axes, "reduced": axes}
    types |= dict.fromkeys(("table", "counts", "digits"), "*i64") | dict.fromkeys(exact_kernel.VARYING[:3], "i32")
    types |= dict.fromkeys(exact_kernel.VARYING[3:], "i64") | dict.fromkeys(constants, "constexpr")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    signature = {name: types[name] for name in kernel.arg_names}
    source = triton.compiler.ASTSource(kernel, signature=signature, constexprs=places)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    options = {"enable_fp_fusion": False, "num_warps": cuda_exact.WARPS}
    return triton.compile(source, target=target, options=options).asm["ptx"]


QUICK = ((torch.float32, True, 1, 90), (torch.float32, False, 8, 80))
CASES = [
    (*case, sm) for case in itertools.product((torch.float32, torch.float64), (True, False), (1, 8)) for sm in (80, 90)
]


@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted, so not compiled")
@pytest.mark.parametrize(
    ("dtype", "is_product", "chunks", "capability"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.nightly) for case in CASES],
)
def test_exact_sums_compile_to_whole_numbers_and_spill_nothing(
    dtype, is_product, chunks, capability, tmp_path, monkeypatch
):
    kind = cuda_exact.kind_of(dtype, Call(ns.parse_format("fp16"), Rounding()), is_product=is_product)
    cut = cuda_exact.Cut(128, 4, 1, 4096) if chunks == 1 else cuda_exact.Cut(1, 512, chunks, 4096)
    ptx = compiled(kind, cut, capability, tmp_path, monkeypatch)
    assert not re.search(FORBIDDEN.replace("|f64", ""), ptx) and ".f32" not in ptx
    # Of addends, the product of two float64; where the kernel rounds, one number of a range that wraps.
    floating = re.findall(r"\b(?:add|sub|mul|div|cvt)\S*\.f64\S*", ptx)
    is_expected = chunks == 1 or (dtype == torch.float64 and is_product)
    assert set(floating) <= ({"mul.f64", "mul.rn.f64", "cvt.rn.f64.s64"} if is_expected else set())
    check_resources(ptx, tmp_path)
