"""Comparing two runs of a scenario: metrics of paired cells, B minus A, and gates on the difference.

Cells pair by scenario and coordinates, so that versions of the numerics can be compared. Reads no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normstab.assess.constants import constant
from normstab.assess.expected.contrast import worded
from normstab.assess.judgement import GroupJudgement
from normstab.assess.metrics import METRICS
from normstab.assess.points import point_words
from normstab.assess.runs import Run, gap_of
from normstab.assess.statistics import Interval
from normstab.errors import NormstabError, lookup
from normstab.experiment.scenario.expectation import Quantity

__all__ = ["Comparison", "Gate", "PairedCell", "compare_judged", "parse_gate"]

SHOWN = ("accuracy", "test_loss", "overflow_rate", "underflow_rate")
"""The metrics that a comparison always shows."""


@dataclass(frozen=True)
class Gate:
    """`metric`, and the limit of B minus A: a negative one fails below it, a positive one (or zero) above it."""

    metric: str
    limit: Quantity

    def fails(self, before: float, after: float) -> bool:
        """Return whether the change from `before` to `after` goes beyond the limit; `%` is relative to `before`."""
        bound = self.limit.amount * (abs(before) if self.limit.unit == "%" else 1.0)
        change = after - before
        return math.isnan(change) or (change < bound if self.limit.amount < 0 else change > bound)

    def __str__(self) -> str:
        return f"{self.metric}:{self.limit}"


def parse_gate(text: str) -> Gate:
    """Return the gate that `METRIC:LIMIT` names, such as accuracy:-1pp, test_loss:5% or overflow_rate:1e-4.

    Raises NormstabError with what is allowed.
    """
    metric, colon, limit = text.partition(":")
    if not colon:
        raise NormstabError(f"--fail-on {text!r}: expected METRIC:LIMIT, such as accuracy:-1pp or overflow_rate:1e-4")
    lookup(METRICS, metric, what="metric")
    try:
        gate = Gate(metric, Quantity.parse(limit))
    except ValueError as error:
        raise NormstabError(f"--fail-on {text!r}: {error}") from error
    if (why := _never_fails(gate)) is not None:
        raise NormstabError(f"--fail-on {text!r}: {why}")
    return gate


def _never_fails(gate: Gate) -> str | None:
    """Return why a gate would never fail at a loss, or None: such a gate passes in silence."""
    amount, unit = gate.limit.amount, gate.limit.unit
    if amount == 0 and METRICS[gate.metric].more_is_better:
        return f"of {gate.metric} more is better, so a limit of 0 never fails at a loss; give a negative one, like -1pp"
    if METRICS[gate.metric].unit not in ("share", "rate"):
        return None
    # Shares and rates lie between 0 and 1; a gap of two of them between -1 and 1.
    reach = 2.0 if gate.metric == "accuracy_gap" else 1.0
    if (unit != "%" and abs(amount) >= reach) or (unit == "%" and amount <= -1.0 and reach == 1.0):
        return f"{gate.metric} never changes by more than that"
    return None


@dataclass(frozen=True)
class PairedCell:
    """A cell of A and its counterpart in B: the metrics of both, and the gates that fail here."""

    coordinates: Mapping[str, Any]
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    verdicts: tuple[str, str]
    failed: tuple[Gate, ...]


@dataclass(frozen=True)
class Comparison:
    """The paired cells, the coordinates found on one side alone, and per grid point the change of accuracy.

    `changes` has the 95 % interval of B minus A over the images and seeds of each grid point, where they pair.
    `missing` names the cells of the two grids that have no record. With `gated`, a cell of A without a counterpart
    fails: of it nothing is known.
    """

    cells: tuple[PairedCell, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    changes: Mapping[str, Interval]
    missing: tuple[str, ...] = ()
    gated: bool = False

    @property
    def failures(self) -> list[str]:
        """Return a sentence for each gate that fails in a cell, and for each cell that nothing is known of."""
        failed = [
            f"{point_words(cell.coordinates)}: {gate} fails, {_change(gate.metric, cell)}"
            for cell in self.cells
            for gate in cell.failed
        ]
        lost = [f"{point}: no evidence, it is in A alone" for point in self.only_before]
        return failed + (lost + [f"no evidence: {name}" for name in self.missing] if self.gated else [])


def _change(metric: str, cell: PairedCell) -> str:
    """Return a metric's values on both sides in words."""
    values = [side[metric] for side in (cell.before, cell.after)]
    return " -> ".join("none" if value is None else worded(metric, value) for value in values)


