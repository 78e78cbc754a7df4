"""From runs to judgements: the verdict of every cell and of every group of seeds, and whether expectations hold.

Pure: the same runs give the same judgements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normstab.assess.causes.blame import Blame, blame
from normstab.assess.causes.remedies import GridTested, Remedy, TestedPoint, remedies_for
from normstab.assess.constants import constant
from normstab.assess.metrics import measure
from normstab.assess.runs import Group, Run, group_runs
from normstab.assess.statistics import PairedGap
from normstab.assess.verdicts import Verdict, gravest, verdict_of

__all__ = ["GroupJudgement", "Judgement", "Judgements", "judge_group", "judge_runs"]

ONLY_PRECISION = "Hardly a result overflowed, vanished or became NaN: what was lost is precision"


@dataclass(frozen=True)
class Judgement:
    """What became of one cell, why, and where it broke first."""

    run: Run
    verdict: Verdict
    reason: str
    blame: Blame | None
    metrics: Mapping[str, float | None]

    @property
    def id(self) -> str:
        """The cell's id."""
        return self.run.id

    @property
    def coordinates(self) -> Mapping[str, Any]:
        """The cell's place in its grid."""
        return self.run.coordinates

    @property
    def first_site(self) -> str | None:
        """The site that produced the first offence."""
        return self.blame.site if self.blame else None

    @property
    def first_step(self) -> int | None:
        """The step of the first offence."""
        return self.blame.step if self.blame else None

    @property
    def sentence(self) -> str:
        """The reason and the blame in words; what the counts of an emulated run do not show is precision lost."""
        if not self.verdict.fails:
            return self.reason
        if self.blame is not None:
            return f"{self.reason}. First offence: {self.blame.sentence}"
        is_of_precision = self.run.is_emulated and self.verdict is not Verdict.NONFINITE
        return f"{self.reason}. {ONLY_PRECISION}" if is_of_precision else self.reason


@dataclass(frozen=True)
class GroupJudgement:
    """What became of one grid point over its seeds: the gravest verdict, and the gap pooled over the seeds."""

    group: Group
    verdict: Verdict
    cells: tuple[Judgement, ...]
    gap: PairedGap | None
    remedies: tuple[Remedy, ...] = ()

    @property
    def coordinates(self) -> Mapping[str, Any]:
        """The grid point, without the seed."""
        return self.group.coordinates

    @property
    def is_reference(self) -> bool:
        """Whether this is a wide reference."""
        return self.group.is_reference

    @property
    def worst(self) -> Judgement:
        """The first cell that has the group's verdict."""
        return next(cell for cell in self.cells if cell.verdict is self.verdict)

    @property
    def accuracy(self) -> float | None:
        """The mean accuracy of the seeds that finished."""
        found = [cell.run.accuracy for cell in self.cells if cell.run.accuracy is not None]
        return sum(found) / len(found) if found else None


@dataclass(frozen=True)
class Judgements:
    """Every group's judgement, in the order of the runs."""

    groups: tuple[GroupJudgement, ...]
    tolerance: float = field(default_factory=lambda: constant("tolerance"))

    @property
    def cells(self) -> Iterator[Judgement]:
        """Every cell's judgement, group by group."""
        return (cell for group in self.groups for cell in group.cells)


def judge_runs(runs: Sequence[Run], *, tolerance: float | None = None) -> Judgements:
    """Return the judgement of every trained run; swept runs, which train nothing, are left out.

    `tolerance` is the accuracy that may be lost, as a share (default: the constant of that name).
    """
    limit = constant("tolerance") if tolerance is None else tolerance
    trained = [run for run in runs if not run.is_swept]
    judged, tested = [], GridTested()
    for each in group_runs(trained, tolerance=limit):
        group = judge_group(each)
        cell = group.worst.run.record.cell
        tested.add(TestedPoint(group.coordinates, str(group.verdict), group.verdict.fails, cell))
        judged.append(group)
    return Judgements(tuple(_with_remedies(group, tested) for group in judged), limit)


def judge_group(group: Group) -> GroupJudgement:
    """Return the judgement of a group: hard verdicts run by run, the others from the gap of the runs left."""
    hard = {run.id: verdict_of(run, group, None, only_hard=True) for run in group.runs}
    gap = None if group.is_reference else group.gap([run for run in group.runs if hard[run.id] is None])
    cells = []
    for run in group.runs:
        verdict, reason = hard[run.id] or verdict_of(run, group, gap) or (Verdict.INCONCLUSIVE, "")
        metrics = measure(run, group)
        cells.append(Judgement(run, verdict, reason, blame(run, left=metrics["first_divergence"]), metrics))
    return GroupJudgement(group, gravest([cell.verdict for cell in cells]), tuple(cells), gap)


def _with_remedies(judged: GroupJudgement, tested: GridTested) -> GroupJudgement:
    """Return `judged` with what its records say would help, tested where another group of the grid tested it."""
    if judged.is_reference or judged.verdict is Verdict.STABLE:
        return judged
    remedies = remedies_for(judged.worst.run, judged.group, tested, blamed=judged.worst.blame)
    return GroupJudgement(judged.group, judged.verdict, judged.cells, judged.gap, tuple(remedies))
