"""Every catalogue is listed whole, by every name that the lookup of that catalogue accepts."""

import pytest

from normstab.errors import NormstabError
from normstab.experiment.data.datasets import EVERY_SET
from normstab.experiment.network.models import EVERY_MODEL
from normstab.experiment.scenario.listing import LISTINGS, SCALES, listing
from normstab.experiment.scenario.metric_names import METRIC_NAMES, SWEEP_METRICS
from normstab.experiment.scenario.reader import load_scenario, scenario_paths
from normstab.norms.catalogue import NORMS
from normstab.norms.dispersion import DISPERSIONS
from normstab.numerics.formats import FORMATS
from normstab.numerics.precision import Precision
from normstab.numerics.recipes import RECIPES

CATALOGUES = {
    "formats": FORMATS,
    "norms": NORMS,
    "models": EVERY_MODEL,
    "datasets": EVERY_SET,
    "metrics": (*METRIC_NAMES, *SWEEP_METRICS),
}


def test_the_recipes_are_listed_with_what_they_expand_to():
    rows = {row["name"]: row["precision"] for row in listing("recipes")}
    assert list(rows) == [*RECIPES, "uniform:fp16"]
    assert rows["half"] == "fp16/nearest/fp32:lanes64;norm=wide;master=off"
    assert all(Precision.parse(expansion).compute is not None for expansion in rows.values())


@pytest.mark.parametrize("kind", CATALOGUES)
def test_a_listing_names_every_row_of_its_catalogue(kind):
    assert [row["name"] for row in listing(kind)] == list(CATALOGUES[kind])


def test_every_kind_of_norm_says_what_its_scale_is():
    assert set(SCALES) == set(DISPERSIONS)


def test_an_unknown_catalogue_is_answered_with_the_nearest():
    with pytest.raises(NormstabError, match="did you mean 'norms'"):
        listing("normz")


@pytest.mark.parametrize("kind", LISTINGS)
def test_the_columns_of_a_listing_are_the_same_in_every_row(kind):
    assert len({tuple(row) for row in listing(kind)}) == 1


def test_every_shipped_scenario_is_listed_with_the_question_it_asks():
    rows = {row["name"]: row["question"] for row in listing("scenarios")}
    assert rows == {name: " ".join(load_scenario(name).question.split()) for name in scenario_paths()}
