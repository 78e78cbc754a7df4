"""Forecasts from exponent histograms: against casting the values themselves, and against counting by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normstab.assess.causes.whatif import WHATIF_FORMATS, forecast, smallest_range
from normstab.numerics.formats import FORMATS
from normstab.numerics.ledger import Histogram, Tally
from normstab.simulation.forecast import predicted
from tests.assess.synthetic import make_cell, make_run


def histogram_of(values):
    exponents, counts = np.unique(np.frexp(values[values != 0])[1] - 1, return_counts=True)
    return Histogram({int(e): int(n) for e, n in zip(exponents, counts, strict=True)}, zero=int((values == 0).sum()))


@pytest.mark.parametrize("scale", [1.0, 2.0**14, 2.0**-20])
def test_the_forecast_for_fp16_is_what_numpys_half_does_up_to_the_split_binades(scale):
    """numpy's float16 is the oracle; the binades of max and of half the least quantum may be off by their share."""
    values = np.random.default_rng(0).standard_normal(200_000) * scale
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    histogram = histogram_of(values)
    over, under = predicted(histogram, FORMATS["fp16"])
    split = sum(histogram.binades.get(e, 0) for e in (15, -26, -25)) / histogram.finite_nonzero
    assert abs(over - np.isinf(half).mean()) <= split
    assert abs(under - (half == 0).mean()) <= split


@pytest.mark.parametrize("name", FORMATS)
def test_values_inside_a_format_are_never_forecast_to_be_lost(name):
    limit = FORMATS[name]
    low, high = math.floor(math.log2(limit.min_subnormal)), math.frexp(limit.max)[1] - 1
    histogram = Histogram(dict.fromkeys(range(low, high + 1), 1))
    assert predicted(histogram, limit) == (0.0, 0.0)


@pytest.mark.parametrize("name", FORMATS)
def test_values_far_outside_are_all_lost(name):
    limit = FORMATS[name]
    if limit.is_identity:
        pytest.skip("every float64 is inside")
    high = math.frexp(limit.max)[1]
    low = math.floor(math.log2(limit.min_subnormal)) - 2
    assert predicted(Histogram({high: 3, low: 1}), limit) == (0.75, 0.25)


@given(st.dictionaries(st.integers(-200, 200), st.integers(1, 10**6), min_size=1, max_size=40))
def test_the_smallest_range_covers_enough_and_no_narrower_one_does(binades):
    found = smallest_range(Histogram(binades))
    needed = math.ceil(0.9999 * sum(binades.values()))

    def held(low, high):
        return sum(n for e, n in binades.items() if low <= e <= high)

    assert held(found.low, found.high) >= needed
    width = found.high - found.low
    assert all(held(low, low + width - 1) < needed for low in range(-201, 202))
    assert 2**found.exponent_bits - 2 >= width + 1


def test_the_worst_site_comes_first_and_sites_without_a_histogram_are_left_out():
    sites = {
        "a.x[forward]": Tally(10, histogram=Histogram({0: 10})),
        "b.x[forward]": Tally(10, histogram=Histogram({20: 10})),
        "c.x[forward]": Tally(10),
        "d.x[forward]": Tally(10, histogram=Histogram(zero=10)),
    }
    found = forecast(make_run(make_cell(), sites=sites))
    assert [site.site for site in found] == ["b.x[forward]", "a.x[forward]"]
    assert (found[0].overflow["fp16"], found[0].overflow["bf16"]) == (1.0, 0.0)
    assert set(found[0].overflow) == set(WHATIF_FORMATS)
