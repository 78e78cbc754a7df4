"""A run in memory: the record of a cell with its losses, and what follows from the two alone.

Pairs nothing, reads no file, judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normstab.assess.constants import constant
from normstab.assess.curves import smoothed
from normstab.assess.spikes import Spike, spikes_of
from normstab.experiment.records.cell_record import DataFacts, Environment, Predictions, Record
from normstab.experiment.records.step_log import Step
from normstab.experiment.scenario.spec import Cell
from normstab.numerics.ledger import COUNTERS, DIRECTIONS, Tally

__all__ = ["SEED_AXES", "Run", "point_of", "seed_of"]

SEED_AXES = ("seed", "train.seed")
"""The grid axes along which runs are repetitions of each other."""


def point_of(coordinates: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a cell's place in its grid, without the seed."""
    return {axis: value for axis, value in coordinates.items() if axis not in SEED_AXES}


def seed_of(coordinates: Mapping[str, Any]) -> Any:
    """Return the value of the seed axis; None where the grid has none."""
    return next((coordinates[axis] for axis in SEED_AXES if axis in coordinates), None)


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
        return point_of(self.coordinates)

    @property
    def seed(self) -> Any:
        """The value of the seed axis; None where the grid has none."""
        return seed_of(self.coordinates)

    @property
    def scenario(self) -> str:
        """The name of the scenario that the cell is of."""
        return str(self.record.cell.get("scenario", ""))

    @property
    def is_reference(self) -> bool:
        """Whether the cell is the wide reference of a group."""
        return self.record.is_reference

    @property
    def reference_id(self) -> str | None:
        """The id of the wide reference of this cell's group."""
        return self.record.reference_id

    @property
    def is_swept(self) -> bool:
        """Whether the cell is of a sweep, which trains nothing."""
        return bool(self.record.cell.get("sweep"))

    @property
    def code_sha256(self) -> str:
        """The hash of the code of a model that is not of the catalogue."""
        return str(self.record.cell.get("code_sha256", ""))

    @property
    def model(self) -> Mapping[str, Any]:
        """What the record says of the model."""
        found = self.record.cell.get("model", {})
        assert isinstance(found, Mapping)
        return found

    @property
    def data(self) -> DataFacts:
        """Which data the cell was trained on."""
        return self.record.data

    @property
    def environment(self) -> Environment:
        """What the record depends on beyond its cell."""
        return self.record.environment

    @property
    def steps_per_epoch(self) -> int:
        """The steps of a pass over the data."""
        return self.record.steps_per_epoch

    @property
    def numerics_version(self) -> int:
        """The version of the numerics that the record was made with."""
        return self.record.numerics_version

    @property
    def notes(self) -> tuple[str, ...]:
        """What the run had to say."""
        return self.record.notes

    @property
    def unrecognised(self) -> Mapping[str, int]:
        """The operations that were not recognised, each with its count."""
        return self.record.unrecognised

    @property
    def is_emulated(self) -> bool:
        """Whether anything was counted."""
        return bool(self.totals)

    @property
    def has_exponents(self) -> bool:
        """Whether the exponents of results were recorded, so that other formats can be foretold."""
        tallies = self.totals.values()
        return any(tally.histogram is not None and tally.histogram.finite_nonzero for tally in tallies)

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
