"""A run: the record of a cell with its losses; groups of runs that differ only in their seed; their references.

Pairs cells by id; reads no file, judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normstab.assess.constants import constant
from normstab.assess.curves import Band, band_of, smoothed
from normstab.assess.spikes import Spike, spikes_of
from normstab.assess.statistics import PairedGap, paired_gap, seed_gap
from normstab.experiment.records.cell_record import Predictions, Record
from normstab.experiment.records.step_log import Step
from normstab.experiment.scenario.spec import Cell
from normstab.numerics.ledger import COUNTERS, DIRECTIONS, Tally

__all__ = ["SEED_AXES", "Group", "Run", "contrast_of", "gap_of", "group_runs"]

SEED_AXES = ("seed", "train.seed")
"""The grid axes along which runs are repetitions of each other."""


@dataclass(frozen=True)
class Run:
    """The record of one cell, and its steps."""

    record: Record
    steps: tuple[Step, ...] = ()

    @property
    def id(self) -> str:
        """The cell's id."""
        return self.record.id

    @property
    def coordinates(self) -> Mapping[str, Any]:
        """The cell's place in its grid."""
        return self.record.coordinates

    @property
    def point(self) -> Mapping[str, Any]:
        """The cell's place in its grid, without the seed."""
        return {axis: value for axis, value in self.coordinates.items() if axis not in SEED_AXES}

    @property
    def seed(self) -> Any:
        """The value of the seed axis; None where the grid has none."""
        return next((self.coordinates[axis] for axis in SEED_AXES if axis in self.coordinates), None)

    @cached_property
    def cell(self) -> Cell:
        """The cell that was run."""
        return Cell.from_json(self.record.cell)

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """The loss of each step."""
        return np.array([step.loss for step in self.steps], np.float64)

    @cached_property
    def smoothed(self) -> NDArray[np.float64]:
        """The smoothed loss of each step."""
        return smoothed(self.losses)

    @cached_property
    def spikes(self) -> tuple[Spike, ...]:
        """The spikes of the loss, in order."""
        return spikes_of(self.losses)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each test image was classified rightly after the last epoch; empty without predictions."""
        return self.record.predictions.correct

    @property
    def is_nonfinite(self) -> bool:
        """Whether the run ended early, with inf or NaN."""
        return self.record.status == "nonfinite" or self.record.nonfinite is not None

    @cached_property
    def accuracy(self) -> float | None:
        """The final accuracy, from the per-image predictions where they are there; None for a run that died."""
        if self.is_nonfinite:
            return None
        return float(self.correct.mean()) if self.correct.size else self.record.accuracy

    @property
    def is_of_tokens(self) -> bool:
        """Whether the network is one for tokens: its accuracy is that of tokens, and it is judged by its token loss."""
        return self.record.language is not None

    @property
    def chance(self) -> float:
        """The accuracy of a guess: one over the classes; of tokens, of always the most frequent one."""
        language = self.record.language
        return 1.0 / self.record.data.classes if language is None else language.chance

    @property
    def is_at_chance(self) -> bool:
        """Whether the final accuracy is within `chance_errors` standard errors of a guess, or below."""
        images = max(1, self.correct.size or self.record.data.test)
        error = math.sqrt(self.chance * (1.0 - self.chance) / images)
        return self.accuracy is not None and self.accuracy <= self.chance + constant("chance_errors") * error

    @cached_property
    def totals(self) -> Mapping[str, Tally]:
        """What rounding destroyed at each site over the whole run."""
        epochs = self.record.epochs
        if len(epochs) == 1:
            return epochs[0].sites
        totals: dict[str, Tally] = {}
        for epoch in epochs:
            for site, tally in epoch.sites.items():
                totals[site] = totals[site] + tally if site in totals else tally
        return totals

    @property
    def total(self) -> Tally:
        """The sum of `totals` over all sites, without histograms."""
        return self.total_of("")

    def total_of(self, direction: str) -> Tally:
        """Return the sum over the sites of one direction, without histograms; of all for an empty string."""
        return self._sums[direction]

    @cached_property
    def _sums(self) -> Mapping[str, Tally]:
        """The sums by direction, and over all under an empty name."""
        sums: dict[str, dict[str, Any]] = {name: dict.fromkeys(COUNTERS, 0) for name in ("", *DIRECTIONS)}
        for site, tally in self.totals.items():
            for total in (sums[""], sums[site.partition("[")[2].rstrip("]")]):
                for name in COUNTERS:
                    total[name] += getattr(tally, name) or 0
        return {direction: Tally(**total) for direction, total in sums.items()}

    @cached_property
    def layer_sites(self) -> Mapping[str, Mapping[str, Tally]]:
        """The forward sites of each norm layer: operation without the layer's name -> tally."""
        found: dict[str, dict[str, Tally]] = {layer: {} for layer in self.record.norm_layers}
        for site, tally in self.totals.items():
            name, _, direction = site.partition("[")
            layer = name.rpartition(".")[0]
            while layer and layer not in found:
                layer = layer.rpartition(".")[0]
            if layer and direction == "forward]":
                found[layer][name[len(layer) + 1 :]] = tally
        return found

    def until(self, share: float | None) -> Run:
        """Return the run as it stood after `share` of its epochs (rounded up to a whole one); None is the end.

        Predictions, and what a network for tokens writes, were kept at the end alone, so an earlier accuracy is that of
        its epoch.
        """
        kept = len(self.record.epochs) if share is None else max(1, math.ceil(share * len(self.record.epochs)))
        if kept >= len(self.record.epochs):
            return self
        epochs, steps = self.record.epochs[:kept], kept * self.record.steps_per_epoch
        probes = tuple(probe for probe in self.record.probes if probe.step <= steps)
        language = self.record.language and replace(self.record.language, word_accuracy=None, chrf=None)
        earlier = replace(self.record, epochs=epochs, probes=probes, predictions=Predictions(), language=language)
        return Run(earlier, self.steps[:steps])


