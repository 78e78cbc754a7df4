"""Remedies are tried: the failing cell trains with each of them for a while, beside itself and its reference.

The trainings are forks, run by the same executor under `remedies/` beside the records of the run, and reused there:
an interrupted trial goes on, and a report is made again without training. The run's own records stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from normstab.assess.assessment import Assessment
from normstab.assess.causes.remedies import Remedy, changed_settings
from normstab.assess.causes.tried import TRIED_FILE, Fate, TriedRemedy, read_tried, write_tried
from normstab.assess.judgement import GroupJudgement, judge_runs
from normstab.assess.runs import Run
from normstab.assess.verdicts import HARD, Verdict
from normstab.errors import RecordError
from normstab.experiment.execution.executor import Execution, run_cells
from normstab.experiment.execution.progress import Event
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.records.step_log import read_steps
from normstab.experiment.scenario.spec import Cell
from normstab.search.forks import fork_step, forked, stopping

__all__ = ["Effort", "Trial", "plan_trials", "try_remedies"]

LEAST_STEPS = 20  # the window over which losses are smoothed
QUARTER = 4


@dataclass(frozen=True)
class Effort:
    """How long a remedy is tried, and what all trials may cost.

    `steps` None: a quarter of the cell's training, at least 20 steps. `share`: of the steps of the whole run; None:
    whatever it costs.
    """

    steps: int | None = None
    share: float | None = 0.1


@dataclass(frozen=True)
class Trial:
    """The forks that try the remedies of one failing cell: `cells` in order, those of `remedies` by name.

    `start` is where the failing cell is forked, `stop` the step before which all of them end.
    """

    failing: str
    start: int
    stop: int
    before: tuple[Cell, ...]
    without: Cell
    remedies: Mapping[str, tuple[Remedy, Cell]]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell of the trial, those that others need first."""
        return (*self.before, self.without, *(cell for _, cell in self.remedies.values()))

    def steps_of(self, cell: Cell) -> int:
        """Return how many steps a cell of the trial trains."""
        assert cell.fork is not None and cell.fork.stop is not None
        return cell.fork.stop - (self.start if cell.fork.of is not None else 0)


def plan_trials(found: Assessment, effort: Effort) -> tuple[list[Trial], list[TriedRemedy]]:
    """Return the trials that `effort` allows, the gravest failures first, and what costs too much.

    What the grid tested is not tried again. A cell that follows the norms of another is left out.
    """
    total = sum(_steps_of(cell.run) for group in found.groups for cell in group.cells)
    left = float("inf") if effort.share is None else effort.share * total
    paid: set[str] = set()
    trials: list[Trial] = []
    too_much: list[TriedRemedy] = []
    failing = [group for group in found.judged if group.verdict.fails and not group.is_reference]
    for group in sorted(failing, key=lambda group: -group.verdict.value):
        planned = _trial(group, effort)
        if planned is None:
            continue
        kept: dict[str, tuple[Remedy, Cell]] = {}
        for name, (remedy, cell) in planned.remedies.items():
            needed = {one.id: one for one in (*planned.before, planned.without, cell) if one.id not in paid}
            cost = sum(planned.steps_of(one) for one in needed.values())
            if cost > left:
                too_much.append(_too_much(planned, remedy, cost, total))
                continue
            left -= cost
            paid |= set(needed)
            kept[name] = (remedy, cell)
        if kept:
            trials.append(replace(planned, remedies=kept))
    return trials, too_much


def _steps_of(run: Run) -> int:
    """Return the steps of the whole training, whether the run reached its end or not."""
    return run.record.steps_per_epoch * int(run.record.cell["train"]["epochs"])


def _too_much(trial: Trial, remedy: Remedy, cost: int, total: int) -> TriedRemedy:
    """Return the outcome of a remedy that is not tried."""
    steps = trial.stop - trial.start
    reason = f"{cost} steps of {total} in the run; --try-remedies {steps} tries it and every other, whatever they cost"
    return TriedRemedy(trial.failing, remedy.name, remedy.change, "costs too much", trial.start, steps, reason=reason)


