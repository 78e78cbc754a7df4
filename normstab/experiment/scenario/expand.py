"""From a scenario to its cells: every point of the grid resolved, with the references and recordings it needs."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from pydantic import TypeAdapter

from normstab.errors import ScenarioError
from normstab.experiment.scenario.cell_identity import Scalar, hash_of
from normstab.experiment.scenario.checking.checks import canonical, canonical_norm, path_of
from normstab.experiment.scenario.checking.combinations import combination_faults
from normstab.experiment.scenario.document import VARIANT, Scenario
from normstab.experiment.scenario.grid import (
    MOST_RUN,
    Point,
    axis_names,
    point_count,
    points,
    shown_point,
    swept_points,
)
from normstab.experiment.scenario.planning.read_hashes import ReadHashes
from normstab.experiment.scenario.settings import loc_of, put
from normstab.experiment.scenario.spec import Cell, DatasetSpec, ModelSpec, NormNoiseSpec, NumericsSpec, SweepSpec
from normstab.experiment.scenario.training_spec import TrainSpec
from normstab.numerics.precision import Precision

__all__ = ["Resolver", "expand"]

# Cells between a cell and the last of those whose recorded norms it follows, references not counted.
MOST_RECORDINGS = 32
# For each point, cells with the references and recordings that it needs, and settings that differ: a chain of
# recordings behind every point would be more.
MOST_RESOLVED, LEAST_RESOLVED = 4, 10_000
MOST_SPECS, LEAST_SPECS = 2, 3_000
NOISE = "norm_noise"


def expand(scenario: Scenario, *, hash_data: bool = True) -> list[Cell]:
    """Return the scenario's cells, each behind the cells it depends on; equal cells appear once.

    References, and cells whose channel norms others follow, are added where the grid does not list them.
    `hash_data` False leaves the data, and a foreign model's code, unread: the ids are then not those of a run.
    """
    if not hash_data and scenario.outlined:
        return list(scenario.outlined)
    if (count := point_count(scenario.document)) > MOST_RUN:
        told = f"{count:,} cells; one run takes at most {MOST_RUN:,}: `normstab show` plans them, split the file to run"
        raise ScenarioError(f"{scenario.path}: grid: {told}")
    resolver = Resolver(scenario, hash_data=hash_data)
    listed = {cell.id: cell for cell in (*resolver.trained(), *resolver.swept())}
    ordered: dict[str, Cell] = {}
    for cell in listed.values():
        resolver.put_behind_its_needs(cell, ordered)
    cells = [cell if cell.id in listed else replace(cell, is_listed=False) for cell in ordered.values()]
    if not hash_data:
        scenario.outlined.extend(cells)
    return cells


class Resolver:
    """Builds each distinct cell once; a cell that depends on another's norms builds that one too."""

    def __init__(self, scenario: Scenario, *, hash_data: bool) -> None:
        self._scenario, self._document = scenario, scenario.document
        self._axes = axis_names(scenario.document)
        self._hashes = ReadHashes(scenario.path, are_read=hash_data)
        self._count = point_count(scenario.document)
        self._sections: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._resolved_points: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
        self._specs_built: dict[str, Any] = {}
        self._specs_of: dict[int, Any] = {}
        self._values: dict[tuple[str, int], Scalar] = {}
        self._checked: set[tuple[int, ...]] = set()
        self._built: dict[Hashable, Cell] = {}
        self._by_id: dict[str, Cell] = {}
        self._references: dict[str, Cell] = {}
        self._under_way: dict[Hashable, None] = {}

    def trained(self) -> Iterator[Cell]:
        """Yield the cells that the grid lists."""
        return (self._cell(point, is_native=False) for point in points(self._document))

    def swept(self) -> Iterator[Cell]:
        """Yield the cells of the sweep: no training, so nothing of it enters the id but the seed."""
        for point in swept_points(self._document):
            plain = self._resolved(point)
            dataset, model, train, numerics = self._specs(plain, self._numerics(plain, is_native=False))
            if model.norm_noise is not None:
                raise ScenarioError(f"{self._scenario.path}: sweep: scales are swept undisturbed; leave out {NOISE}")
            settings = {name: value for name, value in self._document["sweep"].items() if name != "grid"}
            yield self._kept(
                Cell(
                    self._scenario.name,
                    self._coordinates(list(point), point, (dataset, model, train, numerics)),
                    dataset,
                    model,
                    TrainSpec(seed=train.seed),
                    numerics,
                    sweep=_SWEEP.validate_json(json.dumps(settings)),
                    data_sha256=self._hashes.of_data(dataset),
                    code_sha256=self._hashes.of_code(model),
                )
            )

    def check(self, point: Point) -> None:
        """Raise where the settings of a point do not go together."""
        self._cell(point, is_native=False)

    def put_behind_its_needs(self, cell: Cell, ordered: dict[str, Cell]) -> None:
        """Add to `ordered` the cells that `cell` depends on, those they depend on first, then `cell`."""
        if cell.id not in ordered:
            for other in cell.depends_on:
                self.put_behind_its_needs(self._by_id[other], ordered)
            ordered[cell.id] = cell

    def _kept(self, cell: Cell) -> Cell:
        return self._by_id.setdefault(cell.id, cell)

    def _cell(self, point: Point, *, is_native: bool) -> Cell:
        """Return the cell at `point`, or its reference, built once."""
        places = ((axis, canonical(path_of(axis), value)) for axis, value in point.items())
        key = (is_native, *((axis, type(value), value) for axis, value in places))
        if key in self._under_way:
            raise ScenarioError(f"{self._scenario.path}: train.norm_record goes in a circle at {shown_point(point)}")
        if len(self._under_way) > MOST_RECORDINGS:
            message = f"train.norm_record leads through more than {MOST_RECORDINGS} cells"
            raise ScenarioError(f"{self._scenario.path}: {message} at {shown_point(point)}")
        if key not in self._built:
            self._check_size()
            self._under_way[key] = None
            self._built[key] = self._kept(self._build(point, is_native=is_native))
            del self._under_way[key]
        return self._built[key]

    def _reference(self, point: Point) -> Cell:
        """Return the reference at `point`: of those that train the same, the first, wherever it stands in the grid."""
        cell = self._cell(point, is_native=True)
        return self._references.setdefault(hash_of(cell.id), cell)

    def _check_size(self) -> None:
        """Raise where one cell more would be too many."""
        most_resolved = max(LEAST_RESOLVED, MOST_RESOLVED * self._count)
        most_specs = max(LEAST_SPECS, MOST_SPECS * self._count)
        for found, most, what in (
            (self._built, most_resolved, "cells, with the wide references and recordings that they need"),
            (self._specs_built, most_specs, "settings that differ between cells"),
        ):
            if len(found) >= most:
                message = f"more than {most} {what}: shorten the axes, or split the file"
                raise ScenarioError(f"{self._scenario.path}: grid: {message}")

    def _build(self, point: Point, *, is_native: bool) -> Cell:
        """Resolve the point; its reference and its recording cell are built before it."""
        plain = self._resolved(point)
        numerics = self._numerics(plain, is_native=is_native)
        depends_on: list[str] = []
        train = plain["train"]
        if train.get("norm_record") is not None:
            source = self._cell({**point, **train["norm_record"]["from"]}, is_native=is_native)
            plain["train"] = self._shared((id(train), source.id), lambda: {**train, "norm_record": source.id})
            depends_on.append(source.id)
        if is_native:
            model = plain["model"]
            plain["model"] = self._shared(
                (id(model), "undisturbed"), lambda: {name: value for name, value in model.items() if name != NOISE}
            )
        is_wide = numerics["precision"] == "native" and not numerics.get("rules")
        is_reference = is_wide and plain["model"].get(NOISE) is None
        reference = None if is_reference else self._reference(point)
        if reference is not None:
            depends_on.insert(0, reference.id)
        specs = self._specs(plain, numerics)
        combined = tuple(map(id, specs))
        if combined not in self._checked:
            for message in combination_faults(*specs):
                raise ScenarioError(f"{self._scenario.path}: {message} (at {shown_point(point)})")
            self._checked.add(combined)
        return Cell(
            self._scenario.name,
            self._coordinates(self._axes, point, specs),
            *specs,
            is_reference=is_reference,
            reference_id=reference.id if reference is not None else None,
            depends_on=tuple(depends_on),
            data_sha256=self._hashes.of_data(specs[0]),
            code_sha256=self._hashes.of_code(specs[1]),
            record=self._scenario.parsed.record,
        )

    def _resolved(self, point: Point) -> dict[str, dict[str, Any]]:
        """Return the sections with the point's variant applied, then its other axes; what is equal is one object.

        A cell and its reference ask for the same point.
        """
        key = (*point, *map(id, point.values()))
        if key in self._resolved_points:
            return dict(self._resolved_points[key])
        variant = self._document["variants"][point[VARIANT]] if VARIANT in point else {}
        settings = {**variant, **{path_of(axis): value for axis, value in point.items() if axis != VARIANT}}
        chosen: dict[str, dict[str, Any]] = {name: {} for name in _ADAPTERS}
        for path, value in settings.items():
            chosen[path.partition(".")[0]][path] = value
        self._resolved_points[key] = {name: self._section(name, here, point) for name, here in chosen.items()}
        return dict(self._resolved_points[key])

    def _section(self, name: str, settings: Mapping[str, Any], point: Point) -> dict[str, Any]:
        """Return the section with these settings, which are values of the document itself: their `id` names them."""

        def build() -> dict[str, Any]:
            plain = {name: copy.deepcopy(self._document.get(name) or {})}
            for path, value in settings.items():
                if not put(plain, loc_of(path), copy.deepcopy(value)):
                    where = f"{path!r} at {shown_point(point)}"
                    raise ScenarioError(f"{self._scenario.path}: {where}: its parent is not a mapping")
            return plain[name]

        return self._shared((name, *((path, id(value)) for path, value in settings.items())), build)

    def _shared(self, key: tuple[Any, ...], build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the section of this key, built once and kept, so that its `id` stays its own."""
        if key not in self._sections:
            self._sections[key] = build()
        return self._sections[key]

    def _numerics(self, plain: Mapping[str, Any], *, is_native: bool) -> dict[str, Any]:
        """Return the numerics section with canonical precisions; a wide cell keeps nothing but `histogram`."""
        section = plain["numerics"]

        def build() -> dict[str, Any]:
            precision = str(Precision.parse(section.get("precision", "native")))
            rules = {name: str(Precision.parse(rule)) for name, rule in (section.get("rules") or {}).items()}
            is_wide = precision == "native" and all(rule == "native" for rule in rules.values())
            if is_native or is_wide:
                return {"precision": "native", "histogram": section.get("histogram", False)}
            return {**section, "precision": precision, "rules": rules}

        return self._shared((id(section), is_native), build)

    def _specs(
        self, plain: Mapping[str, Any], numerics: Mapping[str, Any]
    ) -> tuple[DatasetSpec, ModelSpec, TrainSpec, NumericsSpec]:
        """Return the four specs of a resolved cell; their values were checked when the file was loaded."""
        sections = {**plain, "numerics": numerics}
        dataset, model, train, arithmetic = (self._spec(name, sections[name]) for name in _ADAPTERS)
        return dataset, model, train, arithmetic

    def _spec(self, name: str, section: Mapping[str, Any]) -> Any:
        """Return the spec of one section; few of them differ between the cells of a grid, so each is built once."""
        if id(section) in self._specs_of:
            return self._specs_of[id(section)]
        key = f"{name} {json.dumps(section)}"
        if key not in self._specs_built:
            spec = _ADAPTERS[name].validate_json(json.dumps(section))
            is_model = isinstance(spec, ModelSpec)
            self._specs_built[key] = replace(spec, norm=canonical_norm(spec.norm)) if is_model else spec
        return self._specs_of.setdefault(id(section), self._specs_built[key])

    def _coordinates(self, axes: list[str], point: Point, specs: tuple[Any, ...]) -> dict[str, Scalar]:
        """Return the value of every axis, of the precision and of the seed in the resolved specs."""
        found: dict[str, Scalar] = {}
        sections = dict(zip(_ADAPTERS, specs, strict=True))
        for axis in dict.fromkeys((*axes, "precision", "seed")):
            if axis == VARIANT:
                found[axis] = point.get(VARIANT)
                continue
            path = path_of(axis)
            section, *names = path.split(".")
            key = (axis, id(sections[section]))
            if key not in self._values:
                value = functools.reduce(lambda spec, name: getattr(spec, name, None), names, sections[section])
                value = asdict(value) if isinstance(value, NormNoiseSpec) else value
                self._values[key] = canonical(path, list(value) if isinstance(value, tuple) else value)
            found[axis] = self._values[key]
        return found


_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "dataset": TypeAdapter(DatasetSpec),
    "model": TypeAdapter(ModelSpec),
    "train": TypeAdapter(TrainSpec),
    "numerics": TypeAdapter(NumericsSpec),
}
_SWEEP: TypeAdapter[SweepSpec] = TypeAdapter(SweepSpec)
