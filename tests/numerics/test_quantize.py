"""Scaled formats against oracles that nobody here wrote, and the laws that every one of them obeys."""

import math

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import formats as gf
from hypothesis import given, settings
from hypothesis import strategies as st

import normstab as ns
from normstab.numerics.scaled.quantize import dequantize, scaled_format

MX = {
    "mxfp8": gf.format_info_mxfp8_e4m3,
    "e5m2@block32:e8m0": gf.format_info_mxfp8_e5m2,
    "mxfp6-e2m3": gf.format_info_mxfp6_e2m3,
    "mxfp6-e3m2": gf.format_info_mxfp6_e3m2,
    "mxfp4": gf.format_info_mxfp4_e2m1,
    "mxint8": gf.format_info_mxint8,
}
SCALED = [
    *MX,
    "nvfp4",
    "fp8-rowwise",
    "fp8-tensorwise",
    "fp8-block128",
    "int8",
    "int8@row",
    "int4@block8",
    "int7@block32:e8m0",
    "e2m1@tile16:e4m3fn",
    "e4m3fnuz@row",
    "q3.4@row",
    "e5m2@block32:e8m0:ceil",
    "e4m3fn@block32:e8m0:even",
    "e4m3fn@tile4:e8m0:rceil",
]


def gaussian(*shape, seed=0, spread=6):
    """Numbers whose blocks have scales of many sizes."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.normal(size=shape) * 2.0 ** rng.integers(-spread, spread, shape)).astype(np.float32))


@pytest.mark.parametrize("name", MX)
def test_mx_formats_are_those_of_gfloat(name):
    x = gaussian(12, 32)
    values, scales, codes = ns.quantize(x, name)
    info = MX[name]
    for row in range(len(x)):
        block = x[row].double().numpy()
        assert values[row].double().tolist() == list(gfloat.quantize_block(info, block, gfloat.compute_scale_amax))
        scale = gfloat.compute_scale_amax(info.etype.emax, block)
        assert scales[row].item() == scale
        expected = list(gfloat.encode_block(info, scale, block / scale))[1:]
        assert [code % 256 for code in codes[row].tolist()] == expected


@pytest.mark.parametrize("name", ["e2m1", "e2m3", "e3m2"])
def test_codes_of_four_and_six_bits_are_those_of_ml_dtypes_exhaustively(name):
    dtype = {"e2m1": ml_dtypes.float4_e2m1fn, "e2m3": ml_dtypes.float6_e2m3fn, "e3m2": ml_dtypes.float6_e3m2fn}[name]
    bits = np.arange(16 if name == "e2m1" else 64, dtype=np.uint8)
    numbers = torch.from_numpy(bits.view(dtype).astype(np.float32))
    values, _, codes = ns.quantize(numbers, name)
    assert codes.tolist() == bits.tolist()
    assert torch.equal(values, numbers)


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz"])
def test_codes_of_eight_bits_are_those_of_torch_exhaustively(name):
    bits = torch.arange(256, dtype=torch.uint8)
    numbers = bits.view(getattr(torch, f"float8_{name}")).float()
    finite = numbers.isfinite()
    _, _, codes = ns.quantize(numbers[finite], name)
    assert codes.tolist() == bits[finite].tolist()


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("element", ["e2m1", "e2m3", "e3m2", "int4", "int6"])
def test_every_scale_and_code_is_a_fixed_point_of_quantizing(element, bits):
    """Every number of the element times a scale, with the largest among them, comes back as it went in."""
    scaled = scaled_format(f"{element}@row" if "int" in element else f"{element}@row:e8m0")
    largest = scaled.largest
    numbers = torch.linspace(-1, 1, 2**bits) * largest
    once, scales, codes = ns.quantize(numbers[None], scaled)
    again, scales_again, codes_again = ns.quantize(once, scaled)
    assert torch.equal(once, again) and torch.equal(scales, scales_again) and torch.equal(codes, codes_again)


def test_scales_in_e8m0_are_numbers_of_torchs_own_dtype():
    scales = ns.quantize(gaussian(16, 96, spread=30), "mxfp8").scales
    assert torch.equal(scales.to(torch.float8_e8m0fnu).float(), scales)


def test_rceil_is_torchs_own_cast_of_the_quotient_rounded_up():
    x = gaussian(64, 32)
    quotient = x.abs().amax(1, keepdim=True) / 448.0
    scales = ns.quantize(x, "e4m3fn@block32:e8m0:rceil").scales
    ratio = scales / quotient
    assert ((ratio >= 1) & (ratio < 2)).all()
    assert torch.equal(scales.to(torch.float8_e8m0fnu).float(), scales)


def test_int8_per_tensor_is_torchs_fake_quantization():
    x = gaussian(8, 64)
    values, scales, codes = ns.quantize(x, "int8")
    scale = (x.abs().max() / 127).item()
    assert scales.item() == scale
    expected = torch.fake_quantize_per_tensor_affine(x, scale, 0, -127, 127)
    # torch multiplies by a rounded reciprocal: quotients next to a tie may fall to the other side of it.
    is_near_tie = ((x.double() / scale).frac().abs() - 0.5).abs() < 1e-4
    assert torch.equal(values[~is_near_tie], expected[~is_near_tie])
    assert (values - expected).abs().max() <= scale * (1 + 1e-6)
    assert torch.equal(codes.float() * scales, values)


def test_an_affine_format_is_torchs_fake_quantization_per_channel():
    x = gaussian(8, 64) + 3
    values, scales, codes = ns.quantize(x, "int8@row+zero")
    low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    assert torch.equal(scales[:, 0], (high - low) / 255)
    zero_points = (-128 - torch.round(low.double() / scales[:, 0])).clamp(-128, 127).to(torch.int32)
    expected = torch.fake_quantize_per_channel_affine(x, scales[:, 0], zero_points, 0, -128, 127)
    is_near_tie = ((x.double() / scales).frac().abs() - 0.5).abs() < 1e-4
    assert torch.equal(values[~is_near_tie], expected[~is_near_tie])
    assert torch.equal((codes - zero_points[:, None]).float() * scales, values)


def test_nvfp4_has_two_scales():
    """t = amax / (6 * 448); s = cast(amax of the block / (6 t), e4m3); value = t s q, with ml_dtypes' casts."""
    x = gaussian(4, 64).numpy()
    t = np.float32(np.abs(x).max()) / np.float32(6 * 448)
    blocks = x.reshape(-1, 16)
    s = (np.abs(blocks).max(1, keepdims=True) / (np.float32(6) * t)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    scale = t * s
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(scale == 0, np.float32(0) * blocks, blocks / scale)
    q = np.clip(quotient, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    values, scales, _ = ns.quantize(torch.from_numpy(x), "nvfp4")
    assert np.array_equal(scales.numpy().reshape(-1, 1), scale)
    assert np.array_equal(values.numpy().reshape(-1, 16), scale * q)


@pytest.mark.parametrize("name", SCALED)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 5), columns=st.integers(1, 70), axis=st.sampled_from([-1, 0]))
def test_unpacking_is_exact(name, seed, rows, columns, axis):
    x = gaussian(rows, columns, seed=seed)
    quantized = ns.quantize(x, name, axis)
    assert torch.equal(dequantize(quantized, scaled_format(name), axis=axis), quantized.values)


