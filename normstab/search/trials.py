"""Trainings with some parts kept wide, judged: the oracle of a promotion. Each set runs through the same executor.

Records are reused: a search that was interrupted, or is asked again, trains nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from normstab.assess.judgement import GroupJudgement, judge_runs
from normstab.assess.runs import SEED_AXES, Run
from normstab.assess.verdicts import HARD
from normstab.errors import NormstabError
from normstab.experiment.execution.executor import Execution, run_cells
from normstab.experiment.execution.progress import Event
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.records.step_log import read_steps
from normstab.experiment.scenario.spec import Cell
from normstab.search.forks import forked

__all__ = ["Trainer"]


@dataclass
class Trainer:
    """Trains variants of one cell beside the cell's reference, and judges them.

    `reference` is the wide cell of any seed; `trainings` counts those that were needed, records of an earlier search
    among them, and `forks` those of them that went on from a snapshot of another.
    """

    reference: Cell
    directory: Path
    tolerance: float
    execution: Execution
    on_event: Callable[[Event], None]
    trainings: int = 0
    forks: int = 0
    _finished: set[str] = field(default_factory=set)

    def judge(
        self,
        variant: Callable[[int], Cell],
        seeds: Sequence[int],
        *,
        origin: Callable[[int], Cell | None] = lambda seed: None,
    ) -> GroupJudgement:
        """Return the judgement of a variant over `seeds`, up to the first of them that fails hard.

        Where `origin` has a cell for a seed, the variant goes on from its snapshot; else it trains from the start.
        As many seeds run at once as the execution has jobs; the judgement is the same for any number of jobs, for
        what ran beside the seed that failed is not looked at. Raises KeyboardInterrupt where the run was stopped, and
        NormstabError where a cell was refused or crashed.
        """
        assert seeds, "a grid point has a seed"
        cells: list[Cell] = []
        judged_cells: list[tuple[Cell, Cell]] = []
        at_once = max(1, self.execution.jobs)
        for start in range(0, len(seeds), at_once):
            for seed in seeds[start : start + at_once]:
                reference = _with_seed(self.reference, seed)
                own = replace(variant(seed), reference_id=reference.id, depends_on=(reference.id,))
                before = origin(seed)
                if before is not None:
                    before = replace(before, reference_id=reference.id, depends_on=(reference.id,))
                    own = forked(own, before, None)
                    cells.append(before)
                cells += [reference, own]
                judged_cells.append((reference, own))
            self._train(cells)
            for count in range(start + 1, len(judged_cells) + 1):
                judged = self._judged([cell for pair in judged_cells[:count] for cell in pair])
                if judged.verdict in HARD:
                    return judged
        return judged

    def _train(self, cells: Sequence[Cell]) -> None:
        """Run the cells that have no record yet."""
        wanted = [cell for cell in cells if cell.id not in self._finished]
        if not wanted:
            return
        outcome = run_cells(wanted, self.directory, execution=self.execution, on_event=self.on_event)
        if outcome.is_interrupted:
            raise KeyboardInterrupt
        if outcome.failures:
            failure = outcome.failures[0]
            raise NormstabError(f"{failure.id}: {failure.kind}: {failure.message}")
        self._finished |= set(outcome.finished)
        self.trainings += len(outcome.finished)
        forks = {cell.id for cell in wanted if cell.fork is not None and cell.fork.of is not None}
        self.forks += len(forks & set(outcome.finished))

    def _judged(self, cells: Sequence[Cell]) -> GroupJudgement:
        """Return the judgement of the variant among its references."""
        directories = [self.directory / "records" / cell.id for cell in cells]
        runs = [Run(read_record(directory), read_steps(directory)) for directory in directories]
        groups = judge_runs(runs, tolerance=self.tolerance).groups
        return next(group for group in groups if not group.is_reference)


def _with_seed(cell: Cell, seed: int) -> Cell:
    """Return the reference of another seed."""
    coordinates = {axis: seed if axis in SEED_AXES else value for axis, value in cell.coordinates.items()}
    return replace(cell, train=replace(cell.train, seed=seed), coordinates=coordinates)
