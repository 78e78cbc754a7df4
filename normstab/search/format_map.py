"""The smallest format that trains, as a map over exponent and significand bits: few cells are trained, few seeds more.

Asks for cells, judges them, and asks again along a staircase; the corners are judged once more on fresh seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from normstab.assess.runs import Run
from normstab.assess.verdicts import Verdict
from normstab.errors import NormstabError
from normstab.experiment.execution.executor import Execution
from normstab.experiment.execution.progress import Event
from normstab.experiment.scenario.document import Scenario
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.reader import load_scenario
from normstab.experiment.scenario.spec import Cell
from normstab.numerics.bounds import accumulator_bits
from normstab.numerics.formats import Format, parse_format
from normstab.numerics.precision import Accumulation, Precision
from normstab.numerics.sums.steps_of_sums import chunks
from normstab.search.chosen_cell import chosen_cells
from normstab.search.kept_wide import with_kept_wide
from normstab.search.staircase import Staircase, walk
from normstab.search.trials import Trainer

__all__ = ["Frontier", "Grid", "Place", "Tried", "find_frontier", "frontier"]

Place = tuple[int, int]  # exponent bits, trailing significand bits


@dataclass(frozen=True)
class Grid:
    """Which formats eXmY are asked about, of results or (`is_accumulator`) of accumulators, and what counts as enough.

    `fresh_seeds`: on how many further seeds a corner is judged again; None: as many as the cell has.
    """

    exponents: Sequence[int] = tuple(range(2, 9))
    significands: Sequence[int] = tuple(range(1, 11))
    is_accumulator: bool = False
    allowed: tuple[Verdict, ...] = (Verdict.STABLE,)
    fresh_seeds: int | None = None
    execution: Execution = field(default_factory=Execution)


@dataclass(frozen=True)
class Tried:
    """One format's verdict, with its reason."""

    place: Place
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Frontier:
    """The staircase, the verdicts that were met, and the corners judged again on `fresh_seeds`.

    `predicted_exponent` is the least number of exponent bits whose range holds the largest result of the widest cell;
    `predicted_significand` that of an accumulator by the variance retention ratio, for the longest sum `longest`.
    """

    cell: str
    grid: Grid
    staircase: Staircase
    tried: tuple[Tried, ...]
    again: Mapping[Place, Tried]
    fresh_seeds: tuple[int, ...]
    trainings: int
    predicted_exponent: int | None
    predicted_significand: int | None
    longest: int

    @property
    def confirmed(self) -> tuple[Place, ...]:
        """The corners that held on the fresh seeds too."""
        enough = (Verdict.STABLE, *self.grid.allowed)
        return tuple(p for p in self.staircase.corners if p not in self.again or self.again[p].verdict in enough)


Judge = Callable[[Place, Sequence[int]], tuple[Verdict, str, Run | None]]


