"""Each metric of the catalogue, against a run whose number is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from normstab.assess.judgement import judge_runs
from normstab.assess.metrics import METRICS
from normstab.assess.swept import SWEPT
from normstab.experiment.records.cell_record import EpochRecord, Nonfinite, NormLayerRecord, Predictions, Probe
from normstab.experiment.scenario.metric_names import METRIC_NAMES, SWEEP_METRICS
from normstab.numerics.ledger import Histogram, Tally
from tests.assess.synthetic import FP16, STEPS, make_cell, make_run, predictions


def measured(run, references=()):
    groups = judge_runs([*references, run]).groups
    return next(cell for cell in groups[-1].cells if cell.id == run.id).metrics


def half(**record):
    return make_run(make_cell(precision=FP16), **record)


def test_the_catalogue_is_what_scenarios_may_name():
    assert tuple(METRICS) == METRIC_NAMES
    assert tuple(SWEPT) == SWEEP_METRICS


@pytest.mark.parametrize("name", METRICS)
def test_a_run_that_died_at_once_breaks_no_metric(name):
    run = half(nonfinite=Nonfinite(0, "loss"), predicted=Predictions(), losses=[np.nan])
    bare = replace(run, record=replace(run.record, epochs=(), norm_layers={}))
    value = measured(bare)[name]
    assert value is None or math.isfinite(value)


def test_accuracy_and_error_come_from_the_predictions():
    found = measured(half(predicted=predictions(0.75)))
    assert (found["accuracy"], found["error"]) == (0.75, 0.25)
    assert found["best_accuracy"] == pytest.approx(0.75)


def test_the_gap_is_to_the_cells_own_reference_in_units_of_seed_noise():
    references = [make_run(make_cell(seed=s), predicted=predictions(a)) for s, a in ((0, 0.80), (1, 0.82))]
    found = measured(half(predicted=predictions(0.77)), references)
    assert found["accuracy_gap"] == pytest.approx(0.03)
    assert found["accuracy_gap_sd"] == pytest.approx(0.03 / (0.02 / math.sqrt(2)))


def test_loss_gaps_are_means_over_all_steps_and_over_the_last_tenth():
    reference = make_run(make_cell(), losses=np.linspace(3, 1, STEPS))
    losses = np.linspace(3, 1, STEPS)
    losses[STEPS // 2 :] += 0.2
    found = measured(half(losses=losses), [reference])
    assert found["loss_gap_end"] == pytest.approx(0.2)
    # The trailing mean of 20 steps needs 20 steps for the jump: 90.5 of the 200 steps see it in full.
    assert found["loss_gap_area"] == pytest.approx(0.2 * 90.5 / 200)


def test_the_first_divergence_is_a_step_of_the_smoothed_loss():
    falling = np.concatenate([np.full(30, 2.0), np.full(STEPS - 30, 1.0)])
    reference = make_run(make_cell(), losses=falling)
    losses = falling.copy()
    losses[100:] = 11.0
    # The trailing mean passes 1.5 with two steps of 11 among twenty: 1 + 10 / 20 is not above, 1 + 20 / 20 is.
    assert measured(half(losses=losses), [reference])["first_divergence"] == 101


def test_rates_are_shares_of_all_rounded_results_and_of_one_direction():
    sites = {
        "a.square[forward]": Tally(100, overflow=10, subnormal=5, saturated=4),
        "a.grad[backward]": Tally(300, underflow=30, overflow=3, nan_produced=1),
    }
    found = measured(half(sites=sites))
    expected = {"overflow_rate": 13, "underflow_rate": 30, "subnormal_rate": 5, "saturation_rate": 4, "nan_rate": 1}
    assert {name: found[name] * 400 for name in expected} == pytest.approx(expected)
    assert found["gradient_underflow_rate"] == pytest.approx(0.1)
    assert found["gradient_overflow_rate"] == pytest.approx(0.01)


def test_weight_gradients_computed_from_flushed_ones_count_as_zero():
    site = "conv.convolution_backward.weight[backward]"
    sites = {site: Tally(count=100, underflow=10, histogram=Histogram({-20: 30}, zero=60)), "a.b[backward]": Tally(50)}
    assert measured(half(sites=sites))["weight_gradient_zeros"] == pytest.approx(0.7)
    assert measured(half(sites={site: Tally(count=100, underflow=10)}))["weight_gradient_zeros"] is None


def test_channels_probes_updates_and_scales():
    layers = {
        "a": NormLayerRecord("l2", 64, 16, 4, 0.5, 2.0, 1e-5),
        "b": NormLayerRecord("l2", 64, 48, 0, 0.1, 9.0, 1e-5),
    }
    probes = (Probe(0, 0.0, 1.0), Probe(20, 0.2, 0.7), Probe(40, 0.3, 0.8))
    found = measured(half(norm_layers=layers, probes=probes))
    assert found["collapsed_channels"] == 4 / 64
    assert (found["gradient_cosine"], found["weight_distance"]) == (0.7, 0.3)
    assert (found["scale_low"], found["scale_high"]) == (0.1, 9.0)
    assert found["zero_updates"] == 0.01


def test_the_norm_error_of_a_bounded_weight_norm_is_the_largest_over_channels():
    run = half()
    norms = {"conv": (2.0, 2.0, 2.002), "fc": (1.0, 1.5, 1.0)}  # the last layer is not bounded
    record = replace(run.record, epochs=(EpochRecord(0.5, 1.0, 1.0, weight_norms=norms),))
    assert measured(replace(run, record=record))["weight_norm_error"] is None
    bounded = replace(record, rho={"conv": 2.0})
    assert measured(replace(run, record=bounded))["weight_norm_error"] == pytest.approx(1e-3)


# fp16 holds 65504. Squares grow by two binades for one of the input: from 2^12 there are (16 - 12) / 2 = 2 left.
@pytest.mark.parametrize(
    ("norm", "operation", "largest", "room"),
    [
        ("l2", "square", 2.0**12, 2.0),
        ("l1", "abs", 2.0**12, 4.0),
        ("lp3", "power", 2.0**13, 1.0),
        ("l2", "square", 2.0**20, -2.0),
    ],
)
def test_headroom_counts_binades_of_the_input_not_of_the_result(norm, operation, largest, room):
    layers = {"bn1": NormLayerRecord(norm, 64, 16, 0, 0.5, 2.0, 1e-5)}
    run = half(norm_layers=layers, sites={f"bn1.{operation}[forward]": Tally(9, largest=largest, smallest=1.0)})
    assert measured(run)["headroom_up"] == pytest.approx(room, abs=1e-3)


def test_headroom_knows_which_role_a_site_is_rounded_in():
    from normstab.numerics.precision import Precision

    cell = make_cell(precision=str(Precision.parse("fp16;square=fp32")))
    layers = {"bn1": NormLayerRecord("l2", 64, 16, 0, 0.5, 2.0, 1e-5)}
    sites = {"bn1.square[forward]": Tally(9, largest=2.0**20), "bn1.centre[forward]": Tally(9, largest=2.0**10)}
    assert measured(make_run(cell, norm_layers=layers, sites=sites))["headroom_up"] == pytest.approx(6.0, abs=1e-3)


def test_a_run_that_rounds_nothing_has_no_headroom():
    assert measured(make_run(make_cell(), sites={"bn1.square[forward]": Tally(9, largest=1.0)}))["headroom_up"] is None
