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
from normstab.experiment.scenario.checking.checks import canonical, path_of
from normstab.experiment.scenario.document import Scenario
from normstab.experiment.scenario.spec import Cell

__all__ = ["Assessment", "assess"]


@dataclass(frozen=True)
class Assessment:
    """Everything that was judged of one scenario.

    `swept` are the groups of its sweep, which have no verdict. `missing` are cells without a readable record,
    `problems` the files that could not be read, in words.
    """

    scenario: Scenario
    groups: tuple[GroupJudgement, ...]
    expectations: tuple[ExpectationResult, ...]
    swept: tuple[Group, ...] = ()
    missing: tuple[Cell, ...] = ()
    problems: tuple[str, ...] = ()

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
    are `missing`. Without it every run counts, in the order of the grid's values.
    """
    by_id = {run.id: run for run in runs}
    if expected:
        ordered = [by_id[cell.id] for cell in expected if cell.id in by_id]
    else:
        ordered = sorted(runs, key=lambda run: _grid_place(run.coordinates, scenario.parsed.grid))
    judged = judge_runs(ordered, tolerance=scenario.tolerance).groups
    swept = tuple(group_runs([run for run in ordered if run.record.cell.get("sweep")], tolerance=scenario.tolerance))
    findings, smoke = Findings(judged, swept), scenario.is_smoke
    return Assessment(
        scenario,
        judged,
        tuple(judge_expectation(expectation, findings, only_smoke=smoke) for expectation in scenario.expectations),
        swept,
        tuple(cell for cell in expected if cell.id not in by_id),
        tuple(str(problem) for problem in problems),
    )


def _grid_place(point: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> tuple[Any, ...]:
    """Return the place of a point in the grid: the position of each value on its axis; a reference comes first."""
    place: list[Any] = []
    for axis, values in grid.items():
        listed = [canonical(path_of(axis), value) for value in values]
        found = point.get(axis)
        place.append(listed.index(found) if found in listed else -1)
    return (*place, str(sorted(point.items(), key=str)))
