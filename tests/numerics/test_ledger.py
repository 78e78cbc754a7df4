"""What a ledger counts, how it is asked, and what its histogram foretells."""

import math

import numpy as np
import pytest
import torch

import normstab as ns
from normstab.numerics.ledger import COUNTERS
from tests.numerics.oracles import MODES, random_float32

FORMATS = ["fp16", "bf16", "e4m3fn", "e5m2", "e2m1", "fp16:saturate", "q7.8", "q3.4:wrap", "fp32"]


WHOLE = {
    "nearest": np.rint,
    "nearest-away": lambda v: np.trunc(v + np.copysign(0.5, v)),
    "toward-zero": np.trunc,
    "up": np.ceil,
    "down": np.floor,
    "to-odd": lambda v: np.where(v == np.trunc(v), v, np.trunc(v) + np.copysign(np.trunc(v) % 2 == 0, v)),
    "half-up": lambda x: np.floor(x + 0.5),
    "half-down": lambda x: np.ceil(x - 0.5),
    "half-toward-zero": lambda x: np.copysign(np.ceil(np.abs(x) - 0.5), x),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FORMATS)
def test_counters_equal_an_independent_count(name, mode):
    format, x = ns.parse_format(name), random_float32(100_000, seed=6)
    ledger = ns.Ledger(inexact=True)
    y = ns.cast(x, name, rounding=mode, ledger=ledger, site="conv1").double().numpy()
    tally, exact = ledger["conv1"], x.double().numpy()
    finite = np.isfinite(exact)
    least_normal = getattr(format, "min_normal", 0.0)
    low, high = getattr(format, "min", -format.max), format.max
    assert tally.count == 100_000
    assert tally.underflow == (finite & (exact != 0) & (y == 0)).sum()
    assert tally.subnormal == ((y != 0) & (np.abs(y) < least_normal)).sum()
    assert tally.nan_propagated == np.isnan(exact).sum()
    assert tally.nan_produced == (np.isnan(y) & ~np.isnan(exact)).sum()
    assert tally.inf_propagated == (np.isinf(y) & np.isinf(exact)).sum()
    assert tally.inexact == (finite & (y != exact)).sum()
    # Whatever the policy: beyond the range after rounding with an unbounded exponent, that is, with a wider format.
    quantum = 2.0**-8 if name == "q7.8" else 2.0**-4 if name.startswith("q") else None
    if quantum is None:
        unbounded = ns.cast(x.double(), ns.Format("wide", format.precision, format.emin, 250, 2.0**250), rounding=mode)
        beyond = unbounded.numpy()
    else:
        whole = WHOLE[mode](np.where(finite, exact, 0.0) / quantum)
        beyond = whole * quantum
    is_beyond = finite & ((beyond > high) | (beyond < low))
    assert tally.overflow == is_beyond.sum()
    saturates = format.overflow == "saturate"
    assert tally.saturated == ((is_beyond | np.isinf(exact)).sum() if saturates else 0)
    sizes = np.abs(exact[finite & (exact != 0)])
    assert (tally.largest, tally.smallest) == (sizes.max(), sizes.min())


def test_overflow_is_counted_before_the_policy_hides_it():
    for policy in ("inf", "nan", "saturate"):
        ledger = ns.Ledger()
        ns.cast(torch.tensor([70000.0, 1.0]), f"fp16:{policy}", ledger=ledger, site="x")
        assert ledger["x"].overflow == 1


@pytest.mark.parametrize(("value", "overflows"), [(65504.0, 0), (65519.996, 0), (65520.0, 1), (131008.0, 1), (3e38, 1)])
def test_fp16_overflows_from_half_a_quantum_above_its_maximum(value, overflows):
    ledger = ns.Ledger()
    y = ns.cast(torch.tensor([value]), "fp16", ledger=ledger, site="x")
    assert ledger["x"].overflow == overflows == int(y.isinf())


def test_magnitudes_are_truncated_to_float32():
    ledger = ns.Ledger()
    ns.cast(
        torch.tensor([1 + 2.0**-30, 1e300, 1e-300, 0.0, math.inf], dtype=torch.float64), "fp32", ledger=ledger, site="x"
    )
    assert ledger["x"].largest == np.finfo(np.float32).max
    assert ledger["x"].smallest == 0.0


def test_a_key_of_a_rule_is_a_key_of_the_ledger():
    ledger = ns.Ledger()
    ar = ns.Arithmetic("fp16", ledger=ledger)
    ar.at("layer1.bn1").cast(torch.ones(3), "dispersion.sum")
    ar.at("layer1").cast(torch.ones(4), "add")
    assert ledger["layer1.bn1::dispersion.sum"].count == ledger["layer1.bn1.dispersion.sum"].count == 3
    assert ledger["layer1::add"].count == 4
    with pytest.raises(KeyError, match="no site under 'layer2::add'"):
        ledger["layer2::add"]


