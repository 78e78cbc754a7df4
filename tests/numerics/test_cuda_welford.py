"""Welford's mean of CUDA tensors has the bits and the counters of the reference.

As in test_cuda_kernels it runs on a GPU, or else in Triton's interpreter, in a process of its own.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("numba")  # which the oracle's own module imports

import triton

import normstab as ns
from normstab.numerics.call import Call
from normstab.numerics.kernels.cuda.sums import welford_launch
from normstab.numerics.kernels.cuda.sums.welford_kernel import welford_kernel
from normstab.numerics.precision import Rounding
from normstab.numerics.readable import sums
from normstab.numerics.sums import kernels_of_sums
from normstab.numerics.sums.means import welford
from tests.numerics.test_accumulate_kernels import wild
from tests.numerics.test_cuda_kernels import DEVICE, IS_INTERPRETED, needs_device
from tests.numerics.test_cuda_sums import run_interpreted
from tests.numerics.test_float32_kernels import check_resources

PRECISIONS = [
    "fp16/nearest/fp32",
    "bf16/stochastic:8/bf16",
    "fp16/down/fp16",
    "q7.8/nearest/q7.8",
    "e4m3fn/to-odd/e5m2",
    "fp16/stochastic:24/fp32",
]


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """CPU tensors go to the Triton kernel too; numpy is silent about infinities."""
    if IS_INTERPRETED:
        monkeypatch.setitem(kernels_of_sums.KERNELS, ("cpu", "welford"), kernels_of_sums.KERNELS["cuda", "welford"])
    with np.errstate(all="ignore"):
        yield


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
def test_welfords_mean_equals_the_reference_in_tritons_interpreter():
    run_interpreted(__file__, "reference or read")


def outcome(x, dims, precision, *, with_m2, **options):
    """The bits of mean and M2, all tallies, and where each offence was first."""
    ledger = ns.Ledger(**options)
    ar = ns.Arithmetic(f"{precision};mean=welford", ledger=ledger, key=ns.Key(seed=3)).at("bn")
    found = [value.cpu().double() for value in welford(ar, x, dims, with_m2=with_m2)]
    firsts = {str(site): ledger.row(site).first_stamp.tolist() for site in ledger}
    return [value.view(torch.int64).tolist() for value in found], dict(ledger), firsts


def assert_equal(x, dims, precision, **options):
    """Compare the kernel with the reference, and that it was asked."""
    asked, own = [], welford_launch.welford
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(welford_launch, "welford", lambda *given: asked.append(own(*given)) or asked[-1])
        found = outcome(x.to(DEVICE), dims, precision, **options)
    assert asked and asked[0] is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "kernels_for", lambda *given: None)
        assert found == outcome(x, dims, precision, **options)


@needs_device
@pytest.mark.parametrize("with_m2", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_kernel_equals_the_reference(precision, with_m2):
    x = wild(2, 3, 5, seed=1, share=0.05) * 1e3
    assert_equal(x, (0, 2), precision, with_m2=with_m2, inexact=True)
    assert_equal(x.transpose(0, 2), (1,), precision, with_m2=with_m2)


@needs_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_are_read_where_they_lie(dtype):
    x = (torch.randn(4, 6) * 300).to(dtype)
    assert_equal(x[:, ::2], (0,), "fp16/nearest/fp16", with_m2=True)


@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted, so not compiled")
def test_the_kernel_compiles_with_the_operations_of_ieee_and_spills_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    call = Call(ns.parse_format("fp32"), Rounding())
    constants = {"keys": None, "later": None, "DIGITS": 23, "BIAS": 127, "HAS_M2": True, "ROWS": welford_launch.ROWS}
    constants["HOW"] = welford_launch.how_of(torch.zeros(1), call, counts=True)
    axes = (("i32",), ("i32", "i32"))
    types = dict.fromkeys(("kept", "reduced", "kept_index", "reduced_index"), axes)
    types |= {"source": "*i32", "rows": "i32", "n": "i32"}
    names = welford_kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "*i64") for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(welford_kernel, signature=signature, constexprs=places)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    options = {"enable_fp_fusion": False, "num_warps": welford_launch.ROWS // welford_launch.A_WARP}
    ptx = triton.compile(source, target=target, options=options).asm["ptx"]
    assert "div.rn.f64" in ptx and not re.search(r"\bfma\.|\.approx|\.ftz|\.full|\.f32", ptx)
    check_resources(ptx, tmp_path, most=255)
