"""A look at a few cells of a grid that is too large to be made for it: the first, and each value of an axis once."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, islice

from normstab.experiment.scenario.document import Scenario
from normstab.experiment.scenario.expand import Resolver
from normstab.experiment.scenario.grid import points_of, spans_of
from normstab.experiment.scenario.spec import Cell

__all__ = ["check_combinations", "first_cells"]


def first_cells(scenario: Scenario, most: int) -> list[Cell]:
    """Return the first cells of `expand`, without reading data: those of the first points, and what they need."""
    resolver = Resolver(scenario, hash_data=False)
    listed = {cell.id: cell for cell in islice(chain(resolver.trained(), resolver.swept()), most)}
    ordered: dict[str, Cell] = {}
    for cell in listed.values():
        resolver.put_behind_its_needs(cell, ordered)
    return [cell if cell.id in listed else replace(cell, is_listed=False) for cell in ordered.values()][:most]


def check_combinations(scenario: Scenario) -> None:
    """Raise ScenarioError where a value of an axis does not go with the first values of the others.

    What goes wrong elsewhere in the grid is told when its cells are made.
    """
    resolver = Resolver(scenario, hash_data=False)
    for span in spans_of(scenario.document):
        first = {axis: [values[0]] for axis, values in span.axes.items()}
        for axis, values in span.axes.items():
            for point in points_of(replace(span, axes={**first, axis: values})):
                resolver.check(point)
