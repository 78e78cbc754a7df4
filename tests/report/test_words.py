"""Words: short precisions that mean the same, tables that line up, values that YAML reads back."""

import shlex

import pytest

from normstab.assess.points import point_words, short_precision
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.scenario_text import parse_text
from normstab.numerics.precision import Precision
from normstab.report.words import _yaml, aligned, number, promote_command
from normstab.search.chosen_cell import chosen_cells
from tests.report.made import made_scenario

PRECISIONS = ["native", "fp16", "fp16/stochastic", "bf16/nearest/fp32:sequential", "fp16;square=fp32;mean=blockwise64"]
PRECISIONS += ["q4.11/stochastic:8", "fp64", "fp16/nearest/exact", "e4m3fn:saturate/nearest/fp16:blocked64+kahan"]


@pytest.mark.parametrize("text", PRECISIONS)
def test_a_short_precision_means_the_same_and_is_no_longer(text):
    full = str(Precision.parse(text))
    short = short_precision(full)
    assert Precision.parse(short) == Precision.parse(text)
    assert len(short) <= len(full)


def test_the_usual_precision_is_one_word():
    assert short_precision("fp16/nearest/fp32:lanes64") == "fp16"
    assert point_words({"norm": "l2", "precision": "native", "seed": 0}) == "norm l2, precision fp32 (native), seed 0"


def test_what_is_no_precision_is_left_alone():
    assert short_precision("nonsense") == "nonsense"


@pytest.mark.parametrize(
    "value",
    ["l2", "null", "true", "fp16;square=fp32", "fp16/nearest/fp32:lanes64", 1, 1e-3, True, None, "a: b", "x y", ""],
)
def test_values_survive_yaml(value):
    assert parse_text(_yaml(value), "here").document == value


def test_cells_with_pipes_and_wide_letters_line_up():
    table = aligned(("a", "b"), [("x|y", "1"), ("幅", "22")], right=(1,))
    assert table.splitlines() == ["| a    |   b |", "| ---- | --: |", "| x\\|y |   1 |", "| 幅   |  22 |"]


def test_numbers_are_short():
    assert (number(None), number(0.123456), number(1234.5, 2)) == ("-", "0.123", "1.2e+03")


def test_the_command_that_promotes_means_the_cells_of_its_point(tmp_path):
    scenario = made_scenario(tmp_path)
    cells = [cell for cell in expand(scenario) if cell.is_listed and not cell.is_reference]
    for cell in cells:
        words = shlex.split(promote_command(scenario, cell.coordinates))
        assert words[:4] == ["normstab", "promote", "scenarios/made.yaml", "--cell"]
        found = chosen_cells(cells, words[4])
        assert cell in found and len(found) == 3  # seeds
