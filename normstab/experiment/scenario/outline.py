"""What a scenario would run, before it runs: its cells, and their cost in steps and images. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from normstab.errors import lookup
from normstab.experiment.data.datasets import EVERY_SET
from normstab.experiment.scenario.checking.checks import path_of
from normstab.experiment.scenario.document import Scenario
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.grid import is_large, spans_of
from normstab.experiment.scenario.planning.glimpses import first_cells
from normstab.experiment.scenario.planning.grid_counts import counts_of
from normstab.experiment.scenario.planning.run_costs import Rates
from normstab.experiment.scenario.spec import Cell, DatasetSpec, Scalar, TrainSpec
from normstab.numerics.precision import Precision
from normstab.numerics.spelling.cautions import cautions

__all__ = ["cautions_of", "cell_count", "outline_of"]

MOST_LISTED = 20  # cells of a grid that is too large to be made for a look at it


@dataclass(frozen=True)
class CellOutline:
    """One cell: its place in the grid, why it is there, and its cost; images None where only the files know."""

    id: str
    coordinates: dict[str, Scalar]
    role: str
    epochs: int
    images: int | None
    steps: int | None


@dataclass(frozen=True)
class Totals:
    """All cells together: how many are trained, of these wide references, how many swept; steps and images.

    `is_most`: there are no more than these. Steps and images are None where only the files of the data know.
    """

    trained: int
    references: int
    swept: int
    steps: int | None
    images: int | None
    is_most: bool = False


@dataclass(frozen=True)
class Outline:
    """A scenario's question, its forms and its cells; of a large grid `cells` has the first, `totals` tells of all.

    `core_hours` and `bytes` are estimated, None where nothing tells them; `rates` says from what.
    """

    name: str
    path: str
    question: str
    source: str
    dataset: str
    model: str
    profiles: tuple[str, ...]
    expectations: int
    cells: tuple[CellOutline, ...]
    totals: Totals
    core_hours: float | None
    bytes: int | None
    rates: str = ""
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> int | None:
        """Images passed forward and backward by all cells together."""
        return self.totals.images

    @property
    def left(self) -> int:
        """How many cells are not listed."""
        return self.totals.trained + self.totals.swept - len(self.cells)

    @property
    def cost(self) -> str:
        """The cost in words."""
        found = self.totals
        most = "at most " if found.is_most else ""
        parts = [f"{most}{found.trained} trained cells ({found.references} wide references)"]
        parts += [f"{found.swept} cells of a sweep without training"] if found.swept else []
        if found.images is not None and found.steps is not None:
            parts.append(f"{found.steps:,} steps over {found.images:,} images in all")
        return ", ".join(parts)

    @property
    def resources(self) -> str:
        """The core hours and bytes in words."""
        if self.core_hours is None:
            hours = "core hours are known once cells have run here (`--smoke` is enough)"
        else:
            hours = f"about {self.core_hours:,.3g} core hours, as {self.rates} took"
        return hours + ("" if self.bytes is None else f"; about {self.bytes / 1e6:,.3g} MB of records")

    @property
    def facts(self) -> dict[str, str]:
        """What is asked, of what, and what it costs; what is not set is left out."""
        found = {
            "question": self.question,
            "source": self.source,
            "data": self.dataset,
            "model": self.model,
            "profiles": ", ".join(self.profiles),
            "expects": f"{self.expectations} expectations",
            "cost": self.cost,
            "takes": self.resources,
            "note": " ".join(self.notes),
        }
        return {name: value for name, value in found.items() if value}

    @property
    def rows(self) -> list[dict[str, Scalar]]:
        """A row for each cell: its coordinates, why it is there, its steps and its id."""
        return [{**cell.coordinates, "role": cell.role, "steps": cell.steps, "cell": cell.id} for cell in self.cells]


def outline_of(scenario: Scenario, rates: Rates | None = None) -> Outline:
    """Return the outline of `scenario`, its core hours and bytes by `rates`."""
    is_counted, rates = is_large(scenario.document), rates or Rates()
    cells = first_cells(scenario, MOST_LISTED) if is_counted else expand(scenario, hash_data=False)
    rows = tuple(_cell_outline(cell) for cell in cells)
    totals = _counted(scenario, cells[0]) if is_counted else _added(rows)
    first = cells[0]
    profiles = scenario.document.get("profiles") or {}
    return Outline(
        name=scenario.name,
        path=scenario.path,
        question=scenario.question,
        source=scenario.source,
        dataset=_described(first.dataset.name, size=first.dataset.size),
        model=_described(first.model.name, width=first.model.width),
        profiles=tuple(profiles),
        expectations=len(scenario.expectations),
        cells=rows,
        totals=totals,
        core_hours=rates.core_hours(totals.images),
        bytes=rates.bytes(totals.trained + totals.swept, totals.steps),
        rates=rates.source,
        notes=tuple(cautions_of(scenario)),
    )


def cell_count(scenario: Scenario) -> int:
    """Return how many cells a scenario has: of a large grid without making them."""
    is_counted = is_large(scenario.document)
    return counts_of(scenario.document).cells if is_counted else len(expand(scenario, hash_data=False))


def _added(rows: Sequence[CellOutline]) -> Totals:
    """Return the sums over all cells."""
    trained = [row for row in rows if row.epochs]
    steps = [row.steps for row in trained if row.steps is not None]
    images = [row.images for row in trained if row.images is not None]
    references = sum(row.role == "reference" for row in trained)
    return Totals(
        len(trained),
        references,
        len(rows) - len(trained),
        sum(steps) if len(steps) == len(trained) else None,
        sum(images) if len(images) == len(trained) else None,
    )


def _counted(scenario: Scenario, first: Cell) -> Totals:
    """Return the same for a large grid, by arithmetic; `first` is one of its cells."""
    found = counts_of(scenario.document)
    steps: int | None = 0
    images: int | None = 0
    for costly, n in found.by_cost.items():
        given = {path: value for path, value in costly if value is not None}
        dataset = replace(first.dataset, **_of_section("dataset", given))
        train = replace(first.train, **_of_section("train", given))
        cost = _cost_of(dataset, train)
        steps = None if cost is None or steps is None else steps + n * cost[1]
        images = None if cost is None or images is None else images + n * cost[0]
    return Totals(found.listed + found.references, found.references, found.swept, steps, images, found.is_most)


def _of_section(section: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of one section by their names."""
    return {path.partition(".")[2]: value for path, value in settings.items() if path.startswith(f"{section}.")}