def compare_judged(
    before: Sequence[GroupJudgement],
    after: Sequence[GroupJudgement],
    gates: Sequence[Gate] = (),
    *,
    missing: Sequence[str] = (),
) -> Comparison:
    """Return the comparison of two judged runs; `missing` are the cells of either grid without a record, in words.

    Raises NormstabError where no cell pairs, and for a gate whose metric no paired cell has: it would pass silently.
    """
    sides = [{_key(cell.run): (cell, group) for group in groups for cell in group.cells} for groups in (before, after)]
    shared = [key for key in sides[0] if key in sides[1]]
    if not shared:
        raise NormstabError("no cell is in both directories: they are of different scenarios or grids")
    cells = []
    for key in shared:
        pair = [side[key][0] for side in sides]
        values = [_values(cell.run, cell.metrics) for cell in pair]
        failed = tuple(gate for gate in gates if _fails(gate, *values))
        verdicts = (str(pair[0].verdict), str(pair[1].verdict))
        cells.append(PairedCell(pair[0].coordinates, values[0], values[1], verdicts, failed))
    for gate in gates:
        has_steps = METRICS[gate.metric].unit == "step"
        if not has_steps and all(cell.before[gate.metric] is cell.after[gate.metric] is None for cell in cells):
            raise NormstabError(f"--fail-on {gate}: no cell has the metric {gate.metric!r}")
    lone = [tuple(point_words(side[key][0].coordinates) for key in side if key not in shared) for side in sides]
    return Comparison(tuple(cells), lone[0], lone[1], _changes(before, sides[1]), tuple(missing), bool(gates))


def _key(run: Run) -> tuple[Any, ...]:
    """Return what two counterparts share: the scenario, the coordinates, and whether they are the reference."""
    point = sorted((axis, repr(value)) for axis, value in run.coordinates.items())
    return (run.scenario, run.is_reference, tuple(point))


def _values(run: Run, metrics: Mapping[str, float | None]) -> Mapping[str, float | None]:
    """Return a run's metrics, with the accuracy of chance for a run that died."""
    dead = {"accuracy": run.chance, "error": 1.0 - run.chance} if run.is_nonfinite else {}
    return {**metrics, **dead}


def _fails(gate: Gate, before: Mapping[str, float | None], after: Mapping[str, float | None]) -> bool:
    """Return whether a gate fails in a paired cell; a step that never came is infinite.

    A metric that one side alone has fails; one that neither has (a gap of a reference) does not.
    """
    values = [side[gate.metric] for side in (before, after)]
    if METRICS[gate.metric].unit == "step":
        values = [math.inf if value is None else value for value in values]
    first, second = values
    if first is None and second is None:
        return False
    if first is None or second is None:
        return True
    return first != second and gate.fails(first, second)


def _changes(before: Sequence[GroupJudgement], after: Mapping[tuple[Any, ...], Any]) -> dict[str, Interval]:
    """Return, per grid point, the interval of the change of accuracy over paired images and seeds."""
    changes = {}
    for group in before:
        pairs = [(after[_key(cell.run)][0].run, cell.run) for cell in group.cells if _key(cell.run) in after]
        gap = gap_of(pairs, [run for _, run in pairs])
        if gap is not None:
            changes[point_words(group.coordinates)] = gap.interval(constant("verdict_confidence"))
    return changes
