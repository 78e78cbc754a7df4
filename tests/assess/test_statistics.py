"""Quantiles and intervals against tables, exact formulas and simulated coverage."""

import math

import numpy as np
import pytest

from normstab.assess.statistics import mean_interval, normal_quantile, paired_gap, t_quantile

# Source: Abramowitz and Stegun 1964, table 26.10, two-sided 90 % and 95 %.
T_TABLE = {
    1: (6.314, 12.706),
    2: (2.920, 4.303),
    3: (2.353, 3.182),
    5: (2.015, 2.571),
    10: (1.812, 2.228),
    30: (1.697, 2.042),
}


@pytest.mark.parametrize("freedom", T_TABLE)
def test_t_quantiles_are_those_of_the_table(freedom):
    found = [t_quantile(confidence, freedom) for confidence in (0.90, 0.95)]
    assert found == pytest.approx(T_TABLE[freedom], abs=5.1e-4)


def test_t_tends_to_the_normal():
    assert t_quantile(0.95, 10_000) == pytest.approx(normal_quantile(0.95), rel=1e-3)
    assert normal_quantile(0.95) == pytest.approx(1.959964, abs=1e-6)


def test_a_mean_of_one_value_has_no_interval():
    assert mean_interval([1.0], 0.95) is None


def test_the_interval_of_a_mean_is_students():
    found = mean_interval([1.0, 2.0, 3.0], 0.95)
    assert (found.estimate, found.high - found.estimate) == (2.0, pytest.approx(4.3027 / math.sqrt(3), rel=1e-4))


def test_the_paired_gap_of_one_seed_is_the_adjusted_wald_interval():
    """Agresti and Min: b = 30 and c = 10 discordant pairs of 200, estimate (b - c) / n."""
    difference = np.array([[1.0] * 30 + [-1.0] * 10 + [0.0] * 160])
    found = paired_gap(difference, [])
    expected = math.sqrt(30 + 10 + 1 - 20**2 / 202) / 202
    assert (found.estimate, found.standard_error) == (pytest.approx(0.1), pytest.approx(expected))


def test_equal_predictions_still_leave_a_little_doubt():
    assert 0 < paired_gap(np.zeros((1, 100)), []).standard_error < 0.011


def test_seeds_that_repeat_each_other_add_no_certainty_about_the_images():
    row = np.random.default_rng(0).integers(-1, 2, 1000).astype(float)
    one, three = paired_gap(row[None], []), paired_gap(np.stack([row] * 3), [])
    assert three.image_variance == pytest.approx(one.image_variance, rel=0.01)


def test_independent_seeds_divide_the_variance():
    rows = np.random.default_rng(0).integers(-1, 2, (9, 1000)).astype(float)
    found = [paired_gap(rows[:seeds], []).image_variance for seeds in (1, 9)]
    assert found[0] / found[1] == pytest.approx(9, rel=0.15)


def test_seed_noise_of_the_reference_widens_the_interval():
    luck = np.random.default_rng(0)
    steady = [luck.random(2000) < 0.85 for _ in range(3)]
    jumpy = [luck.random(2000) < accuracy for accuracy in (0.80, 0.85, 0.90)]
    difference = np.stack([luck.integers(-1, 2, 2000) for _ in range(3)]).astype(float)
    quiet, noisy = (paired_gap(difference, seeds) for seeds in (steady, jumpy))
    assert quiet.seed_variance < 1e-5
    # Three seeds with a standard deviation of 5 points: two networks' variance over three seeds.
    assert noisy.seed_variance == pytest.approx(2 * 0.05**2 / 3, rel=0.1)


def test_runs_that_agree_image_by_image_share_their_luck():
    luck = np.random.default_rng(0)
    jumpy = [luck.random(2000) < accuracy for accuracy in (0.80, 0.85, 0.90)]
    assert paired_gap(np.zeros((3, 2000)), jumpy).seed_variance == 0.0


@pytest.mark.parametrize("confidence", [0.90, 0.95])
@pytest.mark.parametrize("images", [200, pytest.param(2000, marks=pytest.mark.nightly)])
def test_the_interval_covers_the_true_gap_as_often_as_it_says(images, confidence):
    """Two seeds, images that differ in difficulty: 1000 draws, coverage within 3.5 binomial standard errors."""
    luck, draws, covered = np.random.default_rng(1), 1000, 0
    for _ in range(draws):
        hard = luck.beta(2, 0.4, images)
        reference = luck.random((2, images)) < hard
        cell = luck.random((2, images)) < hard - 0.02 * (hard > 0.02)
        found = paired_gap(reference.astype(float) - cell, []).interval(confidence)
        covered += found.low <= 0.02 * BETA_ABOVE <= found.high
    assert abs(covered / draws - confidence) < 3.5 * math.sqrt(confidence * (1 - confidence) / draws)


# P(Beta(2, 0.4) > 0.02) = 1 - about 1e-4: nearly every image loses the 2 points.
BETA_ABOVE = 0.9998


def test_more_seeds_would_settle_what_the_interval_leaves_open():
    rows = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], (3, 2000), p=[0.03, 0.93, 0.04])
    found = paired_gap(rows, [])
    bound = found.estimate - 0.5 * found.standard_error
    more = found.more_seeds(bound, 0.95)
    reach = [normal_quantile(0.95) * found.standard_error * math.sqrt(3 / (3 + n)) for n in (more - 1, more)]
    assert reach[1] <= found.estimate - bound < reach[0]


def test_a_gap_at_the_bound_cannot_be_settled():
    found = paired_gap(np.array([[1.0, -1.0] * 50]), [])
    assert (found.more_seeds(0.0, 0.95), found.more_images(0.0, 0.95)) == (None, None)