@pytest.mark.parametrize("name", SCALED)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), power=st.integers(-20, 20))
def test_scaling_by_a_power_of_two_scales_the_scales_and_nothing_else(name, seed, power):
    x = gaussian(3, 50, seed=seed)
    plain, scaled = ns.quantize(x, name), ns.quantize(x * 2.0**power, name)
    assert torch.equal(scaled.codes, plain.codes)
    assert torch.equal(scaled.scales, plain.scales * 2.0**power)
    assert torch.equal(scaled.values, plain.values * 2.0**power)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_have_the_dtype_and_shape_of_the_tensor(name, dtype):
    x = gaussian(5, 40, spread=2).to(dtype)
    values, scales, codes = ns.quantize(x, name)
    assert values.dtype == dtype and values.shape == codes.shape == x.shape
    assert scales.dtype == torch.float32
    assert torch.equal(values, ns.quantize(x.float(), name).values.to(dtype))


@pytest.mark.parametrize("name", SCALED)
def test_a_nan_or_an_infinity_breaks_its_granule_and_no_other(name):
    x = gaussian(40, 64)
    x[0, 3], x[0, 40] = math.nan, -math.inf
    values, scales, _ = ns.quantize(x, name)
    assert values[0, 3].isnan() and values[0, 40].isnan()
    assert values[39].isnan().all() if scales.numel() == 1 else values[39].isfinite().all()
    ledger = ns.Ledger()
    ns.quantize(x, name, ledger=ledger, site="fc1")
    assert ledger["fc1"].nan_propagated == int(values.isnan().sum())