@dataclass(frozen=True)
class Group:
    """The runs of one grid point for every seed, and the wide reference runs they are compared with.

    `pairs` maps a run's id to its own reference, where that was recorded.
    """

    runs: tuple[Run, ...]
    references: tuple[Run, ...]
    pairs: Mapping[str, Run]
    tolerance: float

    @property
    def coordinates(self) -> Mapping[str, Any]:
        """The grid point, without the seed."""
        return self.runs[0].point

    @property
    def is_reference(self) -> bool:
        """Whether these runs are references themselves."""
        return self.runs[0].record.is_reference

    def with_runs(self, runs: Sequence[Run]) -> Group:
        """Return the group of these of its runs, with the references of their seeds."""
        seeds = {run.seed for run in runs}
        references = tuple(wide for wide in self.references if wide.seed in seeds)
        pairs = {run.id: self.pairs[run.id] for run in runs if run.id in self.pairs}
        return replace(self, runs=tuple(runs), references=references, pairs=pairs)

    @cached_property
    def band(self) -> Band | None:
        """The band of the references' smoothed losses."""
        return band_of([run.smoothed for run in self.references])

    @cached_property
    def seed_deviation(self) -> float | None:
        """The standard deviation of the reference's accuracy over its seeds; None for fewer than two."""
        accuracies = [run.accuracy for run in self.references if run.accuracy is not None]
        return float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None

    def gap(self, survivors: Sequence[Run]) -> PairedGap | None:
        """Return the paired gap of `survivors` to their references, in token loss for networks for tokens.

        None where no pair has predictions; of tokens, where there are fewer than two seeds.
        """
        pairs = [(self.pairs[run.id], run) for run in survivors if run.id in self.pairs]
        usable = [(wide, run) for wide, run in pairs if wide.id != run.id and not wide.is_nonfinite]
        if usable and usable[0][0].is_of_tokens:
            ends = [(wide.record.epochs[-1].test_loss, run.record.epochs[-1].test_loss) for wide, run in usable]
            images = usable[0][0].record.data.test
            return seed_gap([lost - wide for wide, lost in ends], images=images, quantity="token loss")
        return gap_of(usable, self.references)


def gap_of(pairs: Iterable[tuple[Run, Run]], seeds: Sequence[Run]) -> PairedGap | None:
    """Return the paired gap in accuracy, first minus second, of runs tested on the same images; None without one.

    `seeds` are runs from whose scatter the luck of a seed is estimated.
    """
    return contrast_of([((1.0, a), (-1.0, b)) for a, b in pairs], seeds)


def contrast_of(
    tuples: Iterable[Sequence[tuple[float, Run]]], seeds: Sequence[Run], *, of_errors: bool = False
) -> PairedGap | None:
    """Return the pooled contrast, sum of weight times accuracy (or error), of tuples of runs on the same images.

    Tuples without predictions, or on other images than the first usable one, are left out; None when none is left.
    Of tokens one difference of each seed counts, and fewer than two seeds give None.
    """
    usable: list[Sequence[tuple[float, Run]]] = []
    for weighted in tuples:
        runs = [run for _, run in (*weighted, *(usable[0] if usable else ()))]
        if all(run.correct.size for run in runs) and len({run.record.predictions.labels for run in runs}) == 1:
            usable.append(weighted)
    if not usable:
        return None
    images = usable[0][0][1].correct.size
    if usable[0][0][1].is_of_tokens:
        shares = [sum(weight * abs(float(run.correct.mean()) - of_errors) for weight, run in row) for row in usable]
        return seed_gap(shares, images=images, quantity="token accuracy")
    others = [run.correct for run in seeds if run.correct.size == images]
    difference_SI = np.array(
        [sum(weight * (run.correct != of_errors) for weight, run in weighted) for weighted in usable], np.float64
    )
    return paired_gap(difference_SI, others, networks=sum(weight**2 for weight, _ in usable[0]))


def group_key(run: Run) -> tuple[Any, ...]:
    """Return what the runs of one group share: the scenario, and every coordinate but the seed."""
    shown = ((axis, repr(value)) for axis, value in run.point.items())
    return (run.record.cell.get("scenario", ""), run.record.is_reference, *shown)


def group_runs(runs: Sequence[Run], *, tolerance: float) -> list[Group]:
    """Return the runs grouped by everything but their seed, in order of first appearance."""
    by_id = {run.id: run for run in runs}
    grouped: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        grouped.setdefault(group_key(run), []).append(run)
    return [_group(members, by_id, grouped, tolerance) for members in grouped.values()]


def _group(
    members: list[Run], by_id: Mapping[str, Run], grouped: Mapping[tuple[Any, ...], list[Run]], tolerance: float
) -> Group:
    """Return the group of `members`; its references are all seeds of the cells that its members name."""
    pairs = {}
    for run in members:
        reference = run if run.record.is_reference else by_id.get(run.record.reference_id or "")
        if reference is not None:
            pairs[run.id] = reference
    references = {run.id: run for wide in pairs.values() for run in grouped[group_key(wide)]}
    return Group(tuple(members), tuple(references.values()), pairs, tolerance)
