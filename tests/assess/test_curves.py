"""Smoothing, the reference's band, and the first divergence."""

import numpy as np
import pytest

from normstab.assess.curves import band_of, end_steps, first_divergence, smoothed


def test_smoothing_is_the_mean_of_the_last_twenty_steps():
    losses = np.random.default_rng(0).random(200)
    expected = [losses[max(0, i - 19) : i + 1].mean() for i in range(200)]
    assert smoothed(losses) == pytest.approx(expected)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7])
def test_short_runs_are_smoothed_over_a_quarter_at_most(steps):
    losses = np.arange(steps, dtype=float)
    assert smoothed(losses).tolist() == losses.tolist()


def test_a_loss_that_is_not_finite_stays_visible_and_spoils_only_its_window():
    losses = np.ones(200)
    losses[50] = np.nan
    assert np.isnan(smoothed(losses)).nonzero()[0].tolist() == list(range(50, 70))


def test_the_band_is_the_wider_of_half_the_progress_and_four_deviations():
    falling = [np.linspace(value, value - 1.0, 80) for value in (3.0, 4.0, 5.0)]
    progress = falling[0][19] - falling[0][-1]  # from the first full window of smoothing
    assert band_of(falling).limit == pytest.approx(falling[1] + 4.0)
    assert band_of(falling[:1]).limit == pytest.approx(falling[0] + progress / 2)


def test_a_reference_that_makes_no_progress_leaves_only_its_seeds_to_the_band():
    assert band_of([np.linspace(1.0, 2.0, 50)]).limit == pytest.approx(np.linspace(1.0, 2.0, 50))


def test_a_band_needs_a_finite_reference():
    assert band_of([np.array([1.0, np.inf]), np.array([])]) is None


@pytest.mark.parametrize(("above", "expected"), [(19, None), (20, 100), (60, 100)])
def test_a_first_divergence_is_the_first_of_twenty_steps_above_the_band(above, expected):
    band = band_of([np.ones(200)])
    curve = np.ones(200)
    curve[100 : 100 + above] = 2.0
    assert first_divergence(curve, band) == expected


def test_a_loss_that_is_not_finite_is_above_the_band():
    curve = np.ones(200)
    curve[100:] = np.nan
    assert first_divergence(curve, band_of([np.ones(200)])) == 100


@pytest.mark.parametrize(("steps", "expected"), [(1, 1), (9, 1), (10, 1), (11, 2), (200, 20)])
def test_the_end_is_a_tenth_of_the_steps_rounded_up(steps, expected):
    assert end_steps(steps) == expected
