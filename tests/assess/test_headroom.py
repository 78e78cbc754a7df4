"""Headroom speaks of the machine that ran: rules and norms mean there what they mean in a simulation."""

from dataclasses import replace

import pytest

from normstab.assess.causes.headroom import degree_of, headroom
from normstab.assess.causes.remedies import GridTested, remedies_for
from normstab.assess.runs import group_runs
from normstab.experiment.records.cell_record import NormLayerRecord
from normstab.numerics.formats import FORMATS
from normstab.numerics.ledger import Tally
from tests.assess.synthetic import make_cell, make_run

LAYER = "layer1.1"


def ruled_run(rules, sites, *, norm="l2", precision="fp16"):
    cell = make_cell(norm, precision)
    cell = replace(cell, numerics=replace(cell.numerics, rules=rules))
    layers = {LAYER: NormLayerRecord(norm, 1024, 16, 0, 0.5, 2.0, 1e-5)}
    return make_run(cell, sites={f"{LAYER}.{site}": tally for site, tally in sites.items()}, norm_layers=layers)


def test_a_rule_of_the_module_around_a_layer_holds_for_it():
    sites = {"eps[forward]": Tally(1000, largest=2.0**21, smallest=1.0)}
    assert headroom(ruled_run({}, sites))[0].up == pytest.approx(-5, abs=0.01)
    for key in ("layer1", LAYER, r"re:layer\d", f"{LAYER}::eps", "op:eps"):
        assert headroom(ruled_run({key: "fp32"}, sites))[0].up == pytest.approx(107, abs=0.01), key


def test_a_layer_that_is_kept_native_has_no_limit():
    assert headroom(ruled_run({"layer1": "native"}, {"eps[forward]": Tally(9, largest=2.0**21)}))[0].up is None


@pytest.mark.parametrize(("norm", "degree"), [("l2", 2), ("lp3", 3), ("lp2.5", 2.5), ("l1", 1), ("top10", 1), ("?", 1)])
def test_the_degree_is_that_of_the_norm_which_its_name_means(norm, degree):
    assert degree_of(norm) == degree


def test_binades_of_a_power_are_divided_by_its_degree():
    sites = {"power[forward]": Tally(1000, largest=FORMATS["fp16"].max * 2.0**-10, smallest=1.0)}
    assert headroom(ruled_run({}, sites, norm="lp2.5"))[0].up == pytest.approx(4)


def test_what_a_rule_rounds_is_helped_by_changing_that_rule():
    sites = {"square[forward]": Tally(1000, overflow=7, largest=2.0**21, smallest=1.0)}
    for rules, setting in [({}, "precision"), ({"layer1": "fp16"}, "numerics.rules.layer1")]:
        run = ruled_run(rules, sites, precision="fp16" if not rules else "bf16")
        (group,) = group_runs([run], tolerance=0.01)
        (squares,) = [found for found in remedies_for(run, group, GridTested()) if found.name == "wide squares"]
        assert squares.change == {setting: "fp16/nearest/fp32:lanes64;square=fp32"}