def test_a_prefix_sums_what_lies_under_it():
    ledger = ns.Ledger()
    arithmetic = ns.Arithmetic("fp16", ledger=ledger).at("layer1").at("bn1")
    arithmetic.mul(torch.full((3,), 300.0), 300.0, operation="square")
    arithmetic.towards("backward").cast(torch.ones(2), "grad")
    ns.Arithmetic("fp16", ledger=ledger).at("layer10").cast(torch.ones(7))
    assert ledger["layer1"].count == 5 and ledger["layer1.bn1.square"].overflow == 3
    assert ledger["layer1.bn1.square[forward]"] == ledger[ns.Site("layer1.bn1", "square")]
    assert [str(site) for site in ledger] == [
        "layer1.bn1.square[forward]",
        "layer1.bn1.grad[backward]",
        "layer10.cast[forward]",
    ]
    with pytest.raises(KeyError, match="did you mean 'layer10'"):
        ledger["layr10"]


def test_the_first_offence_is_the_first_in_order_of_execution():
    ledger = ns.Ledger()
    arithmetic = ns.Arithmetic("fp16", ledger=ledger)
    late, early = arithmetic.at("late"), arithmetic.at("early")
    late.cast(torch.ones(1), "input")
    assert ledger.first("overflow") is None
    arithmetic.advance()
    early.cast(torch.tensor([1e6]), "input")
    late.cast(torch.tensor([1e6]), "input")
    assert ledger.first("overflow") == ns.First(ns.Site("early", "input"), 1)
    assert ledger.first_step(ns.Site("late", "input"), "overflow") == 1
    with pytest.raises(ns.NormstabError, match="did you mean 'overflow'"):
        ledger.first("overflw")


def test_tallies_add():
    ledger = ns.Ledger(inexact=True, histogram=True)
    x = random_float32(1000)
    ns.cast(x, "fp16", ledger=ledger, site="whole")
    ns.cast(x[:300], "fp16", ledger=ledger, site="a")
    ns.cast(x[300:], "fp16", ledger=ledger, site="b")
    assert ledger["a"] + ledger["b"] == ledger["whole"]
    assert ledger["a"] + ns.Tally() == ledger["a"]


def test_draining_restarts_the_counts_and_keeps_the_first_offences():
    ledger = ns.Ledger()
    for step in range(2):
        ns.cast(torch.tensor([1e9]), "fp16", ledger=ledger, site="x", key=ns.Key(step=step))
        assert ledger.drain()[ns.Site("x", "cast")].overflow == 1
    assert ledger["x"].count == 0 and ledger.first("overflow").step == 0


def test_counts_are_none_unless_asked_for():
    ledger = ns.Ledger()
    ns.cast(torch.tensor([0.1]), "fp16", ledger=ledger, site="x")
    assert ledger["x"].inexact is None and ledger["x"].histogram is None


def test_the_histogram_counts_exact_results_per_binade():
    x = random_float32(50_000, seed=8)
    ledger = ns.Ledger(histogram=True)
    ns.cast(x, "fp16", ledger=ledger, site="x")
    histogram, wide = ledger["x"].histogram, x.double().numpy()
    finite = np.isfinite(wide) & (wide != 0)
    exponents, counts = np.unique(np.frexp(np.abs(wide[finite]))[1] - 1, return_counts=True)
    assert histogram.binades == dict(zip(exponents.tolist(), counts.tolist(), strict=True))
    assert (histogram.zero, histogram.inf, histogram.nan) == (
        (wide == 0).sum(),
        np.isinf(wide).sum(),
        np.isnan(wide).sum(),
    )
    assert histogram.finite_nonzero == finite.sum()


def test_what_came_after_an_event_is_forgotten_and_what_came_before_stays():
    ledger = ns.Ledger(losses=True)
    first, second = (ledger.row(ns.Site("a", name)) for name in ("add", "mul"))
    counts = np.zeros(len(COUNTERS), np.int64)
    counts[COUNTERS.index("overflow")] = 2
    first.add(counts, 1.0, 1.0, stamp=ledger.stamp(), step=3)
    drained = ledger.drain()
    then = ledger.stamped
    for row, counter in ((first, "absorbed"), (second, "cancelled")):
        row.add(counts, 1.0, 1.0, stamp=ledger.stamp(), step=4)
        row.lose(counter, 5, stamp=ledger.stamp(), step=4)
    ledger.forget_after(then)
    assert drained[ns.Site("a", "add")].overflow == 2
    assert ledger.total() == ns.Tally()
    assert ledger.first("overflow") == ns.First(ns.Site("a", "add"), 3)
    assert ledger.first("absorbed", "cancelled") is None
    second.add(counts, 1.0, 1.0, stamp=ledger.stamp(), step=4)
    assert ledger.first_step(ns.Site("a", "mul"), "overflow") == 4
