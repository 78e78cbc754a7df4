"""From a scenario to its cells: every point of the grid resolved, with the references and recordings it needs."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from normstab.errors import NormstabError, ScenarioError
from normstab.experiment.network.model_code import code_sha256
from normstab.experiment.network.models import require_model
from normstab.experiment.scenario.checking.checks import canonical, path_of
from normstab.experiment.scenario.document import VARIANT, Scenario
from normstab.experiment.scenario.grid import Point, axis_names, points, swept_points
from normstab.experiment.scenario.settings import loc_of, put
from normstab.experiment.scenario.spec import Cell, DatasetSpec, ModelSpec, NumericsSpec, Scalar, SweepSpec, TrainSpec
from normstab.numerics.precision import Precision

__all__ = ["expand"]


def expand(scenario: Scenario, *, hash_data: bool = True) -> list[Cell]:
    """Return the scenario's cells, each behind the cells it depends on; equal cells appear once.

    References, and cells whose channel norms others follow, are added where the grid does not list them.
    `hash_data` False leaves the data, and a foreign model's code, unread: the ids are then not those of a run.
    """
    resolver = _Resolver(scenario, hash_data=hash_data)
    listed = [*resolver.trained(), *resolver.swept()]
    listed_ids = {cell.id for cell in listed}
    ordered: dict[str, Cell] = {}
    for cell in listed:
        for needed in resolver.needed(cell):
            ordered.setdefault(needed.id, replace(needed, is_listed=needed.id in listed_ids))
    return list(ordered.values())


class _Resolver:
    """Builds each distinct cell once; a cell that depends on another's norms builds that one too."""

    def __init__(self, scenario: Scenario, *, hash_data: bool) -> None:
        self._scenario, self._document = scenario, scenario.document
        self._axes = axis_names(scenario.document)
        self._hash_data = hash_data
        self._specs_built: dict[str, Any] = {}
        self._hashes: dict[str, str] = {}
        self._code_hashes: dict[str, str] = {}
        self._built: dict[str, Cell] = {}
        self._by_id: dict[str, Cell] = {}
        self._under_way: list[str] = []

    def trained(self) -> Iterator[Cell]:
        """Yield the cells that the grid lists."""
        return (self._cell(point, is_native=False) for point in points(self._document))

    def swept(self) -> Iterator[Cell]:
        """Yield the cells of the sweep: no training, so nothing of it enters the id but the seed."""
        for point in swept_points(self._document):
            plain = self._resolved(point)
            dataset, model, train, numerics = self._specs(plain, self._numerics(plain, is_native=False))
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
                    data_sha256=self._data_sha256(dataset),
                    code_sha256=self._code_sha256(model),
                )
            )

    def needed(self, cell: Cell) -> Iterator[Cell]:
        """Yield the cells that `cell` depends on, those they depend on first, then `cell`."""
        for other in cell.depends_on:
            yield from self.needed(self._by_id[other])
        yield cell

    def _kept(self, cell: Cell) -> Cell:
        return self._by_id.setdefault(cell.id, cell)

    def _cell(self, point: Point, *, is_native: bool) -> Cell:
        """Return the cell at `point`, or its reference, built once."""
        key = json.dumps([{axis: canonical(path_of(axis), value) for axis, value in point.items()}, is_native])
        if key in self._under_way:
            raise ScenarioError(f"{self._scenario.path}: train.norm_record goes in a circle at {_shown(point)}")
        if key not in self._built:
            self._under_way.append(key)
            self._built[key] = self._kept(self._build(point, is_native=is_native))
            self._under_way.pop()
        return self._built[key]

    def _build(self, point: Point, *, is_native: bool) -> Cell:
        """Resolve the point; its reference and its recording cell are built before it."""
        plain = self._resolved(point)
        numerics = self._numerics(plain, is_native=is_native)
        depends_on: list[str] = []
        recorder = plain["train"].pop("norm_record", None)
        if recorder is not None:
            source = self._cell({**point, **recorder["from"]}, is_native=is_native)
            plain["train"]["norm_record"] = source.id
            depends_on.append(source.id)
        is_reference = numerics["precision"] == "native"
        reference = None if is_reference else self._cell(point, is_native=True)
        if reference is not None:
            depends_on.insert(0, reference.id)
        specs = self._specs(plain, numerics)
        _check_specs(self._scenario, point, *specs[1:3])
        return Cell(
            self._scenario.name,
            self._coordinates(self._axes, point, specs),
            *specs,
            is_reference=is_reference,
            reference_id=reference.id if reference is not None else None,
            depends_on=tuple(depends_on),
            data_sha256=self._data_sha256(specs[0]),
            code_sha256=self._code_sha256(specs[1]),
            record=self._scenario.parsed.record,
        )

    def _resolved(self, point: Point) -> dict[str, Any]:
        """Return the sections with the point's variant applied, then its other axes."""
        plain = {name: copy.deepcopy(self._document.get(name) or {}) for name in _ADAPTERS}
        variant = self._document["variants"][point[VARIANT]] if VARIANT in point else {}
        settings = {path_of(axis): value for axis, value in point.items() if axis != VARIANT}
        for path, value in {**variant, **settings}.items():
            if not put(plain, loc_of(path), copy.deepcopy(value)):
                raise ScenarioError(f"{self._scenario.path}: {path!r} at {_shown(point)}: its parent is not a mapping")
        return plain

    def _numerics(self, plain: Mapping[str, Any], *, is_native: bool) -> dict[str, Any]:
        """Return the numerics section with canonical precisions; a wide cell keeps nothing but `histogram`."""
        numerics = dict(plain["numerics"])
        precision = str(Precision.parse(numerics.get("precision", "native")))
        rules = {name: str(Precision.parse(rule)) for name, rule in (numerics.get("rules") or {}).items()}
        is_wide = precision == "native" and all(rule == "native" for rule in rules.values())
        if is_native or is_wide:
            return {"precision": "native", "histogram": numerics.get("histogram", False)}
        return {**numerics, "precision": precision, "rules": rules}

    def _specs(
        self, plain: Mapping[str, Any], numerics: Mapping[str, Any]
    ) -> tuple[DatasetSpec, ModelSpec, TrainSpec, NumericsSpec]:
        """Return the four specs of a resolved cell; their values were checked when the file was loaded."""
        sections = {**plain, "numerics": numerics}
        dataset, model, train, arithmetic = (self._spec(name, sections[name]) for name in _ADAPTERS)
        return dataset, model, train, arithmetic

    def _spec(self, name: str, section: Mapping[str, Any]) -> Any:
        """Return the spec of one section; few of them differ between the cells of a grid, so each is built once."""
        key = f"{name} {json.dumps(section)}"
        if key not in self._specs_built:
            spec = _ADAPTERS[name].validate_json(json.dumps(section))
            is_model = isinstance(spec, ModelSpec)
            self._specs_built[key] = replace(spec, norm=_canonical_norm(spec.norm)) if is_model else spec
        return self._specs_built[key]

    def _coordinates(self, axes: list[str], point: Point, specs: tuple[Any, ...]) -> dict[str, Scalar]:
        """Return the value of every axis, of the precision and of the seed in the resolved specs."""
        found: dict[str, Scalar] = {}
        for axis in dict.fromkeys((*axes, "precision", "seed")):
            if axis == VARIANT:
                found[axis] = point.get(VARIANT)
                continue
            section, *names = path_of(axis).split(".")
            value = functools.reduce(getattr, names, dict(zip(_ADAPTERS, specs, strict=True))[section])
            found[axis] = canonical(path_of(axis), list(value) if isinstance(value, tuple) else value)
        return found

    def _code_sha256(self, model: ModelSpec) -> str:
        """Return the hash of the model's code, read once per model."""
        if self._hash_data and model.name not in self._code_hashes:
            self._code_hashes[model.name] = code_sha256(model.name)
        return self._code_hashes.get(model.name, "")

    def _data_sha256(self, dataset: DatasetSpec) -> str:
        """Return the hash of the data, read once per set."""
        if not self._hash_data:
            return ""
        from normstab.experiment.data.datasets import data_sha256

        key = json.dumps([dataset.name, dataset.root, dataset.size])
        if key not in self._hashes:
            try:
                self._hashes[key] = data_sha256(dataset)
            except NormstabError as error:
                raise ScenarioError(f"{self._scenario.path}: dataset: {error}") from error
        return self._hashes[key]


