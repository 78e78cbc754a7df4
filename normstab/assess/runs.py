"""Groups of runs that differ only in their seed, with their references, and contrasts of paired runs.

Pairs cells by id; reads no file, judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from normstab.assess.curves import Band, band_of
from normstab.assess.single_run.one_run import SEED_AXES, Run
from normstab.assess.statistics import PairedGap, paired_gap, seed_gap

__all__ = ["SEED_AXES", "Group", "Run", "contrast_of", "gap_of", "group_runs"]


class Bands:
    """The bands of the last few sets of references that were asked for: thousands of groups may share few sets."""

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._bands: dict[tuple[str, ...], Band | None] = {}

    def of(self, references: Sequence[Run]) -> Band | None:
        """Return the band of the references' smoothed losses."""
        key = tuple(run.id for run in references)
        band = self._bands.pop(key) if key in self._bands else band_of([run.smoothed for run in references])
        self._bands[key] = band  # the last one asked for stands last
        if len(self._bands) > self._most:
            del self._bands[next(iter(self._bands))]
        return band


@dataclass(frozen=True)
class Group:
    """The runs of one grid point for every seed, and the wide reference runs they are compared with.

    `pairs` maps a run's id to its own reference, where that was recorded.
    """

    runs: tuple[Run, ...]
    references: tuple[Run, ...]
    pairs: Mapping[str, Run]
    tolerance: float
    bands: Bands = field(default_factory=Bands, compare=False, repr=False)

    @property
    def coordinates(self) -> Mapping[str, Any]:
        """The grid point, without the seed."""
        return self.runs[0].point

    @property
    def is_reference(self) -> bool:
        """Whether these runs are references themselves."""
        return self.runs[0].is_reference

    def with_runs(self, runs: Sequence[Run]) -> Group:
        """Return the group of these of its runs, with the references of their seeds."""
        seeds = {run.seed for run in runs}
        references = tuple(wide for wide in self.references if wide.seed in seeds)
        pairs = {run.id: self.pairs[run.id] for run in runs if run.id in self.pairs}
        return replace(self, runs=tuple(runs), references=references, pairs=pairs)

    @property
    def band(self) -> Band | None:
        """The band of the references' smoothed losses."""
        return self.bands.of(self.references)

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
    return (run.scenario, run.is_reference, *shown)


def group_runs(runs: Sequence[Run], *, tolerance: float) -> list[Group]:
    """Return the runs grouped by everything but their seed, in order of first appearance."""
    by_id = {run.id: run for run in runs}
    grouped: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        grouped.setdefault(group_key(run), []).append(run)
    bands = Bands()
    found = []
    for members in grouped.values():
        pairs = _paired(members, by_id)
        # The references of a group are all seeds of the cells that its members name.
        references = {run.id: run for wide in pairs.values() for run in grouped[group_key(wide)]}
        found.append(Group(tuple(members), tuple(references.values()), pairs, tolerance, bands))
    return found


def _paired(members: Sequence[Run], by_id: Mapping[str, Run]) -> dict[str, Run]:
    """Return the reference of each member by the member's id, where there is one."""
    wide = {run.id: run if run.is_reference else by_id.get(run.reference_id or "") for run in members}
    return {name: found for name, found in wide.items() if found is not None}
