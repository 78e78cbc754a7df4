"""The a-priori bounds: published formulas, and no violation by sums, means and products over random cases."""

import math

import pytest
import torch

import normstab as ns
from normstab.numerics.bounds import Step, confidence, gamma, likely_bound, random_bits, roundoff, worst_bound
from normstab.numerics.precision import Accumulation
from normstab.numerics.sums.steps_of_sums import height, mean_steps, product_steps, sum_steps

FP16 = ns.parse_format("fp16")
NEAREST, STOCHASTIC = ns.Rounding("nearest"), ns.Rounding("stochastic", 16)
PRECISIONS = [
    "fp16",
    "fp16/nearest/fp16:sequential",
    "fp16/nearest/fp16:pairwise",
    "fp16/nearest/fp16:blocked16",
    "bf16/nearest/bf16:lanes8",
    "bf16/nearest/fp16:pairwise",
    "e5m2/nearest/e5m2:sequential",
    "fp16/up/fp16:sequential",
    "fp16/toward-zero/fp16:lanes64",
    "fp16/stochastic:4/fp16:sequential",
    "fp16/nearest/native",
    "fp16/nearest/exact",
    "fp16;mean=blockwise16",
    "fp16;sum=bf16",
    "q6.9/nearest/q10.9",
    "fp16;matmul=fp16:sequential+fused",
    "fp16;matmul=bf16:pairwise",
    "fp16;matmul=exact",
]


def test_the_bounds_are_the_published_ones():
    u = 2.0**-11
    step = [Step.of(roundoff(FP16, NEAREST).of_addition, 100)]
    assert worst_bound(step).relative == pytest.approx(100 * u / (1 - 100 * u))
    published = math.exp(3.0 * math.sqrt(100) * u + 100 * u**2 / (1 - u)) - 1  # Higham and Mary 2019, theorem 2.4
    assert likely_bound(step, 3.0).relative == pytest.approx(published)
    assert roundoff(FP16, STOCHASTIC).unit == 2 * u
    assert roundoff(FP16, STOCHASTIC).bias == 2 * u * 2.0**-16
    assert gamma(2048, u) == math.inf
    assert worst_bound([Step(2048, u, addends=2049, is_nearest_sum=True)]).relative == pytest.approx(2048 * u)
    assert 2 * math.exp(-(confidence(1e-3, 1) ** 2) / 2) == pytest.approx(1e-3)


@pytest.mark.parametrize(("n", "bits"), [(1, 0), (4, 1), (1024, 5), (1025, 6), (2**20, 10)])
def test_as_many_random_bits_suffice_as_keep_the_bias_below_the_spread(n, bits):
    assert random_bits(n) == bits
    assert n * 2.0**-bits <= math.sqrt(n) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("order", "expected"),
    [("sequential", 999), ("pairwise", 10), ("blocked10", 9 + 99), ("lanes64", 15 + 6), ("lanes2000", 10)],
)
def test_the_height_is_the_longest_way_of_an_addend_through_the_sum(order, expected):
    assert height(1000, Accumulation.parse(f"fp16:{order}")) == expected


@pytest.mark.parametrize("text", ["fp16/nearest/fp16:sequential+kahan", "fp16;mean=welford"])
def test_no_bound_is_claimed_where_no_constant_is_proven(text):
    assert mean_steps(10, ns.Precision.parse(text)) is None


def violation(found, exact, condition, steps, format):
    """Return the largest error as a share of the bound, of the results that did not overflow."""
    bound = worst_bound(steps)
    allowed = bound.relative * condition + bound.absolute + 2.0**-45 * condition
    fits = (condition * (1 + min(bound.relative, 1.0)) < float(format.max)) & found.isfinite()
    shares = ((found.double() - exact).abs() / allowed)[fits & (allowed > 0)]
    return float(shares.max()) if shares.numel() else 0.0


def drawn(ar, n, generator):
    """Return rows of n numbers of the format, of a random scale and offset, some of them subnormal."""
    scale = 2.0 ** float(torch.randint(-16, 4, (1,), generator=generator))
    offset = float(torch.randint(-1, 2, (1,), generator=generator))
    return ar.cast((torch.randn(40, n, generator=generator) + offset) * scale)


@pytest.mark.parametrize("text", PRECISIONS)
def test_no_deterministic_bound_is_violated(text):
    precision, generator = ns.Precision.parse(text), torch.Generator().manual_seed(len(text))
    ar = ns.Arithmetic(precision, key=ns.Key(1))
    for n in (1, 2, 7, 64, 300):
        x, y = drawn(ar, n, generator), drawn(ar, n, generator)
        sums, format = precision.accumulation.format or precision.format(), precision.format()
        narrow = min(sums, format, key=lambda each: float(each.max))
        magnitude = x.double().abs()
        total, exact = ar.sum(x, 1), x.double().sum(1)
        assert violation(total, exact, magnitude.sum(1), sum_steps(n, precision, sums), narrow) <= 1.0
        mean = ar.mean(x, 1)
        largest = magnitude.sum(1)  # what may overflow on the way
        steps = [step.scaled(n) for step in mean_steps(n, precision)]
        assert violation(mean * n, exact, largest, steps, narrow) <= 1.0
        product, k = ar.matmul(x, y.T), magnitude @ y.double().abs().T
        assert violation(product, x.double() @ y.double().T, k, product_steps(n, precision), format) <= 1.0


@pytest.mark.parametrize("bits", [4, 16])
def test_a_probabilistic_bound_is_violated_no_more_often_than_stated(bits):
    precision, n, rows, failure = ns.Precision.parse(f"fp16/stochastic:{bits}/fp16:sequential"), 64, 4000, 0.05
    generator = torch.Generator().manual_seed(bits)
    ar = ns.Arithmetic(precision, key=ns.Key(bits))
    x = ar.cast(torch.rand(rows, n, generator=generator))
    bound = likely_bound(sum_steps(n, precision), confidence(failure, n))
    exact, condition = x.double().sum(1), x.double().abs().sum(1)
    share = float(((ar.sum(x, 1).double() - exact).abs() > bound.relative * condition).double().mean())
    assert share <= failure + 3 * math.sqrt(failure / rows)
    assert bound.relative < worst_bound(sum_steps(n, precision)).relative
