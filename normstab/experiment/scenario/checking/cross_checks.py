"""Checks that relate the parts of a scenario: profiles, variants, selectors, metrics, claims, depending cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from normstab.errors import near
from normstab.experiment.scenario.checking.checks import canonical, check_axes, check_names, check_settings, path_of
from normstab.experiment.scenario.checking.problems import Problem
from normstab.experiment.scenario.document import PATHS, SECTIONS, VARIANT
from normstab.experiment.scenario.expectation import selectors
from normstab.experiment.scenario.grid import MOST_CELLS, MOST_CHARACTERS, characters_resolved, point_count
from normstab.experiment.scenario.metric_names import METRIC_NAMES, SWEEP_METRICS
from normstab.experiment.scenario.scenario_text import Loc
from normstab.experiment.scenario.settings import value_at

__all__ = ["Axes", "check_document"]

# Axis -> the canonical values that its cells have.
Axes = dict[str, list[Any]]
NAMED = ("dataset.name", "model.name", "model.norm", "model.norm_noise", "numerics.precision", "numerics.rules")
# Top-level fields that a profile may change beside the cells' own sections.
PROFILED = ("grid", "sweep", "include", "exclude", "tolerance")

# Values of an axis that a message lists.
MOST_NAMES = 20


@dataclass(frozen=True)
class Known:
    """What selectors may name: the axes of trained and of swept cells with their canonical values, and claims."""

    trained: Mapping[str, list[Any]]
    swept: Mapping[str, list[Any]]
    claims: tuple[str, ...]


def check_document(document: Mapping[str, Any], written: Mapping[str, Any], *, allow_import: bool) -> Iterator[Problem]:
    """Yield every problem beyond the shape; `written` is the document before profiles and overrides."""
    for path in NAMED:
        loc = tuple(path.split("."))
        found = check_names(path, value_at(document, loc), allow_import=allow_import)
        yield from (Problem((*loc, *inner), text) for inner, text in found)
    variants = _mapping(document, "variants")
    count, size = point_count(document), characters_resolved(document)
    if size > (most := MOST_CHARACTERS * max(count, MOST_CELLS) // MOST_CELLS):
        message = f"{count} cells with {size:,} characters of settings in all; at most {most:,} are allowed"
        yield Problem(("grid",), f"{message}: shorten rules, arguments or variants, or split the file")
    for loc in (("grid",), ("sweep", "grid")):
        yield from check_axes(value_at(document, loc), loc, variants=variants, allow_import=allow_import)
    for name, settings in variants.items():
        yield from check_settings(settings, ("variants", name), allow_import=allow_import)
    for name, settings in _mapping(document, "profiles").items():
        loc = ("profiles", name)
        yield from check_settings(settings, loc, allow_import=allow_import, also=PROFILED)
        grid = {path[5:]: _listed(value) for path, value in _items(settings) if path.startswith("grid.")}
        for problem in check_axes(grid, (), variants=variants, allow_import=allow_import):
            yield Problem((*loc, f"grid.{problem.loc[0]}", *problem.loc[1:]), problem.message, problem.is_key)
    for index, entry in enumerate(_list(document, "include")):
        axes = {axis: _listed(values) for axis, values in _items(entry)}
        yield from check_axes(axes, ("include", index), variants=variants, allow_import=allow_import)
    if variants and VARIANT not in axes_of(document, written):
        names = ", ".join(variants)
        yield Problem(("variants",), f"no cell uses the variants; add grid.variant: [{names}]", is_key=True)
    yield from _check_references(document, written)


def _check_references(document: Mapping[str, Any], written: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problems of everything that refers to cells: selectors, expectations, claims, plots."""
    claims = tuple(str(claim.get("id")) for claim in _list(document, "claims") if isinstance(claim, dict))
    known = Known(axes_of(document, written), axes_of(document, written, swept=True), claims)
    for index, selector in enumerate(_list(document, "exclude")):
        yield from _check_selector(selector, ("exclude", index), known.trained)
    for loc, recorder in _recorders(document):
        if recorder is None:
            continue
        if not (isinstance(recorder, dict) and list(recorder) == ["from"] and isinstance(recorder["from"], dict)):
            yield Problem(loc, "expected {from: {axis: value}}, the axes in which the recording cell differs")
        else:
            yield from _check_selector(recorder["from"], (*loc, "from"), known.trained)
    for index, plain in enumerate(_list(document, "expect")):
        yield from _check_expectation(plain, ("expect", index), known)
    for index, claim in enumerate(_list(document, "claims")):
        here = ("claims", index)
        if isinstance(claim, dict) and claims.index(str(claim.get("id"))) != index:
            yield Problem((*here, "id"), f"the claim {claim.get('id')!r} is given twice")
        yield from _check_plot(value_at(claim, ("plot",)), (*here, "plot"), known)


