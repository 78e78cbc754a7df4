"""What a cast returns: exhaustive tables and laws, in every format and mode, against an enumeration of the values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import normstab as ns
from normstab.numerics.readable.reference import contains, holds
from tests.numerics.oracles import (
    MODES,
    every_half,
    hard_values,
    magnitudes,
    random_float32,
    round_by_enumeration,
    round_by_quantum,
    same_bits,
)

FORMATS = [name for name in ns.FORMATS if name != "fp64"]
OTHERS = ["e6m9", "e2m2", "e4m3", "e4m3fn:saturate", "fp16:nan", "fp16:saturate", "q7.8", "q3.4:wrap", "q0.7", "q15.0"]
OTHERS += ["u0.8", "u6.2:wrap", "q-2.9", "q9.-3", "q9.-3:wrap", "u9.-2:saturate-zero", "q3.4:saturate-symmetric"]
OTHERS += ["q3.4:saturate-zero"]
ALL = [*FORMATS, *OTHERS]
SMALL = [name for name in ALL if ns.parse_format(name).precision <= 16 and ns.parse_format(name).max < 1e6]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ALL)
def test_every_value_midpoint_and_neighbour_rounds_as_the_enumeration_says(name, mode):
    format = ns.parse_format(name)
    x = hard_values(format)
    found = ns.cast(torch.from_numpy(x).float(), name, rounding=mode)
    by_quantum = round_by_quantum(x, format, mode)
    expected = round_by_enumeration(x, format, mode, magnitudes(format)) if name in SMALL else by_quantum
    wrong = ~(same_bits(found.double().numpy(), expected) & same_bits(by_quantum, expected))
    assert not wrong.any(), (x[wrong][:3], found.numpy()[wrong][:3], expected[wrong][:3])


HELD = [
    (name, dtype)
    for name in SMALL
    for dtype in (torch.float16, torch.bfloat16)
    if holds(dtype, ns.parse_format(name)) or contains(ns.parse_format(name), dtype)
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "dtype"), HELD)
def test_all_half_precision_inputs_round_as_the_enumeration_says(name, mode, dtype):
    format, x = ns.parse_format(name), every_half(dtype)
    found = ns.cast(x, name, rounding=mode)
    wide = x.double().numpy()
    table = magnitudes(format)
    within = ~np.isfinite(wide) | (np.abs(wide) < table[-1])
    expected = round_by_enumeration(wide[within], format, mode, table)
    assert same_bits(found.double().numpy()[within], expected).all()


@pytest.mark.parametrize("rounding", [*MODES, "stochastic"])
@pytest.mark.parametrize("name", SMALL)
def test_every_value_of_a_format_is_a_fixed_point_of_every_mode(name, rounding):
    format = ns.parse_format(name)
    table = magnitudes(format)
    values = torch.from_numpy(table[table <= format.max]).float()
    values = torch.cat([values, -values]) if getattr(format, "has_negative_zero", False) else values
    found = ns.cast(values, name, rounding=rounding, key=ns.Key(seed=1))
    assert torch.equal(found.view(torch.int32), values.view(torch.int32))


@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3fn:saturate", "e5m2", "q7.8", "e2m1"])
@pytest.mark.parametrize("mode", MODES)
def test_a_cast_is_monotone_for_policies_inf_and_saturate(name, mode):
    x = random_float32(200_000, seed=3)
    x = x[~x.isnan()].sort().values
    y = ns.cast(x, name, rounding=mode)
    assert bool((y[1:] >= y[:-1]).all())


@pytest.mark.parametrize("name", [n for n in ALL if not n.startswith(("q", "u"))])
def test_up_and_down_mirror_each_other_and_the_other_modes_are_odd(name):
    x = random_float32(50_000, seed=5)
    mirror = {"up": "down", "down": "up", "half-up": "half-down", "half-down": "half-up"}
    for mode in MODES:
        y = ns.cast(x, name, rounding=mode)
        z = ns.cast(-x, name, rounding=mirror.get(mode, mode))
        signed = ns.parse_format(name).has_negative_zero
        assert same_bits(z.numpy(), -y.numpy() if signed else np.where(y == 0, 0.0, -y.numpy())).all()


@pytest.mark.parametrize("name", ALL)
def test_nan_stays_nan_and_is_canonical_whatever_its_payload(name):
    payloads = torch.tensor([0x7F800001, 0x7FC00000, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32)
    found = ns.cast(payloads.view(torch.float32), name)
    if name == "fp32":
        return  # every float32 is in the format: copied
    assert (found.view(torch.int32) == 0x7FC00000).all()


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_nearest_agrees_with_the_casts_of_torch_on_random_bit_patterns(name, dtype):
    x = random_float32(1_000_000)
    found = ns.cast(x, name)
    assert same_bits(found.numpy(), x.to(dtype).float().numpy()).all()


@given(st.floats(width=64, allow_nan=False), st.sampled_from(MODES))
def test_float64_inputs_are_not_rounded_twice(value, mode):
    from fractions import Fraction

    y = ns.cast(torch.tensor([value], dtype=torch.float64), "fp16", rounding=mode).item()
    if not np.isfinite(value) or not np.isfinite(y):
        return
    exact, found = Fraction(value), Fraction(y)
    exponent = max(int(np.frexp(value)[1]) - 1, -14) if value else -14
    quantum = Fraction(2) ** (exponent - 10)
    assert abs(found - exact) < quantum or abs(found) == 65504
    if mode == "nearest" and abs(value) < 65520:
        assert abs(found - exact) <= quantum / 2


def test_half_plus_a_little_is_rounded_once():
    x = torch.tensor([1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-11, 1 + 2.0**-11 - 2.0**-40], dtype=torch.float64)
    assert ns.cast(x, "fp16").tolist() == [1 + 2.0**-10, 1.0, 1.0]


@pytest.mark.parametrize("name", ["fp16", "bf16", "e5m2", "fp32", "tf32", "q7.8"])
def test_flush_to_zero_changes_no_bit(name):
    x = random_float32(100_000, seed=9)
    x = torch.cat([x, torch.arange(1, 1000, dtype=torch.int32).view(torch.float32)])
    plain = {mode: ns.cast(x, name, rounding=mode) for mode in MODES}
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        flushed = {mode: ns.cast(x, name, rounding=mode) for mode in MODES}
    finally:
        torch.set_flush_denormal(False)
    for mode in MODES:
        assert torch.equal(plain[mode].view(torch.int32), flushed[mode].view(torch.int32)), mode


def test_powers_of_two_and_their_neighbours_round_right_in_every_mode():
    format = ns.parse_format("fp16")
    powers = np.float32(2.0) ** np.arange(-26, 18, dtype=np.float32)
    x = np.concatenate([powers, np.nextafter(powers, np.float32(0)), np.nextafter(powers, np.float32(np.inf))])
    x = np.concatenate([x, -x]).astype(np.float64)
    for mode in MODES:
        found = ns.cast(torch.from_numpy(x).float(), "fp16", rounding=mode).double().numpy()
        assert same_bits(found, round_by_quantum(x, format, mode)).all()
