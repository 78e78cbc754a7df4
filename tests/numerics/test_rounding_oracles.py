"""The same casts against libraries nobody here wrote: ml_dtypes, gfloat, gmpy2, apytypes."""

import numpy as np
import pytest
import torch

import normstab as ns
from tests.numerics.oracles import hard_values, random_float32, same_bits

ML_DTYPES = {
    "e4m3fn": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
    "e4m3fnuz": "float8_e4m3fnuz",
    "e5m2fnuz": "float8_e5m2fnuz",
    "e3m4": "float8_e3m4",
    "e4m3": "float8_e4m3",
    "bf16": "bfloat16",
    "e2m3": "float6_e2m3fn",
    "e3m2": "float6_e3m2fn",
    "e2m1": "float4_e2m1fn",
}


@pytest.mark.parametrize("name", ML_DTYPES)
def test_nearest_agrees_with_ml_dtypes(name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = getattr(ml_dtypes, ML_DTYPES[name])
    x = torch.cat([random_float32(500_000), torch.from_numpy(hard_values(ns.parse_format(name))).float()])
    if ns.parse_format(name).overflow == "saturate":
        x = x[~x.isnan()]  # ml_dtypes has no NaN there; ours keeps it visible
    with np.errstate(all="ignore"):
        expected = x.numpy().astype(dtype).astype(np.float32)
    assert same_bits(ns.cast(x, name).numpy(), expected).all()


GFLOAT_MODES = {
    "nearest": "TiesToEven",
    "nearest-away": "TiesToAway",
    "toward-zero": "TowardZero",
    "up": "TowardPositive",
    "down": "TowardNegative",
}


def _gfloat_info(name):
    """The gfloat description of an IEEE-like eXmY format."""
    gfloat = pytest.importorskip("gfloat")
    format = ns.parse_format(name)
    exponent_bits = (1 - format.emin).bit_length() + 1
    return gfloat.FormatInfo(
        name,
        format.precision + exponent_bits,
        format.precision,
        bias=1 - format.emin,
        is_signed=True,
        domain=gfloat.Domain.Extended,
        has_nz=True,
        num_high_nans=2 ** (format.precision - 1) - 1,
        has_subnormals=True,
        is_twos_complement=False,
    )


@pytest.mark.parametrize("mode", GFLOAT_MODES)
@pytest.mark.parametrize("name", ["fp16", "bf16", "tf32", "e5m2", "e3m4", "e4m3", "e6m9", "e2m2"])
def test_every_mode_but_to_odd_agrees_with_gfloat(name, mode):
    gfloat = pytest.importorskip("gfloat")
    info = _gfloat_info(name)
    x = np.concatenate([random_float32(20_000, seed=1).double().numpy(), hard_values(ns.parse_format(name))[:60_000]])
    with np.errstate(all="ignore"):
        expected = gfloat.round_ndarray(info, x, getattr(gfloat.RoundMode, GFLOAT_MODES[mode]))
    assert same_bits(ns.cast(torch.from_numpy(x), name, rounding=mode).numpy(), expected).all()


@pytest.mark.parametrize("bits", [1, 8, 16])
@pytest.mark.parametrize("name", ["fp16", "bf16", "e5m2", "e4m3"])
def test_stochastic_agrees_with_gfloat_given_the_same_bits(name, bits):
    gfloat = pytest.importorskip("gfloat")
    from normstab.numerics.philox import random_fields

    key = ns.Key(seed=5, site="gfloat", step=7)
    x = np.concatenate([random_float32(20_000, seed=2).double().numpy(), hard_values(ns.parse_format(name))[:20_000]])
    fields = random_fields(key.draw, torch.arange(len(x)), bits).numpy()
    with np.errstate(all="ignore"):
        expected = gfloat.round_ndarray(
            _gfloat_info(name), x, gfloat.RoundMode.StochasticFastest, srbits=fields, srnumbits=bits
        )
    found = ns.cast(torch.from_numpy(x), name, rounding=f"stochastic:{bits}", key=key)
    assert same_bits(found.numpy(), expected).all()


@pytest.mark.parametrize(("name", "p", "emax", "emin"), [("fp16", 11, 16, -23), ("bf16", 8, 128, -132)])
@pytest.mark.parametrize("mode", ["RoundToNearest", "RoundToZero", "RoundUp", "RoundDown"])
def test_values_and_counters_agree_with_mpfr(name, p, emax, emin, mode):
    gmpy2 = pytest.importorskip("gmpy2")
    ours = {"RoundToNearest": "nearest", "RoundToZero": "toward-zero", "RoundUp": "up", "RoundDown": "down"}[mode]
    x = np.concatenate([random_float32(3_000, seed=4).numpy(), hard_values(ns.parse_format(name))[:3_000:7]])
    x = x.astype(np.float32)
    context = gmpy2.context(precision=p, emax=emax, emin=emin, subnormalize=True, round=getattr(gmpy2, mode))
    values, overflow, inexact, underflow = [], 0, 0, 0
    with gmpy2.context(context) as running:
        for value in x.tolist():
            running.clear_flags()
            y = gmpy2.mpfr(value)
            values.append(float(y))
            overflow += running.overflow and np.isfinite(value)
            inexact += running.inexact and np.isfinite(value)
            underflow += value != 0 and y == 0
    ledger = ns.Ledger(inexact=True)
    found = ns.cast(torch.from_numpy(x), name, rounding=ours, ledger=ledger, site="x")
    assert same_bits(found.numpy(), np.array(values)).all()
    tally = ledger["x"]
    assert (tally.overflow, tally.inexact, tally.underflow) == (overflow, inexact, underflow)


@pytest.mark.parametrize(
    ("mode", "quantization"), [("nearest", "RND_CONV"), ("toward-zero", "TRN_ZERO"), ("down", "TRN")]
)
@pytest.mark.parametrize(("integer", "fraction"), [(7, 8), (3, 4), (0, 7), (12, 11)])
def test_fixed_point_agrees_with_apytypes(integer, fraction, mode, quantization):
    apytypes = pytest.importorskip("apytypes")
    generator = np.random.default_rng(0)
    halves = generator.integers(-4096, 4096, 4000) * 2.0 ** -(fraction + 1)
    # On the grid of 2^-40: apytypes 0.5 wraps wrongly from sources of more than 64 bits.
    x = np.concatenate([np.rint(generator.normal(0, 2.0**integer, 4000) * 2.0**40) * 2.0**-40, halves])
    for overflow, policy in (("SAT", "saturate"), ("WRAP", "wrap")):
        wide = apytypes.APyFixedArray.from_float(x.tolist(), int_bits=20, frac_bits=40)
        cast = wide.cast(
            int_bits=integer + 1,
            frac_bits=fraction,
            quantization=getattr(apytypes.QuantizationMode, quantization),
            overflow=getattr(apytypes.OverflowMode, overflow),
        )
        found = ns.cast(torch.from_numpy(x), f"q{integer}.{fraction}:{policy}", rounding=mode)
        assert np.array_equal(found.numpy(), cast.to_numpy() + 0.0)


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div"])
def test_half_operations_and_flags_agree_with_softfloat(operation):
    softfloat = pytest.importorskip("softfloatpy")
    generator = np.random.default_rng(8)
    a, b = (generator.integers(0, 2**16, 4000, dtype=np.uint16) for _ in range(2))
    flag, function = softfloat.ExceptionFlag, getattr(softfloat, f"f16_{operation}")
    results, counts = [], {"inexact": 0, "overflow": 0, "divide_by_zero": 0}
    for left, right in zip(a.tolist(), b.tolist(), strict=True):
        softfloat.set_exception_flags(0)
        y = function(softfloat.Float16.from_bytes(left.to_bytes(2)), softfloat.Float16.from_bytes(right.to_bytes(2)))
        results.append(int.from_bytes(y.to_bytes()))
        raised = softfloat.get_exception_flags()
        for name, bit in (("inexact", flag.INEXACT), ("overflow", flag.OVERFLOW), ("divide_by_zero", flag.INFINITE)):
            counts[name] += bool(raised & bit)
    ledger = ns.Ledger(inexact=True)
    arithmetic = ns.Arithmetic("fp16", ledger=ledger)
    left, right = (torch.from_numpy(v.view(np.float16).astype(np.float32)) for v in (a, b))
    found = getattr(arithmetic, operation)(left, right)
    assert same_bits(found.numpy(), np.array(results, dtype=np.uint16).view(np.float16)).all()
    tally = ledger[operation]
    assert {name: getattr(tally, name) for name in counts} == counts


def test_half_square_roots_agree_with_softfloat_on_every_value():
    softfloat = pytest.importorskip("softfloatpy")
    x = np.arange(2**16, dtype=np.uint16)
    roots = [
        int.from_bytes(softfloat.f16_sqrt(softfloat.Float16.from_bytes(v.to_bytes(2))).to_bytes()) for v in x.tolist()
    ]
    found = ns.Arithmetic("fp16").sqrt(torch.from_numpy(x.view(np.float16).astype(np.float32)))
    assert same_bits(found.numpy(), np.array(roots, dtype=np.uint16).view(np.float16)).all()
