"""The six operations: the exact result rounded once, by whole-number fractions; special values; counters."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import normstab as ns
from normstab.numerics.readable.operations import exact_root, exact_sqrt
from tests.numerics.oracles import MODES, every_half, random_float32, same_bits


def half_of(pattern, is_negative):
    """The finite float16 of a magnitude's bits."""
    return float(np.uint16(pattern | is_negative << 15).view(np.float16))


# By their bits: what hypothesis draws of st.floats depends on the constants of the modules that are loaded, and where
# few of these are float16 it gives up.
halves, nonzero_halves = (st.builds(half_of, st.integers(least, 0x7BFF), st.booleans()) for least in (0, 1))
singles = st.floats(width=32, allow_nan=False, allow_infinity=False)
FORMATS = ["fp16", "bf16", "e5m2", "e4m3fn", "tf32", "fp32", "e6m9", "q7.8", "q3.4:wrap"]


def round_fraction(exact: Fraction, format, mode: str) -> float:
    """Round an exact nonzero number by its definition: the quantum, the two neighbours, the policy."""
    size = abs(exact)
    if hasattr(format, "fraction_bits"):
        quantum = Fraction(1, 2**format.fraction_bits)
    else:
        exponent = size.numerator.bit_length() - size.denominator.bit_length()
        exponent -= Fraction(2) ** exponent > size
        quantum = Fraction(2) ** (max(exponent, format.emin) - format.precision + 1)
    whole, rest = divmod(size, quantum)
    half = quantum / 2
    away = {
        "nearest": rest > half or (rest == half and whole % 2 == 1),
        "nearest-away": rest >= half,
        "toward-zero": False,
        "up": rest > 0 and exact > 0,
        "down": rest > 0 and exact < 0,
        "to-odd": rest > 0 and whole % 2 == 0,
        "half-up": rest > half or (rest == half and exact > 0),
        "half-down": rest > half or (rest == half and exact < 0),
        "half-toward-zero": rest > half,
    }[mode]
    rounded = (whole + away) * quantum * (1 if exact > 0 else -1)
    low, high = Fraction(getattr(format, "min", -format.max)), Fraction(format.max)
    if low <= rounded <= high:
        return math.copysign(float(rounded), exact) if getattr(format, "has_negative_zero", False) else float(rounded)
    if format.overflow == "wrap":
        return float((rounded - low) % (high - low + quantum) + low)
    end = float(high if rounded > 0 else low)
    stays = mode in ("toward-zero", "to-odd") or mode == ("down" if rounded > 0 else "up")
    if format.overflow == "saturate-zero":
        return 0.0
    if format.overflow == "saturate-symmetric":
        return float(high) if rounded > 0 else max(-float(high), float(low))
    if format.overflow == "saturate" or stays:
        return end
    return math.copysign(math.inf, end) if format.overflow == "inf" else math.nan


def operate(operation, operands, name, mode, ledger=None):
    arithmetic = ns.Arithmetic(name, rounding=mode, ledger=ledger)
    tensors = [torch.tensor([x], dtype=torch.float32) for x in operands]
    return getattr(arithmetic, operation)(*tensors).item()


EXACT = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "fma": lambda a, b, c: a * b + c,
}


@pytest.mark.parametrize("operation", EXACT)
@given(data=st.data(), name=st.sampled_from(FORMATS), mode=st.sampled_from(MODES))
def test_the_exact_result_is_rounded_once(operation, data, name, mode):
    operands = [data.draw(singles) for _ in range(3 if operation == "fma" else 2)]
    exact = EXACT[operation](*map(Fraction, operands))
    if exact == 0 or (name.endswith("wrap") and abs(exact) >= 2**40):
        return  # by definition a sum far beyond the range wraps from its float64 value, not from the exact one
    ledger = ns.Ledger(inexact=True)
    found = operate(operation, operands, name, mode, ledger)
    expected = round_fraction(exact, ns.parse_format(name), mode)
    assert same_bits(found, expected)
    # Also the flag is that of the exact result, although c is only a float64.
    assert ledger[operation].inexact == (not math.isfinite(expected) or Fraction(expected) != exact)


