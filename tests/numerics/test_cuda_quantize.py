"""Scaled formats on CUDA tensors have the values, scales, codes and tallies of the reference.

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
from normstab.numerics.formats import FORMATS, Format
from normstab.numerics.kernels.cuda.float32_tensors import table32
from normstab.numerics.kernels.cuda.granules import cuda_quantize
from normstab.numerics.kernels.cuda.granules.granule_scales import RULES
from normstab.numerics.kernels.cuda.granules.quantize32_kernel import GIVEN, OWN, quantize_kernel
from normstab.numerics.scaled.element_formats import symmetric_format
from normstab.numerics.scaled.quantize import quantize_readably, scaled_format
from normstab.numerics.sums import kernels_of_sums
from tests.numerics.test_cuda_kernels import DEVICE, IS_INTERPRETED, needs_device
from tests.numerics.test_cuda_sums import run_interpreted
from tests.numerics.test_float32_kernels import FORBIDDEN, check_resources
from tests.numerics.test_quantize_kernels import COVERED, assert_same, bits_of, hurting


@pytest.fixture(autouse=True)
def quiet():
    """Numpy, which interprets, is silent about infinities."""
    with np.errstate(all="ignore"):
        yield


@pytest.mark.skipif(IS_INTERPRETED, reason="this is what it runs")
def test_scaled_formats_equal_the_reference_in_tritons_interpreter():
    run_interpreted(__file__, "reference or refused or waits")


def assert_equal_to_the_reference(x, name, axis=-1, amax=None, **options):
    """Compare the kernels with the readable code, bit by bit and count by count, in two calls of one row."""
    earlier = () if amax is None else (torch.tensor(amax, dtype=torch.float32, device=DEVICE),)
    scaled, ledgers = scaled_format(name), [ns.Ledger(**options), ns.Ledger(**options)]
    inexact = options.get("inexact", False)
    for stamp in (7, 8):
        calls = [
            Call(FORMATS["fp32"], row=ledger.row(ns.Site("a", "quantize")), stamp=stamp, step=3, inexact=inexact)
            for ledger in ledgers
        ]
        found = cuda_quantize.quantize_rows(x.to(DEVICE), scaled, axis, calls[0], *earlier)
        expected = quantize_readably(x, scaled, calls[1], axis=axis, amax=amax)
        assert found is not None
        assert_same([each.cpu() for each in found], expected, ledgers)
    uncounted = cuda_quantize.quantize_rows(x.to(DEVICE), scaled, axis, Call(FORMATS["fp32"]), *earlier)
    assert uncounted is not None and torch.equal(bits_of(uncounted[0].cpu()), bits_of(expected.values))


@needs_device
@pytest.mark.parametrize("name", COVERED)
def test_kernels_equal_the_reference(name):
    for seed in range(4):
        rows, columns = 1 + seed % 4, 1 + (37 * seed) % 100
        assert_equal_to_the_reference(hurting(seed, (rows, columns)), name, axis=-(seed % 2), inexact=seed % 3 == 0)


@needs_device
@pytest.mark.parametrize("name", ["fp8-rowwise", "fp8-tensorwise", "int8@row", "e5m2@tensor", "e2m1@row:fp32:even"])
def test_long_granules_equal_the_reference(name):
    assert_equal_to_the_reference(hurting(3, (2, 2500)), name)
    assert_equal_to_the_reference(torch.zeros(3, 1100), name)
    x = torch.full((2, 1500), 2.0**-140)
    x[1] = 0
    assert_equal_to_the_reference(x, name)


@needs_device
@pytest.mark.parametrize("name", ["e4m3fn@delayed2", "e5m2@delayed1", "int8@delayed2", "e2m1@delayed3:e8m0"])
def test_scales_of_earlier_steps_equal_the_reference(name):
    for seed, earlier in enumerate((3.0, 0.0, 1e-44, 3e38, torch.inf)):
        for x in (hurting(seed, (3, 50)), hurting(seed + 5, (2, 1100)), torch.zeros(2, 3)):
            assert_equal_to_the_reference(x, name, inexact=bool(seed % 2), amax=earlier)


@needs_device
def test_scales_that_vanish_equal_the_reference():
    x = torch.full((3, 32), 2.0**-60)
    x[0], x[1, :20], x[2, :16] = 3e30, torch.tensor(1.5 * 2.0**-75), 2.0**-75
    x[2, 16:] = -(2.0**-120)
    assert_equal_to_the_reference(x, "nvfp4", inexact=True)


@needs_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_tensors_equal_the_reference(dtype):
    assert_equal_to_the_reference(hurting(0, (4, 96)).to(dtype).T, "mxfp8")


@needs_device
def test_what_is_refused():
    x, plain = torch.ones(4, 32, device=DEVICE), Call(FORMATS["fp32"])
    for name in ("e4m3fn@tile4", "int8@row+zero", "fp16@row", "e4m3fn", "e4m3fn@delayed2"):
        assert cuda_quantize.quantize_rows(x, scaled_format(name), -1, plain) is None
    assert cuda_quantize.quantize_rows(x.double(), scaled_format("mxfp8"), -1, plain) is None
    up = plain._replace(rounding=ns.Rounding("up"))
    assert cuda_quantize.quantize_rows(x, scaled_format("mxfp8"), -1, up) is None


@needs_device
def test_a_recipe_waits_for_nothing(monkeypatch):
    """The simulation asks the kernels; what they counted is read when someone looks."""
    if IS_INTERPRETED:
        monkeypatch.setitem(kernels_of_sums.KERNELS, ("cpu", "quantize"), kernels_of_sums.KERNELS["cuda", "quantize"])
    own, asked = cuda_quantize.quantize_rows, []
    monkeypatch.setattr(cuda_quantize, "quantize_rows", lambda *given: asked.append(own(*given)) or asked[-1])
    torch.manual_seed(0)
    model, x = torch.nn.Linear(64, 8, device=DEVICE), torch.randn(4, 64, device=DEVICE)
    with ns.simulate(model, "mxfp8") as run:
        model(x).sum().backward()
        assert any(row.pending for row in run.ledger._rows.values())
    # Of both products, x w and grad x, two operands each: x in both.
    assert len(asked) == 4 and all(found is not None for found in asked)
    assert run.ledger["operand.input"].count == 2 * x.numel()


@pytest.mark.skipif(IS_INTERPRETED, reason="interpreted, so not compiled")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("name", "origin"), [("mxfp8", OWN), ("nvfp4", OWN), ("fp8-rowwise", GIVEN), ("int8@row", OWN)]
)
def test_the_kernel_compiles_to_few_registers(name, origin, capability, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    scaled = scaled_format(name)
    element = symmetric_format(scaled)
    assert element is not None
    width = scaled.width if scaled.granule == "block" else cuda_quantize.TILE
    constants = dict(cuda_quantize.Tiling.of(1 << 20, 1 << 10, width).shape)
    constants |= {"FROM": origin, "ROW_STEP": 1, "IS_FLOAT": isinstance(element, Format), "COUNTS": True}
    constants["RULE"] = RULES["two scales" if scaled.has_two_scales else scaled.rule]
    constants["STYLE"] = table32(element, ns.Rounding("nearest"), False, torch.device("cpu"))[1]
    types = {"codes": "*i8", "numbers": "*i64", "counts": "*i64", "found": "*i64"}
    types |= dict.fromkeys(("granules", "length", "width", "per_row"), "i32")
    names = quantize_kernel.arg_names
    signature = {each: "constexpr" if each in constants else types.get(each, "*i32") for each in names}
    places = {(names.index(each),): value for each, value in constants.items()}
    source = triton.compiler.ASTSource(quantize_kernel, signature=signature, constexprs=places)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    options = {"enable_fp_fusion": False, "num_warps": cuda_quantize.WARPS[origin]}
    ptx = triton.compile(source, target=target, options=options).asm["ptx"]
    # Float64 is for scales alone: where they are given there is none.
    allowed = FORBIDDEN if origin == GIVEN else FORBIDDEN.replace("|f64", "")
    assert not re.search(allowed, ptx)
    check_resources(ptx, tmp_path)
