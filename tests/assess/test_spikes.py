"""Loss spikes: found where one was put, measured as it was put, and not found in noise."""

import math

import numpy as np
import pytest

from normstab.assess.constants import constant
from normstab.assess.judgement import judge_runs
from normstab.assess.spikes import Spike, spikes_of
from tests.assess.synthetic import FP16, make_cell, make_run

STEPS = 400


def course(seed=0, deviation=0.02):
    """A falling loss with noise."""
    return np.linspace(2.0, 1.0, STEPS) + deviation * np.random.default_rng(seed).standard_normal(STEPS)


def test_independent_noise_is_no_spike():
    # After 20 losses, one lies 5 of their deviations above their mean with probability 5e-5 (Student, 19 degrees), and
    # a second one of nine does so too in a few cases of a hundred: well below one spike in 100,000 steps.
    losses = 10 + np.random.default_rng(0).standard_normal(100_000)
    assert len(spikes_of(losses)) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_noise_around_a_falling_loss_is_no_spike(seed):
    assert spikes_of(course(seed, 0.3)) == ()


@pytest.mark.parametrize(("at", "steps", "height"), [(100, 2, 5.0), (200, 30, 0.8), (150, 100, 3.0)])
def test_a_spike_is_found_with_its_height_and_duration(at, steps, height):
    losses = course()
    losses[at : at + steps] += height
    (found,) = spikes_of(losses)
    assert (found.step, found.steps, found.is_recovered) == (at, steps, True)
    # The mean of 20 losses before lies 10 steps back on a slope of 1/400, and noise is 0.02.
    assert found.height == pytest.approx(height + 0.025, abs=0.1)


def test_one_high_loss_alone_is_a_batch_not_a_spike():
    losses = course()
    losses[100] += 5.0
    assert spikes_of(losses) == ()
    losses[100 + int(constant("spike_interval")) - 1] += 5.0
    assert [spike.step for spike in spikes_of(losses)] == [100]


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_the_least_height_is_a_share_of_the_loss(share):
    losses = np.ones(STEPS)
    losses[100:110] += share * constant("spike_share")
    assert [spike.step for spike in spikes_of(losses)] == ([100] if share > 1 else [])


def test_a_spike_that_stays_up_is_not_recovered_and_lasts_to_the_end():
    losses = course()
    losses[300:] += 1.0
    (found,) = spikes_of(losses)
    assert (found.step, found.steps, found.is_recovered) == (300, 100, False)


def test_two_spikes_are_two_and_each_has_its_own_course_before_it():
    losses = course()
    losses[100:120] += 4.0
    losses[250:260] += 2.0
    assert [(spike.step, spike.steps) for spike in spikes_of(losses)] == [(100, 20), (250, 10)]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_is_an_infinitely_high_spike(bad):
    losses = course()[:201]
    losses[199:] = bad
    assert spikes_of(losses) == (Spike(199, 2, math.inf, is_recovered=False),)


@pytest.mark.parametrize("steps", [0, 1, 5, 10])
def test_short_runs_have_no_spikes(steps):
    losses = np.ones(steps)
    losses[steps // 2 :] = 9.0
    assert spikes_of(losses) == ()


def metrics(losses):
    runs = [make_run(make_cell()), make_run(make_cell(precision=FP16), losses=losses)]
    return judge_runs(runs).groups[1].worst


def test_spikes_are_metrics_and_an_unrecovered_one_is_named_by_the_verdict():
    losses = np.concatenate([np.linspace(2.3, 0.6, 100), np.full(100, 2.2)])
    losses[30:35] += 5.0
    found = metrics(losses)
    names = ("loss_spikes", "loss_spike_height", "loss_spike_steps", "unrecovered_spikes")
    count, height, longest, unrecovered = (found.metrics[name] for name in names)
    assert (count, longest, unrecovered) == (2, 100, 1) and height > 4.5
    assert "DIVERGED" in str(found.verdict) and "a loss spike from step 100 on did not recover" in found.reason
    calm = metrics(np.linspace(2.3, 0.4, 200))
    assert [calm.metrics[name] for name in names] == [0, 0, 0, 0]