def frontier(
    scenario: str | Scenario,
    cell: str = "",
    *,
    out: str | Path | None = None,
    grid: Grid | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Frontier:
    """Return the smallest formats in which the chosen cell of `scenario` trains.

    The cell's precision stays but for the format of its results (of its accumulators, where the grid says so). Cells
    are trained under `out` (default `reports/NAME-frontier`), where finished ones are reused. Raises NormstabError
    where the cell is not one point of the scenario's grid, or a format of the grid does not exist.
    """
    grid = grid or Grid()
    scenario = load_scenario(scenario) if isinstance(scenario, str) else scenario
    cells = expand(scenario)
    chosen = chosen_cells(cells, cell)
    reference = next((each for each in cells if each.id == chosen[0].reference_id), None)
    if reference is None or len(chosen[0].depends_on) > 1:
        raise NormstabError("frontier needs a cell with a wide reference and no train.norm_record")
    directory = Path(out) if out is not None else Path("reports") / f"{scenario.name}-frontier"
    trainer = Trainer(reference, directory, scenario.tolerance, grid.execution, on_event)
    judge = _by_training(chosen[0], trainer, is_accumulator=grid.is_accumulator)
    precision = Precision.parse(chosen[0].numerics.precision)
    found = find_frontier(judge, grid, [each.train.seed for each in chosen], precision)
    return replace(found, cell=chosen[0].id, trainings=trainer.trainings)


def _by_training(cell: Cell, trainer: Trainer, *, is_accumulator: bool) -> Judge:
    """Return what judges a format by training the cell in it."""

    def judge(place: Place, seeds: Sequence[int]) -> tuple[Verdict, str, Run | None]:
        precision = in_format(Precision.parse(cell.numerics.precision), place, is_accumulator=is_accumulator)
        rules = {"_default": str(precision)}
        name = f"e{place[0]}m{place[1]}"
        judged = trainer.judge(lambda seed: with_kept_wide(cell, rules, [name], seed=seed), seeds)
        return judged.verdict, judged.worst.sentence, judged.worst.run

    return judge


def in_format(precision: Precision, place: Place, *, is_accumulator: bool) -> Precision:
    """Return the precision with results, or accumulators of sums and products, in the format eXmY of `place`."""
    format = parse_format(f"e{place[0]}m{place[1]}")
    if not is_accumulator:
        return replace(precision, compute=format)
    sums = precision.accumulation if precision.accumulation.kind == "rounded" else Accumulation()
    products = precision.matmul if precision.matmul.kind == "rounded" else Accumulation()
    return replace(precision, accumulation=replace(sums, format=format), matmul=replace(products, format=format))


def find_frontier(judge: Judge, grid: Grid, seeds: Sequence[int], precision: Precision | None = None) -> Frontier:
    """Return the frontier that `judge` gives over `seeds`; raise for a grid without a format.

    `precision` says which numbers are summed and in which order, for the prediction; None: any, one after another.
    """
    if not grid.exponents or not grid.significands:
        raise NormstabError("a frontier needs exponents and significands, such as 2..8 and 1..10")
    enough = (Verdict.STABLE, *grid.allowed)
    tried: dict[Place, Tried] = {}
    runs: list[Run] = []

    def holds(x: int, y: int) -> bool:
        verdict, reason, run = judge((x, y), seeds)
        tried[x, y] = Tried((x, y), verdict, reason)
        if run is not None and verdict in enough:
            runs.append(run)
        return verdict in enough

    staircase = walk(grid.exponents, grid.significands, holds)
    count = len(seeds) if grid.fresh_seeds is None else grid.fresh_seeds
    fresh = tuple(max(seeds) + 1 + i for i in range(count))
    again = {place: Tried(place, *judge(place, fresh)[:2]) for place in staircase.corners if fresh}
    longest = max((layer.n for run in runs for layer in run.record.norm_layers.values()), default=0)
    return Frontier(
        "", grid, staircase, tuple(tried.values()), again, fresh, 0,
        _exponent_bits(runs), _significand_bits(longest, precision) if longest else None, longest,
    )  # fmt: skip


def _significand_bits(n: int, precision: Precision | None) -> int:
    """Return the significand bits of an accumulator that keeps the variance of sums of `n` results."""
    if precision is None or precision.is_native:
        return accumulator_bits(n)
    format = precision.format()
    addend = format.precision - 1 if isinstance(format, Format) else None
    return accumulator_bits(n, addend, chunks(n, precision.accumulation))


def _exponent_bits(runs: Sequence[Run]) -> int | None:
    """Return the exponent bits whose largest number is at least the largest result of the runs that trained."""
    largest = max((tally.largest for run in runs for tally in run.totals.values()), default=0.0)
    if not 0.0 < largest < math.inf:
        return None
    for bits in range(2, 12):
        format = parse_format(f"e{bits}m7") if bits <= 8 else None
        if isinstance(format, Format) and format.max >= largest:
            return bits
    return None