def cautions_of(scenario: Scenario) -> list[str]:
    """Return a sentence for each format of the scenario's arithmetic that is easily taken for another."""
    return cautions(Precision.parse(text) for text in sorted(_precisions_of(scenario)))


def _precisions_of(scenario: Scenario) -> set[str]:
    """Return the spellings of the precisions of all cells; of a large grid, of every value on its axes."""
    if not is_large(scenario.document):
        cells = expand(scenario, hash_data=False)
        return {text for cell in cells for text in (cell.numerics.precision, *cell.numerics.rules.values())}
    cells = first_cells(scenario, 1)
    spans, variants = spans_of(scenario.document), scenario.document.get("variants") or {}
    on_axes = [(path_of(axis), value) for span in spans for axis in span.axes for value in span.axes[axis]]
    of_variants = [setting for variant in variants.values() for setting in variant.items()]
    named: set[str] = set()
    for path, value in [*on_axes, *of_variants]:
        if path == "numerics.rules":
            named.update(map(str, value.values()))
        elif path == "numerics.precision" or path.startswith("numerics.rules."):
            named.add(str(value))
    own = {text for cell in cells for text in (cell.numerics.precision, *cell.numerics.rules.values())}
    return own | {str(Precision.parse(text)) for text in named}


def _described(name: str, **numbers: int | None) -> str:
    """Return a name with the numbers that are set."""
    shown = ", ".join(f"{key} {value}" for key, value in numbers.items() if value is not None)
    return f"{name} ({shown})" if shown else name


def _cell_outline(cell: Cell) -> CellOutline:
    role = "sweep" if cell.sweep else "reference" if cell.is_reference else "cell" if cell.is_listed else "recording"
    if cell.sweep:
        return CellOutline(cell.id, dict(cell.coordinates), role, 0, 0, 0)
    cost = _cost_of(cell.dataset, cell.train)
    images, steps = (None, None) if cost is None else cost
    return CellOutline(cell.id, dict(cell.coordinates), role, cell.train.epochs, images, steps)


def _cost_of(dataset: DatasetSpec, train: TrainSpec) -> tuple[int, int] | None:
    """Return the images and steps of a training; None where only the files know."""
    row = lookup(EVERY_SET, dataset.name, what="data set")
    # Of a text the number of windows follows from their length.
    in_set = None if dataset.size is not None and getattr(row, "kind", "") == "text" else row.train
    per_epoch = dataset.train if dataset.train is not None else in_set
    if per_epoch is None:
        return None
    return train.epochs * per_epoch, train.epochs * math.ceil(per_epoch / train.batch)
