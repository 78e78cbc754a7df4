"""Stochastic rounding: unbiased, reproducible to the bit, and one draw per element and key."""

import gfloat
import gfloat.formats
import numpy as np
import pytest
import torch

import normstab as ns
from normstab.numerics.philox import random_fields
from tests.numerics.oracles import every_half, random_float32

KEY = ns.Key(seed=0, site="bn1", step=3)


def stochastic(x, name, key=KEY, bits=16):
    return ns.cast(x, name, rounding=f"stochastic:{bits}", key=key)


@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3fn", "e5m2", "q7.8"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_mean_is_unbiased_in_every_binade_and_among_subnormals(name, sign):
    format, n, bits = ns.parse_format(name), 40_000, 16
    is_fixed = hasattr(format, "fraction_bits")
    least, greatest = (-10, 6) if is_fixed else (max(format.emin - 3, -126), min(format.emax - 1, 126))
    for exponent in np.unique(np.linspace(least, greatest, 12).astype(int)):
        x = np.float32(sign * 1.37 * 2.0**exponent)
        q = 2.0**-8 if is_fixed else 2.0 ** (max(exponent, format.emin) - format.precision + 1)
        f = float(np.abs(x.astype(np.float64)) / q % 1)
        rounded = stochastic(torch.full((n,), float(x)), name, ns.Key(1, f"{exponent}")).double()
        # P15: four standard errors of the mean, and the bias of R bits.
        bound = 4 * np.sqrt(f * (1 - f) / n) * q + 2.0**-bits * q
        assert abs(rounded.mean().item() - float(x)) <= bound, (name, exponent)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_probability_of_rounding_away_is_the_truncated_fraction(bits):
    for eighths in range(8):
        x = torch.full((2**16,), 1.0 + eighths / 8 * 2.0**-10)
        away = (stochastic(x, "fp16", ns.Key(2, str(eighths)), bits) > 1.0).double().mean().item()
        p = np.floor(eighths / 8 * 2**bits) / 2**bits
        assert abs(away - p) <= 5 * np.sqrt(p * (1 - p) / 2**16)  # exactly 0 where p is 0


def test_the_corner_bits_decide_as_defined():
    draws = random_fields(KEY.draw, torch.arange(2**18), 8)
    lowest, highest = int((draws == 0).nonzero()[0]), int((draws == 255).nonzero()[0])
    x = torch.full((2**18,), 1.0 + 2.0**-10 * 255 / 256)
    y = stochastic(x, "fp16", bits=8)
    assert (y[lowest], y[highest]) == (1.0, 1.0 + 2.0**-10)
    just_one = torch.full((2**18,), 1.0 + 2.0**-10 / 256)
    y = stochastic(just_one, "fp16", bits=8)
    assert (y[lowest], y[highest]) == (1.0, 1.0 + 2.0**-10)
    assert torch.equal(y > 1.0, draws == 255)


def test_a_value_below_the_last_random_bit_always_becomes_zero():
    x = torch.full((10_000,), 2.0**-24 * 2.0**-16 * 0.99)
    assert bool((stochastic(x, "fp16") == 0).all())


def test_between_max_and_infinity_it_overflows_with_the_fraction_s_probability():
    y = stochastic(torch.full((2**16,), 65504.0 + 8.0), "fp16")  # a quarter of the quantum 32
    share = y.isinf().double().mean().item()
    assert abs(share - 0.25) <= 5 * np.sqrt(0.25 * 0.75 / 2**16)


def test_it_is_monotone_at_equal_bits():
    x = random_float32(100_000, seed=2)
    x = x[~x.isnan()]
    y, z = stochastic(x, "fp16"), stochastic(torch.nextafter(x, torch.tensor(torch.inf)), "fp16")
    assert bool((z >= y).all())


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded then sliced": lambda x: torch.cat([x, x], 0)[: len(x)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_whatever_the_strides(layout, dtype):
    x = torch.randn(3, 5, 7, 11, dtype=dtype)
    assert torch.equal(stochastic(LAYOUTS[layout](x), "bf16"), stochastic(x, "bf16"))