_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "dataset": TypeAdapter(DatasetSpec),
    "model": TypeAdapter(ModelSpec),
    "train": TypeAdapter(TrainSpec),
    "numerics": TypeAdapter(NumericsSpec),
}
_SWEEP: TypeAdapter[SweepSpec] = TypeAdapter(SweepSpec)


def _canonical_norm(norm: str | dict[str, str]) -> str | dict[str, str]:
    """Return the norm, or each rule's, in its canonical spelling."""
    if isinstance(norm, dict):
        return {rule: str(canonical("model.norm", inner)) for rule, inner in norm.items()}
    return str(canonical("model.norm", norm))


def _check_specs(scenario: Scenario, point: Point, model: ModelSpec, train: TrainSpec) -> None:
    """Raise where fields that are right one by one do not go together."""
    optimizer = train.optimizer
    wrong = {
        "train.optimizer.kahan goes with sgd and adamw": optimizer.kahan and optimizer.name == "adam",
        "train.optimizer.nesterov needs sgd with a momentum": optimizer.nesterov
        and not (optimizer.name == "sgd" and optimizer.momentum),
        "train.schedule.name step needs milestones": train.schedule.name == "step" and not train.schedule.milestones,
        "train.weight_decay_correction needs train.norm_record: {from: {...}}": bool(train.weight_decay_correction)
        and train.norm_record is None,
        "model.weight_norm_p other than 2 needs model.weight_norm": model.weight_norm_p != 2
        and model.weight_norm == "none",
    }
    for message in (message for message, holds in wrong.items() if holds):
        raise ScenarioError(f"{scenario.path}: {message} (at {_shown(point)})")
    try:
        require_model(model)
    except NormstabError as error:
        raise ScenarioError(f"{scenario.path}: {error} (at {_shown(point)})") from error


def _shown(point: Point) -> str:
    """Return a point for a message."""
    return ", ".join(f"{axis}={value}" for axis, value in point.items()) or "the only cell"
