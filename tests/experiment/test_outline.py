"""The outline of a scenario counts what the run will do."""

import math

import pytest

from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.outline import outline_of
from normstab.experiment.scenario.reader import load_scenario, scenario_paths


@pytest.mark.parametrize("name", scenario_paths())
def test_every_cell_is_outlined_with_its_id_and_its_cost(name):
    scenario = load_scenario(name)
    cells = expand(scenario, hash_data=False)
    outline = outline_of(scenario)
    assert [cell.id for cell in outline.cells] == [cell.id for cell in cells]
    trained = [cell for cell in cells if not cell.sweep]
    assert outline.images == sum(cell.train.epochs * (cell.dataset.train or 6000) for cell in trained)
    assert f"{len(trained)} trained cells" in outline.cost


def test_a_last_smaller_batch_is_a_step():
    scenario = load_scenario("quickstart", overrides=["dataset.train=101", "train.batch=50", "train.epochs=2"])
    cells = outline_of(scenario).cells
    assert {cell.steps for cell in cells} == {2 * math.ceil(101 / 50)}


def test_references_are_told_from_the_cells_that_need_them():
    scenario = load_scenario("quickstart")
    roles = [cell.role for cell in outline_of(scenario).cells]
    assert roles.count("reference") == roles.count("cell") == 8