def axes_of(document: Mapping[str, Any], written: Mapping[str, Any], *, swept: bool = False) -> Axes:
    """Return every axis of the trained (or swept) cells with all values that a selector may name, canonical.

    Those of the grid as it is now and as the file has it, of `include`, and of the document itself; `native`
    is always a precision, since references have it.
    """
    axes: Axes = {"precision": ["native"], "seed": []}
    for version in (document, written):
        grid = value_at(version, ("sweep", "grid") if swept else ("grid",))
        entries = [] if swept else _list(version, "include")
        for source in (grid, *entries):
            for axis, values in _items(source):
                known = axes.setdefault(axis, [])
                known += [canonical(path_of(axis), value) for value in _listed(values)]
        for axis, values in axes.items():
            if axis == VARIANT:
                values += _mapping(version, "variants")
                continue
            base = value_at(version, tuple(path_of(axis).split(".")))
            values.append(canonical(path_of(axis), _default(path_of(axis)) if base is None else base))
    return axes


def _default(path: str) -> Any:
    """Return the value of a dotted path that the file leaves out; None where it has none."""
    section, _, name = path.rpartition(".")
    if path not in PATHS:
        return None
    found = next(part.default for part in fields(SECTIONS[section]) if part.name == name)
    return None if found is MISSING else found


def _check_selector(selector: Any, loc: Loc, axes: Mapping[str, list[Any]]) -> Iterator[Problem]:
    """Yield the problems of a selector: axes and values that no cell has."""
    for axis, values in _items(selector):
        here = (*loc, axis)
        if axis not in axes:
            yield Problem(here, f"no cell has the axis {axis!r}{near(axis, axes)} ({', '.join(axes)})", is_key=True)
            continue
        for index, value in enumerate(_listed(values)):
            spelling = canonical(path_of(axis), value)
            if spelling not in axes[axis]:
                names = list(dict.fromkeys(str(known) for known in axes[axis]))
                place = (*here, index) if isinstance(values, list) else here
                listed = ", ".join([*names[:MOST_NAMES], *(["..."] * (len(names) > MOST_NAMES))])
                yield Problem(place, f"no cell has {axis} {spelling!r}{near(str(spelling), names)} ({listed})")


def _check_expectation(plain: Any, loc: Loc, known: Known) -> Iterator[Problem]:
    """Yield the problems of one expectation, and of those inside `any`."""
    if not isinstance(plain, dict):
        return
    for index, inner in enumerate(_list(plain, "any")):
        yield from _check_expectation(inner, (*loc, "any", index), known)
    metric = plain.get("metric")
    yield from _check_metric(metric, (*loc, "metric"))
    axes = known.swept if metric in SWEEP_METRICS else known.trained
    for inner_loc, selector in selectors(plain):
        yield from _check_selector(selector, (*loc, *inner_loc), axes)
    claim = plain.get("claim")
    if isinstance(claim, str) and claim not in known.claims:
        listed = ", ".join(known.claims) or "the file has none"
        yield Problem((*loc, "claim"), f"unknown claim {claim!r}{near(claim, known.claims)} ({listed})")
    if "metric" in plain and not {"at_least", "at_most", "better", "within", "recovered"} & plain.keys():
        yield Problem(loc, "a metric needs one of: at_least, at_most, better and worse, within, recovered", is_key=True)


def _check_metric(metric: Any, loc: Loc) -> Iterator[Problem]:
    """Yield a problem unless `metric` is known or no text."""
    names = (*METRIC_NAMES, *SWEEP_METRICS)
    if isinstance(metric, str) and metric not in names:
        yield Problem(loc, f"unknown metric {metric!r}{near(metric, names)} ({', '.join(names)})")


def _check_plot(plot: Any, loc: Loc, known: Known) -> Iterator[Problem]:
    """Yield the problems of a claim's plot: its metric, axes and selector."""
    if not isinstance(plot, dict):
        return
    yield from _check_metric(plot.get("metric"), (*loc, "metric"))
    axes = known.swept if plot.get("kind") == "sweep" else known.trained
    for name in ("x", "by"):
        axis = plot.get(name)
        if isinstance(axis, str) and axis not in axes:
            yield Problem((*loc, name), f"no cell has the axis {axis!r}{near(axis, axes)} ({', '.join(axes)})")
    yield from _check_selector(plot.get("where"), (*loc, "where"), axes)


def _recorders(document: Mapping[str, Any]) -> Iterator[tuple[Loc, Any]]:
    """Yield every `train.norm_record` with its place."""
    base: Loc = ("train", "norm_record")
    found: list[tuple[Loc, Any]] = [(base, value_at(document, base))]
    for name, settings in _mapping(document, "variants").items():
        found += [(("variants", name, path), value) for path, value in _items(settings) if path == "train.norm_record"]
    yield from found


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _items(mapping: Any) -> list[tuple[str, Any]]:
    return list(mapping.items()) if isinstance(mapping, dict) else []


def _mapping(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    found = document.get(name)
    return found if isinstance(found, list) else []
