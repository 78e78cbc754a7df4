"""Promotion: the minimal set of modules, or of classes of operations, that has to stay wide for a cell to train.

Asks for cells, judges them, and asks again; what a report shows of it is in `report`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from normstab.assess.runs import Run
from normstab.assess.verdicts import Verdict
from normstab.errors import NormstabError, lookup
from normstab.experiment.execution.executor import Execution
from normstab.experiment.execution.progress import Event
from normstab.experiment.scenario.document import Scenario
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.reader import load_scenario
from normstab.experiment.scenario.spec import Cell
from normstab.numerics.formats import Format
from normstab.numerics.precision import Precision
from normstab.search.candidates import Candidate, class_candidates, module_candidates, operation_candidates
from normstab.search.chosen_cell import chosen_cells
from normstab.search.kept_wide import class_precision, module_rules
from normstab.search.minimal_set import Found, OutOfBudget, minimal_set
from normstab.search.oracles import Judged, Oracle, TrainedCell
from normstab.search.trials import Trainer

__all__ = ["BY", "Judged", "Oracle", "Promotion", "Search", "Subject", "Trial", "promote", "promote_by"]

BY = {
    "module": "the modules of the network, by name",
    "site": "operations of one module each: bn1::square",
    "operation": "operations, in every module: op:square",
    "class": "the classes of operations that a precision names: square, variance, reciprocal, accumulator, ...",
}
"""What may be kept wide, one by one."""


@dataclass(frozen=True)
class Trial:
    """A set that was kept wide, the verdict of the trainings, and its reason."""

    members: tuple[str, ...]
    verdict: Verdict
    reason: str
    suffices: bool


@dataclass(frozen=True)
class Promotion:
    """What has to stay wide. `members` is None where no set that was tried suffices.

    `rules` do it, in the form that `simulate` and a scenario's `numerics` take. `verdict` is that of the set,
    trained again from the start on `fresh_seeds` where there are any. `is_minimal`: without any one member
    it fails again (as a fork, where trainings were forked). `share` is the share of the rounded results that are then
    wide, and `extra_bytes` by how much that adds to their bytes. `is_complete` is False where the budget ended first.
    `forks` of the `trainings` went on from shortly before the failing cell's first offence.
    """

    cell: str
    by: str
    wide: str
    candidates: tuple[Candidate, ...]
    members: tuple[str, ...] | None
    rules: dict[str, str]
    verdict: Verdict
    reason: str
    is_minimal: bool
    is_complete: bool
    tried: tuple[Trial, ...]
    trainings: int
    fresh_seeds: tuple[int, ...]
    share: float
    extra_bytes: float
    forks: int = 0

    @property
    def undecided(self) -> tuple[Trial, ...]:
        """The sets on which the seeds did not decide; they counted as sets that do not suffice unless allowed."""
        return tuple(trial for trial in self.tried if trial.verdict is Verdict.INCONCLUSIVE)

    @property
    def proofs(self) -> dict[str, Trial]:
        """For each member, the trial of the set without it."""
        by_set = {frozenset(trial.members): trial for trial in self.tried}
        members = frozenset(self.members or ())
        return {name: by_set[members - {name}] for name in self.members or () if members - {name} in by_set}


@dataclass(frozen=True)
class Search:
    """How a promotion is searched for: by what, in which wide format, what counts as enough, and for how long."""

    by: Literal["module", "class", "operation", "site"] = "module"
    wide: str = "fp32"
    allowed: tuple[Verdict, ...] = (Verdict.STABLE,)
    budget_s: float | None = None
    fresh_seeds: int | None = None
    execution: Execution = field(default_factory=Execution)


def promote(
    scenario: str | Scenario,
    cell: str = "",
    *,
    out: str | Path | None = None,
    search: Search | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Promotion:
    """Return the minimal set that has to be wide for the chosen cell of `scenario` to be STABLE.

    `cell` names a point of the grid by its values (`l2,fp16,256`); its seeds are those of the grid. Sets are
    trained under `out` (default `reports/NAME-promote`), where finished trainings are reused. The result is trained
    once more on as many fresh seeds as the grid has, unless `search` says how many. Raises NormstabError where the
    cell is not one point of the grid, follows another cell's norms, or needs nothing wide.
    """
    search = search or Search()
    lookup(BY, search.by, what="way to promote (by)")
    scenario = load_scenario(scenario) if isinstance(scenario, str) else scenario
    cells = expand(scenario)
    chosen = chosen_cells(cells, cell)
    reference = next((each for each in cells if each.id == chosen[0].reference_id), None)
    if reference is None or len(chosen[0].depends_on) > 1:
        raise NormstabError("promote needs a cell with a wide reference and no train.norm_record")
    directory = Path(out) if out is not None else Path("reports") / f"{scenario.name}-promote"
    trainer = Trainer(reference, directory, scenario.tolerance, search.execution, on_event)
    modules = [] if search.by == "class" else module_names(chosen[0])
    subject = Subject(Precision.parse(chosen[0].numerics.precision), modules, [cell.train.seed for cell in chosen])
    return promote_by(TrainedCell(chosen[0], trainer), subject, search)


@dataclass(frozen=True)
class Subject:
    """What is promoted: its precision, the names of its modules (not for a search by class), and its seeds."""

    precision: Precision
    modules: Sequence[str]
    seeds: Sequence[int]


def promote_by(oracle: Oracle, subject: Subject, search: Search) -> Promotion:
    """Return the minimal set that has to be wide for `oracle` to call it enough; raise where nothing has to be."""
    lookup(BY, search.by, what="way to promote (by)")
    return _Promoting(oracle, subject, search).run()


class _Promoting:
    """One promotion under way."""

    def __init__(self, oracle: Oracle, subject: Subject, search: Search) -> None:
        self._oracle, self._search, self._seeds = oracle, search, subject.seeds
        self._precision, self._modules = subject.precision, subject.modules
        self._wide = Precision.parse(search.wide)
        self._until_s = math.inf if search.budget_s is None else time.monotonic() + search.budget_s
        self._trials: dict[tuple[str, ...], Trial] = {}

    def run(self) -> Promotion:
        """Search, then judge the answer again on fresh seeds."""
        failing = self._judged((), self._seeds, from_start=True)
        if self._is_enough(failing.verdict):
            raise NormstabError(f"{self._oracle.name} is {failing.verdict} already: {failing.reason}")
        candidates = self._candidates(failing.run)
        found = minimal_set([candidate.name for candidate in candidates], self._suffices)
        return self._promotion(candidates, found)

    def _candidates(self, run: Run) -> list[Candidate]:
        """Return what may be kept wide, ranked by what the failing run lost."""
        if self._search.by == "module":
            return module_candidates(run, self._modules)
        if self._search.by in ("operation", "site"):
            return operation_candidates(run, self._modules, in_one_module=self._search.by == "site")
        return class_candidates(run, self._precision, self._wide)

    def _rules(self, members: Sequence[str]) -> dict[str, str]:
        """Return the rules that keep `members` wide."""
        if self._search.by == "class":
            return {"_default": str(class_precision(members, self._precision, self._wide))} if members else {}
        if self._search.by in ("operation", "site"):
            return dict.fromkeys(members, str(self._wide))
        return module_rules(members, self._modules, narrow=str(self._precision), wide=str(self._wide))

    def _judged(self, members: tuple[str, ...], seeds: Sequence[int], *, from_start: bool = False) -> Judged:
        return self._oracle.judge(members, self._rules(members), seeds, from_start=from_start or not members)

    def _is_enough(self, verdict: Verdict) -> bool:
        return verdict is Verdict.STABLE or verdict in self._search.allowed

    def _suffices(self, members: tuple[str, ...]) -> bool:
        """Try it with `members` wide, and return whether that is enough; raise OutOfBudget where it is too late."""
        if time.monotonic() > self._until_s:
            raise OutOfBudget
        judged = self._judged(members, self._seeds)
        enough = self._is_enough(judged.verdict)
        self._trials[members] = Trial(members, judged.verdict, judged.reason, enough)
        return enough

    def _promotion(self, candidates: Sequence[Candidate], found: Found) -> Promotion:
        """Return the answer, its set judged again on seeds that no question has seen."""
        tried = tuple(self._trials.values())
        members = found.members
        verdict, reason = Verdict.INCONCLUSIVE, "nothing was tried"
        if tried:
            shown = self._trials[members] if members is not None else max(tried, key=lambda trial: len(trial.members))
            verdict, reason = shown.verdict, shown.reason
        fresh = self._fresh_seeds() if members is not None and found.is_complete else ()
        if members is not None and found.is_complete and (fresh or self._oracle.forks):
            again = self._judged(members, fresh or self._seeds, from_start=True)
            verdict, reason = again.verdict, again.reason
        share, extra = _cost(candidates, members or (), self._precision, self._wide)
        rules = self._rules(members or ())
        return Promotion(
            self._oracle.name, self._search.by, self._search.wide, tuple(candidates), members, rules, verdict, reason,
            found.is_minimal, found.is_complete, tried, self._oracle.runs, fresh, share, extra,
            self._oracle.forks,
        )  # fmt: skip

    def _fresh_seeds(self) -> tuple[int, ...]:
        """Return the seeds of the last judgement, none of which any question has seen."""
        count = len(self._seeds) if self._search.fresh_seeds is None else self._search.fresh_seeds
        return tuple(max(self._seeds) + 1 + i for i in range(count))


def module_names(cell: Cell) -> list[str]:
    """Return the names of the modules of the cell's network, in its order."""
    from normstab.experiment.data.datasets import load_dataset
    from normstab.experiment.network.models import build_model

    dataset = load_dataset(cell.dataset, device="cpu")
    model = build_model(cell.model, dataset.task, seed=cell.train.seed, weight_scale=cell.train.weight_scale)
    return [name for name, _ in model.named_modules() if name]


def _cost(
    candidates: Sequence[Candidate], members: Sequence[str], narrow: Precision, wide: Precision
) -> tuple[float, float]:
    """Return the share of the candidates' results that are wide, and by what share their bits grow."""
    total = sum(candidate.results for candidate in candidates)
    kept = sum(candidate.results for candidate in candidates if candidate.name in members)
    share = kept / total if total else 0.0
    return share, share * (storage_bits(wide) / storage_bits(narrow) - 1.0)


def storage_bits(precision: Precision) -> int:
    """Return the bits of a number in the compute format: sign, exponent, trailing significand; fixed point's word."""
    found = precision.format()
    if not isinstance(found, Format):
        return 1 + found.integer_bits + found.fraction_bits
    binades = found.emax - found.emin + 1  # of normal numbers; subnormals take one code more
    return 1 + binades.bit_length() + found.precision - 1