def _trial(group: GroupJudgement, effort: Effort) -> Trial | None:
    """Return the trial of a failing group's remedies on the seed that failed worst; None where there is none."""
    run, wide = group.worst.run, group.group.pairs.get(group.worst.id)
    remedies = [remedy for remedy in group.remedies if remedy.tested is None]
    if wide is None or not remedies or run.record.cell["train"].get("norm_record"):
        return None
    failing = replace(Cell.from_json(run.record.cell), record=None, is_listed=False)
    if run.is_of_tokens and group.verdict not in HARD:
        return None  # of one seed a gap of token losses says nothing
    total = _steps_of(run)
    start = fork_step(group.worst)
    wanted = effort.steps if effort.steps is not None else max(LEAST_STEPS, total // QUARTER)
    stop = min(total, start + wanted)
    reference = stopping(replace(Cell.from_json(wide.record.cell), record=None, is_listed=False), stop)
    failing = replace(failing, reference_id=reference.id, depends_on=(reference.id,))
    origin = stopping(failing, start, leaves_snapshot=True) if start else None
    tried: dict[str, tuple[Remedy, Cell]] = {}
    for remedy in remedies:
        cell = _with_change(failing, remedy)
        goes_on = origin is not None and cell.model == failing.model and cell.train == failing.train
        tried[remedy.name] = (remedy, forked(cell, origin if goes_on else None, stop))
    before = (reference, *([origin] if origin is not None else []))
    without = _named(failing, "nothing")
    return Trial(run.id, start, stop, before, forked(without, origin, stop), tried)


def _named(cell: Cell, remedy: str) -> Cell:
    """Return the cell with the coordinate that tells the cells of a trial apart."""
    return replace(cell, coordinates={**cell.coordinates, "remedy": remedy})


def _with_change(cell: Cell, remedy: Remedy) -> Cell:
    """Return the cell with a remedy's change."""
    plain = {**cell.to_json(), **changed_settings(cell.to_json(), remedy.change)}
    plain["train"] = {**plain["train"], "seed": cell.train.seed}
    return _named(Cell.from_json(plain), remedy.name)


def try_remedies(
    found: Assessment,
    directory: Path,
    effort: Effort,
    execution: Execution,
    on_event: Callable[[Event], None],
) -> None:
    """Try the remedies of what failed; what became of each is in `directory` then, beside what earlier trials said.

    Trainings that are finished are reused. Raises KeyboardInterrupt where it was stopped: what is finished stays.
    """
    trials, outcomes = plan_trials(found, effort)
    cells = list({cell.id: cell for trial in trials for cell in trial.cells}.values())
    folder = directory / TRIED_FILE.parent
    failed: dict[str, str] = {}
    if cells:
        outcome = run_cells(cells, folder, execution=execution, on_event=on_event)
        if outcome.is_interrupted:
            raise KeyboardInterrupt
        failed = {failure.id: failure.message for failure in outcome.failures}
    for trial in trials:
        outcomes += _judged(trial, folder, found.scenario.tolerance, failed)
    if outcomes:
        write_tried(directory, beside_earlier(outcomes, read_tried(directory)))


def beside_earlier(outcomes: list[TriedRemedy], earlier: list[TriedRemedy]) -> list[TriedRemedy]:
    """Return one outcome of each remedy of each cell, the latest that was tried: a smaller effort loses none."""
    found: dict[tuple[str, str], TriedRemedy] = {}
    for each in (*earlier, *outcomes):
        known = found.get((each.cell, each.remedy))
        if known is None or each.was_tried or not known.was_tried:
            found[each.cell, each.remedy] = each
    return list(found.values())


def _judged(trial: Trial, folder: Path, tolerance: float, failed: Mapping[str, str]) -> Iterator[TriedRemedy]:
    """Yield what became of each remedy of a trial."""
    runs = [run for cell in trial.cells[:1] + trial.cells[len(trial.before) :] if (run := _read(folder, cell))]
    verdicts = {
        judged.coordinates.get("remedy"): judged
        for judged in judge_runs(runs, tolerance=tolerance).groups
        if not judged.is_reference
    }
    without = verdicts.get("nothing")
    for name, (remedy, cell) in trial.remedies.items():
        judged, start = verdicts.get(name), trial.start
        if cell.fork is None or cell.fork.of is None:
            start = 0
        plain = TriedRemedy(trial.failing, name, remedy.change, "not decided", start, trial.stop - start)
        if judged is None or without is None:
            reason = failed.get(cell.id) or failed.get(trial.without.id) or "its training left no record"
            yield replace(plain, reason=reason)
            continue
        yield replace(
            plain,
            fate=fate_of(without.verdict, judged.verdict),
            without=str(without.verdict),
            verdict=str(judged.verdict),
            reason=judged.worst.sentence,
        )


def _read(folder: Path, cell: Cell) -> Run | None:
    """Return the run of a cell, None where it has no record."""
    directory = folder / "records" / cell.id
    try:
        return Run(read_record(directory), read_steps(directory))
    except RecordError:
        return None


def fate_of(without: Verdict, verdict: Verdict) -> Fate:
    """Return what a change did, from the verdicts of the same steps without it and with it.

    A hard failure that is there with it is not helped; one that it took away is. Between cells that merely lose
    accuracy, only a decided STABLE or DEGRADED tells.
    """
    if verdict in HARD:
        return "did not help"
    if without in HARD:
        return "helped"
    if without is Verdict.DEGRADED and verdict in (Verdict.STABLE, Verdict.DEGRADED):
        return "helped" if verdict is Verdict.STABLE else "did not help"
    return "not decided"