@given(
    a=halves,
    b=nonzero_halves,
    name=st.sampled_from(["fp16", "bf16", "e5m2", "tf32"]),
    mode=st.sampled_from(MODES),
)
def test_a_quotient_is_rounded_once(a, b, name, mode):
    if a:
        assert same_bits(
            operate("div", [a, b], name, mode), round_fraction(Fraction(a) / Fraction(b), ns.parse_format(name), mode)
        )


@pytest.mark.parametrize("name", ["fp16", "fp32", "tf32", "bf16"])
@pytest.mark.parametrize("mode", MODES)
def test_a_square_root_is_rounded_once(name, mode):
    format = ns.parse_format(name)
    x = torch.rand(400, generator=torch.Generator().manual_seed(1)) * 4
    found = ns.Arithmetic(name, rounding=mode).sqrt(x)
    for value, root in zip(x.tolist(), found.tolist(), strict=True):
        # (root)^2 <= x, and one quantum more is above it; a close rational stands in for the irrational root.
        scale = 2**120
        close = Fraction(math.isqrt(int(Fraction(value) * scale**2)), scale)
        if close * close != Fraction(value):
            close += Fraction(1, 2 * scale)
        if value:
            assert root == round_fraction(close, format, mode)


def test_the_float64_root_is_ieee_s():
    x = torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e3
    for value, root in zip(x[:2000].tolist(), exact_sqrt(x)[:2000].tolist(), strict=True):
        assert root == math.sqrt(value)


@given(st.floats(1e-30, 1e30), st.integers(2, 7))
def test_a_pth_root_is_to_odd_of_the_real_root(value, p):
    root = Fraction(exact_root(torch.tensor([value], dtype=torch.float64), p).item())
    ulp = Fraction(math.ulp(float(root)))
    assert (root - ulp) ** p < Fraction(value) < (root + ulp) ** p
    if root**p != Fraction(value):
        assert np.float64(float(root)).view(np.int64) & 1 == 1


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div"])
def test_half_operations_agree_with_those_of_torch(operation, name):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
    generator = torch.Generator().manual_seed(3)
    order = [torch.randperm(2**16, generator=generator) for _ in range(2)]
    a, b = (every_half(dtype)[index] for index in order)
    found = getattr(ns.Arithmetic(name), operation)(a.float(), b.float())
    assert same_bits(found.numpy(), getattr(torch, operation)(a, b).float().numpy()).all()


def test_an_exact_zero_sum_is_plus_zero_and_minus_zero_under_down():
    one = torch.tensor([1.0, 0.0, -0.0, 0.0])
    other = torch.tensor([-1.0, -0.0, -0.0, 0.0])
    for mode in MODES:
        signs = torch.signbit(ns.Arithmetic("fp16", rounding=mode).add(one, other)).tolist()
        assert signs == [mode == "down", mode == "down", True, False]


def test_special_values_follow_ieee_and_are_counted_by_their_operands():
    inf, nan = math.inf, math.nan
    ledger = ns.Ledger()
    arithmetic = ns.Arithmetic("fp16", ledger=ledger)
    left = torch.tensor([inf, inf, nan, 1.0, 0.0, -1.0])
    right = torch.tensor([-inf, 1.0, 1.0, nan, 0.0, 0.0])
    arithmetic.add(left, right)
    tally = ledger["add"]
    assert (tally.nan_produced, tally.nan_propagated, tally.inf_propagated) == (1, 2, 1)
    quotient = arithmetic.div(left, right)
    tally = ledger["div"]
    assert (tally.nan_produced, tally.nan_propagated, tally.divide_by_zero, tally.overflow) == (2, 2, 1, 0)
    assert quotient[5] == -inf