def test_the_same_bits_whatever_the_number_of_threads():
    x = torch.randn(300_001)
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(stochastic(x, "fp16"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_same_bits_under_vmap():
    x = torch.randn(4, 6, 5)
    whole = stochastic(x, "bf16")
    assert torch.equal(torch.vmap(lambda row: stochastic(row, "bf16"))(x), whole)
    nested = torch.vmap(torch.vmap(lambda row: stochastic(row, "bf16")))(x)
    assert torch.equal(nested, whole)


def test_keys_differ_by_seed_site_and_step():
    x = torch.rand(4096) + 1
    keys = [KEY, ns.Key(1, "bn1", 3), ns.Key(0, "bn2", 3), ns.Key(0, "bn1", 4)]
    found = [stochastic(x, "bf16", key) for key in keys]
    for i, a in enumerate(found):
        for b in found[i + 1 :]:
            assert not torch.equal(a, b)
    assert torch.equal(found[0], stochastic(x, "bf16"))


def test_no_generator_of_torch_is_consumed():
    before = torch.get_rng_state()
    stochastic(torch.randn(10, generator=torch.Generator().manual_seed(0)), "bf16")
    ns.Arithmetic("bf16/stochastic", key=KEY).add(torch.ones(3), torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_each_call_of_a_site_within_a_step_draws_anew_and_a_step_starts_again():
    x = torch.rand(4096) + 1
    arithmetic = ns.Arithmetic("bf16/stochastic", key=ns.Key(9)).at("bn1")
    first, second = arithmetic.cast(x), arithmetic.cast(x)
    assert not torch.equal(first, second)
    arithmetic.advance()
    assert not torch.equal(arithmetic.cast(x), first)
    resumed = ns.Arithmetic("bf16/stochastic", key=ns.Key(9, step=1)).at("bn1")
    arithmetic.clock.set(1)
    assert torch.equal(resumed.cast(x), arithmetic.cast(x))


def test_an_arithmetic_hashes_its_site_as_documented():
    x = torch.rand(512) + 1
    arithmetic = ns.Arithmetic("bf16/stochastic", key=ns.Key(9)).at("bn1")
    arithmetic.cast(x, "input")
    again = arithmetic.cast(x, "input")
    assert torch.equal(again, stochastic(x, "bf16", ns.Key(9, "bn1.input[forward]#1", 0)))


def test_stochastic_rounding_without_a_key_is_an_error():
    with pytest.raises(ns.NormstabError, match="key"):
        ns.cast(torch.ones(2), "bf16", rounding="stochastic")
    with pytest.raises(ns.NormstabError, match="key"):
        ns.Arithmetic("bf16/stochastic").add(torch.ones(2), torch.ones(2))


def test_representable_halves_never_move():
    x = every_half(torch.float16)
    y = stochastic(x, "fp16")
    assert torch.equal(y[~x.isnan()].view(torch.int16), x[~x.isnan()].view(torch.int16))


@pytest.mark.parametrize("bits", (1, 2, 3, 8))
def test_unbiased_rounding_is_that_of_gfloat(bits):
    # gfloat calls it Stochastic: f rounded to R bits, ties to even, then compared with the random bits.
    info = gfloat.formats.format_info_binary16
    x = torch.cat([torch.randn(400, dtype=torch.float64), torch.arange(1, 400, dtype=torch.float64) * 2.0**-14 + 1])
    key = ns.Key(5, "here", 2)
    fields = random_fields(key.draw, torch.arange(len(x)), bits).tolist()
    expected = [
        gfloat.round_float(info, value, gfloat.RoundMode.Stochastic, srbits=field, srnumbits=bits)
        for value, field in zip(x.tolist(), fields, strict=True)
    ]
    found = ns.cast(x, "fp16", rounding=f"stochastic:{bits}:unbiased", key=key)
    assert found.tolist() == expected


def test_unbiased_rounding_with_one_bit_has_no_drift_where_the_biased_one_has():
    x = torch.linspace(1, 2, 40_001, dtype=torch.float64)
    drift = {
        mode: float((ns.cast(x, "e5m2", rounding=mode, key=ns.Key(1)) - x).mean()) / 0.25
        for mode in ("stochastic:1", "stochastic:1:unbiased")
    }
    # Truncation of f to one bit loses a quarter of a quantum on average, and rounding of it nothing.
    assert abs(drift["stochastic:1"] + 0.25) < 0.02 and abs(drift["stochastic:1:unbiased"]) < 0.02
