"""Errors grow with the number of addends as was published: the exponents of fits over n."""

import json

import pytest

from normstab.__main__ import main
from normstab.search.error_growth import LAWS, error_growth

# Of the slope of seven points, each a root mean square over 256 draws with a relative error of 1 / sqrt(512): 0.02; the
# laws are asymptotic besides (a binade's grid at the small lengths, what stands still at the great ones).
TOLERANCE = 0.12


@pytest.fixture(scope="module")
def found():
    return dict(zip(LAWS, error_growth(), strict=True))


@pytest.mark.parametrize("name", LAWS)
def test_the_fitted_exponent_is_the_published_one(found, name):
    assert found[name].exponent == pytest.approx(found[name].published, abs=TOLERANCE)


def test_sums_of_ones_stand_still_at_two_to_the_precision(found):
    assert found["stall"].measured == found["stall"].lengths


def test_pairwise_errors_stay_within_their_published_growth(found):
    pairwise, sequential = found["pairwise variance"], found["stochastic variance"]
    assert pairwise.measured[-1] < sequential.measured[-1] / 10


def test_the_command_prints_both_exponents(capsys):
    assert main(["bounds", "--growth", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["published"] for row in rows] == [law.published for law in LAWS.values()]
    assert main(["bounds", "--growth"]) == 0
    assert "arXiv 2304.05177" in capsys.readouterr().out
    assert main(["bounds"]) == 2
    assert main(["bounds", "some:thing", "--growth"]) == 2
