"""The whole judgement of a scenario: its groups in the grid's order, its expectations, and what is missing.

The one entry point from runs to what a report shows; pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normstab.assess.expected.expectations import ExpectationResult, Findings, judge_expectation
from normstab.assess.expected.outcome import Outcome
from normstab.assess.judgement import GroupJudgement, Judgement, judge_runs
from normstab.assess.runs import Group, Run, group_runs
from normstab.assess.verdicts import Verdict
from normstab.errors import StrayRecord
from normstab.experiment.scenario.checking.checks import canonical, path_of
from normstab.experiment.scenario.document import Scenario
from normstab.experiment.scenario.spec import Cell

__all__ = ["Assessment", "assess", "matched"]


@dataclass(frozen=True)
class Assessment:
    """Everything that was judged of one scenario.

    `swept` are the groups of its sweep, which have no verdict. `missing` are cells without a readable record,
    `problems` the files that could not be read, in words, `warnings` what was left out and harms nothing.
    """

    scenario: Scenario
    groups: tuple[GroupJudgement, ...]
    expectations: tuple[ExpectationResult, ...]
    swept: tuple[Group, ...] = ()
    missing: tuple[Cell, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[Judgement, ...]:
        """Every cell's judgement, references included."""
        return tuple(cell for group in self.groups for cell in group.cells)

    @property
    def judged(self) -> tuple[GroupJudgement, ...]:
        """The groups that a verdict is about: all but the references; the references where there is nothing else."""
        return tuple(group for group in self.groups if not group.is_reference) or self.groups

    def count(self, outcome: Outcome) -> int:
        """Return how many expectations had this outcome."""
        return sum(result.outcome is outcome for result in self.expectations)

    def tally(self) -> dict[Verdict, int]:
        """Return how many judged cells have each verdict; verdicts of no cell are left out."""
        found = [cell.verdict for group in self.judged for cell in group.cells]
        return {verdict: found.count(verdict) for verdict in Verdict if verdict in found}


def assess(
    runs: Sequence[Run],
    scenario: Scenario,
    *,
    expected: Sequence[Cell] = (),
    problems: Sequence[Exception] = (),
) -> Assessment:
    """Return the judgement of the runs that belong to `scenario`.

    `expected` are the cells the scenario has, in their order: records of other cells are left out, cells without one
    are `missing`. Where not one id is theirs, they are found by their coordinates. Without `expected` every run
    counts, in the order of the grid's values.
    """
    ordered, missing = matched(runs, expected)
    strays = [str(problem) for problem in problems if isinstance(problem, StrayRecord)]
    if not expected:
        ordered = sorted(runs, key=lambda run: _grid_place(run.coordinates, scenario.parsed.grid))
    judged = judge_runs(ordered, tolerance=scenario.tolerance).groups
    swept = tuple(group_runs([run for run in ordered if run.is_swept], tolerance=scenario.tolerance))
    findings = Findings(judged, swept, expected, frozenset(cell.id for cell in missing))
    smoke = scenario.is_smoke
    return Assessment(
        scenario,
        judged,
        tuple(judge_expectation(expectation, findings, only_smoke=smoke) for expectation in scenario.expectations),
        swept,
        missing,
        tuple(str(problem) for problem in problems if not isinstance(problem, StrayRecord)),
        (*strays, *_of_other_code(ordered, expected)),
    )


def _of_other_code(runs: Sequence[Run], expected: Sequence[Cell]) -> list[str]:
    """Return a warning where records were found by their place, and the code of their model is another now."""
    known = {cell.code_sha256 for cell in expected} - {""}
    others = [run.id for run in runs if known and run.code_sha256 not in known]
    if not others:
        return []
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return [
        f"made with other code of the model than is here now: {others[0]}{more}; run the scenario to make them anew"
    ]


def matched(runs: Sequence[Run], cells: Sequence[Cell]) -> tuple[list[Run], tuple[Cell, ...]]:
    """Return the runs of `cells`, in their order, and the cells that have none.

    They are found by their ids, or, where not one is theirs, by their coordinates.
    """
    by_id = {run.id: run for run in runs}
    if not any(cell.id in by_id for cell in cells):
        by_id = _by_coordinates(runs, cells)
    return [by_id[cell.id] for cell in cells if cell.id in by_id], tuple(cell for cell in cells if cell.id not in by_id)


def _by_coordinates(runs: Sequence[Run], expected: Sequence[Cell]) -> dict[str, Run]:
    """Return the runs by the id of the expected cell at their place: made of other data, or by other numerics."""
    at = {_place_of(run.coordinates, run.is_reference, run.is_swept): run for run in runs}
    places = {cell.id: _place_of(cell.coordinates, cell.is_reference, cell.sweep is not None) for cell in expected}
    return {name: at[place] for name, place in places.items() if place in at}


def _place_of(point: Mapping[str, Any], *kind: bool) -> tuple[Any, ...]:
    """Return the coordinates of a cell, whatever its id, and of what kind it is."""
    return (*kind, *((axis, isinstance(point[axis], bool), point[axis]) for axis in sorted(point)))


def _grid_place(point: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> tuple[Any, ...]:
    """Return the place of a point in the grid: the position of each value on its axis; a reference comes first."""
    place: list[Any] = []
    for axis, values in grid.items():
        listed = [canonical(path_of(axis), value) for value in values]
        found = point.get(axis)
        place.append(listed.index(found) if found in listed else -1)
    return (*place, str(sorted(point.items(), key=str)))
