"""The variance that a narrow accumulator keeps, as predicted, against sums that are rounded one by one."""

import numpy as np
import pytest

from normstab.numerics.bounds import accumulator_bits, variance_retention

TRIALS = 4000  # the standard error of a variance over them is sqrt(2 / 4000) = 2.2 % of it


def retained(bits, n):
    """The variance of sequential sums of `n` normal numbers, each rounded to nearest with `bits` trailing bits."""
    draws = np.random.default_rng(n)
    sums = np.zeros(TRIALS)
    for _ in range(n):
        fraction, exponent = np.frexp(sums + draws.standard_normal(TRIALS))
        sums = np.ldexp(np.rint(np.ldexp(fraction, bits + 1)), exponent - (bits + 1))
    return sums.var() / n


@pytest.mark.parametrize("n", [64, 256, 1024])
def test_the_predicted_bits_keep_the_variance_and_four_fewer_lose_it(n):
    bits = accumulator_bits(n)
    assert retained(bits, n) == pytest.approx(1.0, abs=4 * (2 / TRIALS) ** 0.5)
    assert retained(bits - 4, n) < 0.9
    assert variance_retention(bits - 4, n) < 0.9


def test_the_prediction_promises_no_more_than_is_kept():
    """To nearest, addends that are swamped in part lose nothing on average: full swamping alone is a safe model.

    Below three bits it is not: a sum that stalled there still counts as what it had reached.
    """
    for bits in range(3, 9):
        assert variance_retention(bits, 1024) <= retained(bits, 1024) + 4 * (2 / TRIALS) ** 0.5
