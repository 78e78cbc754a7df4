"""The compiled kernels of scaled formats are the readable reference: values, scales, codes and tallies."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import normstab as ns
from normstab.numerics.call import Call
from normstab.numerics.formats import FORMATS
from normstab.numerics.kernels.cpu.granules.cpu_quantize import quantize_rows
from normstab.numerics.scaled.by_parts import quantize_by_parts
from normstab.numerics.scaled.quantize import quantize_readably, scaled_format

COVERED = [
    "mxfp8",
    "mxfp6-e2m3",
    "mxfp6-e3m2",
    "mxfp4",
    "mxint8",
    "nvfp4",
    "fp8-rowwise",
    "fp8-tensorwise",
    "int8@row",
    "int8@tensor",
    "int4@block8",
    "int7@block32:e8m0",
    "e4m3fnuz@row",
    "e5m2fnuz@block4",
    "q3.4@row",
    "e5m2@block32:e8m0:ceil",
    "e4m3fn@block32:e8m0:even",
    "e4m3fn@block16:e8m0:rceil",
    "int8@block16:e8m0:rceil",
    "e2m1@row:fp32:even",
    "e3m4@block16:e5m2",
]


def bits_of(x):
    """The bits of each element, every NaN alike."""
    whole = torch.int32 if x.dtype == torch.float32 else torch.int16
    return torch.where(x.isnan(), torch.nan, x).contiguous().view(whole)


def hurting(seed, shape):
    """Numbers of every size, ties of low formats among them, zeros of both signs, and now and then a broken one."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 2.0 ** rng.integers(-6, 6, shape)
    kind = rng.integers(0, 5)
    if kind == 1:  # ties: few significant bits
        x = rng.integers(-40, 40, shape) * 2.0 ** rng.integers(-3, 3, shape)
    elif kind == 2:
        x *= 2.0 ** rng.integers(-150, 120, (*shape[:-1], 1))
    elif kind == 3:
        x[rng.random(shape) < 0.02] = rng.choice([np.nan, np.inf, -np.inf])
    x[rng.random(shape) < 0.1] = rng.choice([0.0, -0.0])
    if kind == 4:
        x[: shape[0] // 2] = 0.0
    return torch.from_numpy(x.astype(np.float32))


def assert_equal_to_the_reference(x, name, axis):
    scaled, ledgers = scaled_format(name), [ns.Ledger(), ns.Ledger()]
    calls = [Call(FORMATS["fp32"], row=ledger.row(ns.Site("a", "quantize")), stamp=7, step=3) for ledger in ledgers]
    found, expected = quantize_rows(x, scaled, axis, calls[0]), quantize_readably(x, scaled, calls[1], axis=axis)
    assert found is not None
    assert_same(found, expected, ledgers)
    uncounted = quantize_rows(x, scaled, axis, Call(FORMATS["fp32"]))
    assert uncounted is not None and torch.equal(bits_of(uncounted[0]), bits_of(expected.values))


def assert_same(found, expected, ledgers):
    """Compare values, scales, codes and dtypes, and what was counted at `a`."""
    for own, wanted in zip(found, expected, strict=True):
        assert own.shape == wanted.shape and own.dtype == wanted.dtype
        same = torch.equal(bits_of(own), bits_of(wanted)) if own.is_floating_point() else torch.equal(own, wanted)
        assert same
    assert ledgers[0]["a"] == ledgers[1]["a"]
    assert ledgers[0].first("saturated") == ledgers[1].first("saturated")


@pytest.mark.parametrize("name", COVERED)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 6), columns=st.integers(1, 100), axis=st.sampled_from([-1, 0]))
def test_kernels_equal_the_reference(name, seed, rows, columns, axis):
    assert_equal_to_the_reference(hurting(seed, (rows, columns)), name, axis)


IN_OTHER_MODES = [
    "e2m1@tile16:e4m3fn", "e4m3fn@tile128", "int8@tile4", "fp8-rowwise", "mxfp6-e3m2", "nvfp4", "int8@row",
    "e5m2fnuz@block4", "q3.4@row", "int7@block32:e8m0", "e4m3fn",
]  # fmt: skip


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "stochastic:8", "toward-zero", "up"])
@pytest.mark.parametrize("name", IN_OTHER_MODES)
def test_division_and_product_equal_the_reference_in_every_mode(name, rounding):
    for seed in range(10):
        x = hurting(seed, (1 + 5 * seed % 7, 1 + (37 * seed) % 100))
        x = x.half() if seed % 4 == 3 else x.mT if seed % 4 == 2 else x
        assert_parts_equal_to_the_reference(x, name, rounding, mse=seed == 0, histogram=seed == 1, inexact=seed > 4)


def assert_parts_equal_to_the_reference(x, name, rounding, **options):
    scaled, ledgers = scaled_format(name), [ns.Ledger(**options), ns.Ledger(**options)]
    draw = ns.Key(seed=5, site="a", step=2).draw if rounding.startswith("stochastic") else None
    mode, inexact = ns.Rounding.parse(rounding), options.get("inexact", False)
    rows = [ledger.row(ns.Site("a", "quantize")) for ledger in ledgers]
    calls = [Call(FORMATS["fp32"], mode, row, 7, 3, draw, inexact) for row in rows]
    found = quantize_by_parts(x, scaled, calls[0], axis=-1, amax=None)
    expected = quantize_readably(x, scaled, calls[1], axis=-1)
    assert found is not None
    assert_same(found, expected, ledgers)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "toward-zero"])
def test_quotients_by_scales_that_vanished_equal_the_reference(rounding):
    x = torch.full((3, 32), 2.0**-60)
    x[0], x[1, :20], x[2, :16] = 3e30, torch.tensor(1.5 * 2.0**-75), 2.0**-75
    x[2, 16:] = -(2.0**-120)
    assert_parts_equal_to_the_reference(x, "nvfp4", rounding, inexact=True)
    assert_parts_equal_to_the_reference(x.mT, "e2m1@tile16:e4m3fn", rounding)


@pytest.mark.parametrize("name", ["mxfp8", "nvfp4", "fp8-tensorwise", "int8@row"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernels_equal_the_reference_on_narrow_tensors(name, dtype):
    assert_equal_to_the_reference(hurting(0, (4, 96)).to(dtype), name, -1)


@pytest.mark.parametrize("name", ["mxfp8", "nvfp4", "fp8-rowwise", "fp8-tensorwise"])
def test_results_do_not_depend_on_the_number_of_threads(name):
    x = torch.randn(300, 1000, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ns.quantize(x, name)
        torch.set_num_threads(3)
        three = ns.quantize(x, name)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_what_the_kernels_do_not_cover_is_refused():
    x, plain = torch.ones(4, 32), Call(FORMATS["fp32"])
    for name in ("e4m3fn@tile4", "int8@row+zero", "fp16@row", "e4m3fn"):
        assert quantize_rows(x, scaled_format(name), -1, plain) is None
    assert quantize_rows(x.double(), scaled_format("mxfp8"), -1, plain) is None
    assert quantize_rows(x, scaled_format("mxfp8"), -1, plain._replace(rounding=ns.Rounding("up"))) is None


def test_flush_to_zero_changes_nothing():
    x = torch.full((1, 32), 2.0**-140)
    expected = ns.quantize(x, "mxfp8")
    torch.set_flush_denormal(True)
    try:
        found = ns.quantize(x, "mxfp8")
    finally:
        torch.set_flush_denormal(False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert expected.scales.item() == 2.0**-127 and math.isfinite(expected.values.sum())