def test_scalars_are_used_as_they_come():
    x = torch.tensor([3.0])
    assert ns.Arithmetic("fp32").mul(x, 0.1).item() == np.float32(3.0 * 0.1)
    assert ns.Arithmetic("fp16").div(torch.tensor([10.0]), 3).item() == np.float16(10 / 3)


def test_integer_powers_round_every_product():
    x = torch.tensor([1.1]).half().float()
    arithmetic = ns.Arithmetic("fp16")
    assert torch.equal(arithmetic.power(x, 3), arithmetic.mul(arithmetic.mul(x, x), x))
    assert arithmetic.power(torch.tensor([256.0]), 2).item() == math.inf


def test_functions_are_rounded_once_from_float64():
    x = every_half(torch.float16).float()
    x = x[x.isfinite()]
    ledger = ns.Ledger()
    found = ns.Arithmetic("fp16", ledger=ledger).apply(torch.exp, x, operation="exp")
    assert torch.equal(found, ns.cast(x.double().exp(), "fp16").float())
    assert ledger["exp"].overflow == int((found.isinf()).sum())


def test_exact_operations_have_the_signs_of_zero_that_are_documented():
    arithmetic = ns.Arithmetic("fp16")
    zeros, minus = torch.tensor([0.0, 0.0, -0.0, -0.0]), torch.tensor([0.0, -0.0, 0.0, -0.0])
    assert torch.signbit(arithmetic.max(zeros, minus)).tolist() == [False, False, False, True]
    assert torch.signbit(arithmetic.min(zeros, minus)).tolist() == [False, True, True, True]
    assert torch.signbit(arithmetic.relu(minus)).tolist() == [False] * 4
    assert torch.signbit(arithmetic.sign(minus)).tolist() == [False] * 4
    assert math.isnan(arithmetic.max(torch.tensor([math.nan]), torch.tensor([1.0])).item())
    assert math.isnan(arithmetic.relu(torch.tensor([math.nan])).item())


def test_float64_operations_are_ieee_s_own():
    a, b = torch.randn(2, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    arithmetic = ns.Arithmetic("fp64")
    assert torch.equal(arithmetic.add(a, b), a + b) and torch.equal(arithmetic.div(a, b), a / b)


@pytest.mark.parametrize("operation", ["add", "mul", "div"])
@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3fn", "q7.8"])
def test_flush_to_zero_changes_no_result(operation, name):
    a, b = random_float32(20_000, 1), random_float32(20_000, 2)
    a[:500] = torch.arange(1, 501, dtype=torch.int32).view(torch.float32)
    plain = getattr(ns.Arithmetic(name), operation)(a, b)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        flushed = getattr(ns.Arithmetic(name), operation)(a, b)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(plain.view(torch.int32), flushed.view(torch.int32))


def test_operands_broadcast_and_results_live_in_the_carrier():
    arithmetic = ns.Arithmetic("fp16")
    column, row = torch.rand(3, 1), torch.rand(4).half()
    assert arithmetic.mul(column, row).shape == (3, 4) and arithmetic.mul(column, row).dtype == torch.float32
    assert arithmetic.mul(column.double(), row).dtype == torch.float64
    assert ns.Arithmetic("fp64").add(column, 1.0).dtype == torch.float64


def test_native_is_plain_torch():
    arithmetic, x = ns.Arithmetic("native", ledger=(ledger := ns.Ledger())), torch.randn(3, 4)
    assert torch.equal(arithmetic.add(x, 0.3), x + 0.3) and torch.equal(arithmetic.sum(x, 1), x.sum(1))
    assert torch.equal(arithmetic.matmul(x, x.t()), x @ x.t()) and torch.equal(arithmetic.mean(x), x.mean())
    assert len(ledger) == 0


def test_a_constant_of_minus_zero_is_not_the_zero_that_was_asked_for_before():
    for values in ((0.0, -0.0), (-0.0, 0.0)):
        ar = ns.Arithmetic("e5m9")  # which nothing else here has asked
        assert [math.copysign(1.0, ar.constant(x, "c")) for x in values] == [math.copysign(1.0, x) for x in values]
