"""What says whether a set that is kept wide suffices, and how the trainings of a cell do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from normstab.assess.runs import Run
from normstab.assess.verdicts import Verdict
from normstab.experiment.scenario.spec import Cell
from normstab.search.forks import fork_step, stopping
from normstab.search.kept_wide import with_kept_wide
from normstab.search.trials import Trainer

__all__ = ["Judged", "Oracle", "TrainedCell"]


class Oracle(Protocol):
    """What says whether a set that is kept wide suffices: trainings of a cell, or passes of a model."""

    @property
    def name(self) -> str:
        """What is promoted, for people."""

    @property
    def runs(self) -> int:
        """How many trainings or passes it took so far."""

    @property
    def forks(self) -> int:
        """How many of them did not begin at the start."""

    def judge(
        self, members: tuple[str, ...], rules: Mapping[str, str], seeds: Sequence[int], *, from_start: bool
    ) -> Judged:
        """Return what happens with `rules`, whose `_default` is the precision of the whole network.

        Unless `from_start`, what was the same before anything was destroyed need not be done again.
        """


@dataclass(frozen=True)
class Judged:
    """A verdict with its reason, and the run whose ledger ranks the candidates."""

    verdict: Verdict
    reason: str
    run: Run


@dataclass
class TrainedCell:
    """The oracle of a scenario's cell: it is trained on every seed, beside its reference.

    Once it is known where the cell first destroys something, trainings go on from shortly before.
    """

    cell: Cell
    trainer: Trainer
    _fork_steps: dict[int, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The cell's id."""
        return self.cell.id

    @property
    def runs(self) -> int:
        """How many trainings were needed."""
        return self.trainer.trainings

    @property
    def forks(self) -> int:
        """How many went on from a snapshot."""
        return self.trainer.forks

    def judge(
        self, members: tuple[str, ...], rules: Mapping[str, str], seeds: Sequence[int], *, from_start: bool
    ) -> Judged:
        """Return the judgement over the seeds."""

        def variant(seed: int) -> Cell:
            return with_kept_wide(self.cell, rules, members, seed=seed)

        def origin(seed: int) -> Cell | None:
            start = 0 if from_start else self._fork_steps.get(seed, 0)
            failing = with_kept_wide(self.cell, {}, (), seed=seed)
            return stopping(failing, start, leaves_snapshot=True) if start else None

        judged = self.trainer.judge(variant, seeds, origin=origin)
        if not members:
            self._fork_steps |= {cell.run.record.cell["train"]["seed"]: fork_step(cell) for cell in judged.cells}
        return Judged(judged.verdict, judged.worst.sentence, judged.worst.run)