@pytest.mark.parametrize("name", SCALED)
def test_a_granule_of_zeros_has_scale_one_and_is_counted(name):
    ledger = ns.Ledger()
    values, scales, _ = ns.quantize(torch.zeros(2, 32), name, ledger=ledger, site="fc1")
    assert (scales == 1).all() and (values == 0).all()
    assert ledger["fc1"].zero_granules == scales.numel() and ledger["fc1"].dead_granules == 0


def test_what_is_lost_is_counted():
    x = torch.tensor([[7.75, 2.0**-9, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    ledger = ns.Ledger(mse=True)
    values, scales, _ = ns.quantize(x, "e2m1@block4:e8m0", ledger=ledger, site="fc1")
    assert (scales.flatten().tolist(), values[0].tolist()) == ([1.0, 1.0], [6.0, 0.0, 0.0, 1.0])
    tally = ledger["fc1.quantize"]
    assert (tally.count, tally.saturated, tally.overflow, tally.underflow, tally.zero_granules) == (8, 1, 1, 1, 1)
    assert tally.mse == (1.75**2 + 2.0**-18) / 8
    assert tally.sqnr == pytest.approx(10 * math.log10((7.75**2 + 1 + 2.0**-18) / (1.75**2 + 2.0**-18)))


def test_the_spread_of_scales_and_dead_granules_are_counted():
    """The least block of an NVFP4 tensor has a scale below e4m3's least: all its elements vanish."""
    x = torch.tensor([[448.0 * 6] * 16 + [2.0**-12] * 16 + [6.0] * 16])
    ledger = ns.Ledger()
    values, _, _ = ns.quantize(x, "nvfp4", ledger=ledger, site="fc1")
    assert (values[0, 16:32] == 0).all()
    assert (ledger["fc1"].dead_granules, ledger["fc1"].underflow) == (1, 16)
    assert ledger["fc1"].scale_spread == pytest.approx(math.log2(448))
    assert (ledger["fc1"] + ns.Tally()).scale_spread == ledger["fc1"].scale_spread


def test_a_last_block_shorter_than_the_others_has_its_own_scale():
    x = torch.cat([torch.full((1, 32), 1.0), torch.full((1, 3), 64.0)], 1)
    values, scales, _ = ns.quantize(x, "mxfp8")
    assert scales.tolist() == [[2.0**-8, 2.0**-2]] and torch.equal(values, x)


def test_a_scale_in_e8m0_is_clipped_and_counted():
    ledger = ns.Ledger()
    _, scales, _ = ns.quantize(torch.full((1, 32), 2.0**-130), "mxfp8", ledger=ledger, site="fc1")
    assert scales.item() == 2.0**-127
    assert ledger["fc1"].saturated == 1


def test_stochastic_rounding_needs_a_key_and_repeats_with_it():
    x = gaussian(4, 64)
    with pytest.raises(ns.NormstabError, match="key"):
        ns.quantize(x, "e2m1@block16:e4m3fn/stochastic")
    key = ns.Key(seed=3, site="fc1")
    first, second = (ns.quantize(x, "e2m1@block16:e4m3fn/stochastic", key=key).values for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, ns.quantize(x, "nvfp4").values)


@pytest.mark.parametrize(
    ("format", "words"),
    [("fp8-delayed", "history"), ("amp-fp16", "no scaled operands"), ("e4m3fn@rwo", "row"), ("e4m3fn@tile2", "axes")],
)
def test_what_cannot_be_quantized_says_why(format, words):
    with pytest.raises(ns.NormstabError, match=words):
        ns.quantize(torch.ones(4), format)


def test_a_recipe_stands_for_its_input_operand():
    x = gaussian(2, 64)
    assert torch.equal(ns.quantize(x, "mxfp8").values, ns.quantize(x, "e4m3fn@block32:e8m0").values)


def test_empty_tensors_pass():
    values, _, codes = ns.quantize(torch.zeros(0, 4), "mxfp8")
    assert values.shape == codes.shape == (0, 4)


def test_a_matrix_product_does_not_pass_over_scaled_operands():
    with pytest.raises(ns.NormstabError, match="quantize them first"):
        ns.Arithmetic("mxfp8").matmul(torch.ones(2, 32), torch.ones(32, 2))
