"""What a scenario would run, before it runs: its cells, and their cost in steps and images. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from normstab.errors import lookup
from normstab.experiment.data.datasets import EVERY_SET
from normstab.experiment.scenario.reader import Scenario
from normstab.experiment.scenario.spec import Cell, Scalar
from normstab.numerics.precision import Precision
from normstab.numerics.spelling.cautions import cautions

__all__ = ["cautions_of", "outline_of"]


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
class Outline:
    """A scenario's question, its forms and its cells."""

    name: str
    path: str
    question: str
    source: str
    dataset: str
    model: str
    profiles: tuple[str, ...]
    expectations: int
    cells: tuple[CellOutline, ...]
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> int | None:
        """Images passed forward and backward by all cells together."""
        known = [cell.images for cell in self.cells if cell.images is not None]
        return sum(known) if len(known) == len(self.cells) else None

    @property
    def cost(self) -> str:
        """The cost in words."""
        trained = [cell for cell in self.cells if cell.epochs]
        swept = len(self.cells) - len(trained)
        references = sum(cell.role == "reference" for cell in trained)
        parts = [f"{len(trained)} trained cells ({references} wide references)"]
        parts += [f"{swept} cells of a sweep without training"] if swept else []
        steps = [cell.steps for cell in trained if cell.steps is not None]
        if self.images is not None and len(steps) == len(trained):
            parts.append(f"{sum(steps):,} steps over {self.images:,} images in all")
        return ", ".join(parts)

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
            "note": " ".join(self.notes),
        }
        return {name: value for name, value in found.items() if value}

    @property
    def rows(self) -> list[dict[str, Scalar]]:
        """A row for each cell: its coordinates, why it is there, its steps and its id."""
        return [{**cell.coordinates, "role": cell.role, "steps": cell.steps, "cell": cell.id} for cell in self.cells]


def outline_of(scenario: Scenario, cells: Sequence[Cell]) -> Outline:
    """Return the outline of `scenario`, whose cells are `cells`."""
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
        cells=tuple(_cell_outline(cell) for cell in cells),
        notes=tuple(cautions_of(cells)),
    )


def cautions_of(cells: Sequence[Cell]) -> list[str]:
    """Return a sentence for each format of the cells' arithmetic that is easily taken for another."""
    texts = {text for cell in cells for text in (cell.numerics.precision, *cell.numerics.rules.values())}
    return cautions(Precision.parse(text) for text in sorted(texts))


def _described(name: str, **numbers: int | None) -> str:
    """Return a name with the numbers that are set."""
    shown = ", ".join(f"{key} {value}" for key, value in numbers.items() if value is not None)
    return f"{name} ({shown})" if shown else name


def _cell_outline(cell: Cell) -> CellOutline:
    role = "sweep" if cell.sweep else "reference" if cell.is_reference else "cell" if cell.is_listed else "recording"
    if cell.sweep:
        return CellOutline(cell.id, dict(cell.coordinates), role, 0, 0, 0)
    row = lookup(EVERY_SET, cell.dataset.name, what="data set")
    # Of a text the number of windows follows from their length.
    in_set = None if cell.dataset.size is not None and getattr(row, "kind", "") == "text" else row.train
    per_epoch = cell.dataset.train if cell.dataset.train is not None else in_set
    epochs = cell.train.epochs
    images = None if per_epoch is None else epochs * per_epoch
    steps = None if per_epoch is None else epochs * math.ceil(per_epoch / cell.train.batch)
    return CellOutline(cell.id, dict(cell.coordinates), role, epochs, images, steps)
