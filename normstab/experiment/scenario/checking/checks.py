"""Checks of single values of a scenario: names that must be in a catalogue, dotted paths, axes and their values.

Every check tolerates values of the wrong shape, which are reported elsewhere, so that all problems of a file
are found at once. The catalogues are read without torch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from normstab.errors import NormstabError, lookup, near
from normstab.experiment.scenario.checking.problems import Problem, problems_of
from normstab.experiment.scenario.document import AXES, PATHS, SECTIONS, VARIANT
from normstab.experiment.scenario.scenario_text import Loc
from normstab.norms.catalogue import parse_norm
from normstab.norms.noise.norm_noise import NormNoise
from normstab.numerics.formats import parse_format
from normstab.numerics.precision import Precision
from normstab.numerics.rules import Rules

__all__ = ["canonical", "canonical_norm", "check_axes", "check_settings", "path_of"]

# Norms of ModelSpec that are no dispersion: the mean alone (weight-normalised networks), and no norm at all.
OTHER_NORMS = ("mean-only", "none")
# Prefixes of model names that belong to a library's catalogue, not to a module of the user's.
LIBRARIES = ("torchvision", "timm")


def path_of(axis: str) -> str:
    """Return the dotted path that an axis sets."""
    return AXES.get(axis, axis)


def canonical(path: str, value: Any) -> Any:
    """Return the value in the one spelling that coordinates use; a wrong value is returned as it is.

    Precisions and norms in full, whole floats as integers, lists and mappings as text.
    """
    if isinstance(value, str):
        return _canonical_text(path, value)
    if path == "model.norm" and isinstance(value, dict):
        return ",".join(f"{rule}={canonical(path, norm)}" for rule, norm in value.items())
    if path == "model.norm_noise" and isinstance(value, dict):
        return _noise_text(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return json.dumps(value) if isinstance(value, list | dict) else value


def canonical_norm(norm: str | dict[str, str]) -> str | dict[str, str]:
    """Return the norm, or each rule's, in its canonical spelling."""
    if isinstance(norm, dict):
        return {rule: str(canonical("model.norm", inner)) for rule, inner in norm.items()}
    return str(canonical("model.norm", norm))


@functools.lru_cache(maxsize=4096)
def _canonical_text(path: str, text: str) -> str:
    """Return the canonical spelling of a precision or a norm; other texts, and wrong ones, as they are."""
    try:
        if path == "numerics.precision":
            return str(Precision.parse(text))
        return str(parse_norm(text)) if path == "model.norm" and text not in OTHER_NORMS else text
    except NormstabError:
        return text


def _noise_text(noise: Mapping[str, Any]) -> str:
    """Return a noise in words; a wrong one as it is."""
    try:
        return str(NormNoise(**noise))
    except (NormstabError, TypeError):
        return json.dumps(noise)


def check_axes(grid: Any, loc: Loc, *, variants: Iterable[str], allow_import: bool) -> Iterator[Problem]:
    """Yield the problems of a grid at `loc`: unknown axes, wrong values, values given twice."""
    for axis, values in grid.items() if isinstance(grid, dict) else ():
        here = (*loc, axis)
        if path_of(axis) not in PATHS and axis != VARIANT:
            known = (*AXES, VARIANT, *PATHS)
            short = ", ".join((*AXES, VARIANT))
            message = f"unknown axis {axis!r}{_near_path(axis, known)} ({short}, or a path such as train.optimizer.lr)"
            yield Problem(here, message, is_key=True)
            continue
        seen: dict[str, int] = {}
        for index, value in enumerate(values if isinstance(values, list) else ()):
            yield from _axis_value(axis, value, (*here, index), tuple(variants), allow_import=allow_import)
            spelling = json.dumps(canonical(path_of(axis), value))
            if spelling in seen:
                yield Problem((*here, index), f"the same value as {axis}[{seen[spelling]}]")
            seen.setdefault(spelling, index)


def _axis_value(axis: str, value: Any, loc: Loc, variants: tuple[str, ...], *, allow_import: bool) -> Iterator[Problem]:
    """Yield the problems of one value of an axis."""
    if axis != VARIANT:
        yield from check_value(path_of(axis), value, loc, allow_import=allow_import)
    elif value not in variants:
        listed = ", ".join(variants) or "the file has none"
        yield Problem(loc, f"unknown variant {value!r}{near(str(value), variants)} ({listed})")


def check_settings(settings: Any, loc: Loc, *, allow_import: bool, also: Iterable[str] = ()) -> Iterator[Problem]:
    """Yield the problems of `{dotted path: value}` (a variant, a profile) at `loc` of the file.

    Paths under the top-level fields `also` are allowed too, and their values checked where they are applied.
    """
    for path, value in settings.items() if isinstance(settings, dict) else ():
        here = (*loc, path)
        open_path = next(
            (known for known in ("model.args", "model.norm", "numerics.rules") if path.startswith(f"{known}.")), None
        )
        if open_path is not None:
            yield from check_value(open_path, {path[len(open_path) + 1 :]: value}, here, allow_import=allow_import)
        elif path in PATHS:
            yield from check_value(path, value, here, allow_import=allow_import)
        elif path.split(".")[0] not in also:
            message = f"unknown path {path!r}{_near_path(path, PATHS)}; a path is such as train.optimizer.lr"
            yield Problem(here, message, is_key=True)


def _near_path(path: str, known: Iterable[str]) -> str:
    """Return the suggestion for a path: one with the same last word, else one spelled nearly so."""
    known = tuple(known)
    last = path.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == last]
    return f"; did you mean {same[0]!r}?" if same else near(path, known)


def check_value(path: str, value: Any, loc: Loc, *, allow_import: bool) -> Iterator[Problem]:
    """Yield the problems of one value of the dotted `path`, which stands at `loc` of the file."""
    if path == "train.norm_record":
        return
    section, _, name = path.rpartition(".")
    plain = {**_REQUIRED.get(section, {}), name: value}
    try:
        _ADAPTERS[section].validate_json(json.dumps(plain))
    except ValidationError as error:
        for problem in problems_of(error, plain):
            yield Problem((*loc, *problem.loc[1:]), problem.message, problem.is_key)
    yield from (Problem((*loc, *inner), text) for inner, text in check_names(path, value, allow_import=allow_import))


_REQUIRED = {"dataset": {"name": "synthetic"}, "model": {"name": "mlp"}, "model.norm_noise": {"kind": "uniform"}}
_ADAPTERS: Mapping[str, TypeAdapter[Any]] = {section: TypeAdapter(spec) for section, spec in SECTIONS.items()}


def check_names(path: str, value: Any, *, allow_import: bool) -> Iterator[tuple[Loc, str]]:
    """Yield what is wrong with the names in the value of `path`, with the place below it."""
    checks: dict[str, Callable[[str], object]] = {
        "model.norm": _norm,
        "model.norm_noise.like": parse_format,
        "model.name": lambda name: _model(name, allow_import=allow_import),
        "numerics.precision": Precision.parse,
        "numerics.rules": Precision.parse,
        "dataset.name": _dataset,
    }
    if path == "model.norm_noise" and isinstance(value, dict):
        inside = check_names("model.norm_noise.like", value.get("like"), allow_import=allow_import)
        yield from ((("like", *inner), text) for inner, text in inside)
    if path not in checks:
        return
    for inner, name in _texts(value):
        try:
            checks[path](name)
        except NormstabError as error:
            yield inner, str(error)
    if path in ("model.norm", "numerics.rules") and isinstance(value, dict):
        yield from _rule_faults(value)


def _rule_faults(rules: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """Yield the keys of rules that cannot be read; whether they meet a layer only the network knows."""
    for key in rules:
        try:
            Rules({key: None}, None)
        except NormstabError as error:
            yield (key,), str(error)


def _texts(value: Any) -> list[tuple[Loc, str]]:
    """Return a text, or each text of a mapping of rules, with its place below the value."""
    if isinstance(value, dict):
        return [((rule,), inner) for rule, inner in value.items() if isinstance(inner, str)]
    return [((), value)] if isinstance(value, str) else []


def _norm(text: str) -> None:
    """Raise unless `text` is a dispersion or one of OTHER_NORMS."""
    if text in OTHER_NORMS:
        return
    try:
        parse_norm(text)
    except NormstabError as error:
        raise NormstabError(f"{error}; also: {', '.join(OTHER_NORMS)}") from error


def _dataset(name: str) -> None:
    """Raise unless the data set is in the catalogue."""
    from normstab.experiment.data.datasets import EVERY_SET

    lookup(EVERY_SET, name, what="data set")


def _model(name: str, *, allow_import: bool) -> None:
    """Raise unless the model is in the catalogue, a library's, or a factory that may be imported."""
    from normstab.experiment.network.models import EVERY_MODEL

    library, colon, _ = name.partition(":")
    if name in EVERY_MODEL or (colon and library in LIBRARIES):
        return
    if not colon:
        listed = ", ".join((*EVERY_MODEL, *(f"{known}:NAME" for known in LIBRARIES)))
        raise NormstabError(f"unknown model {name!r}{near(name, EVERY_MODEL)} ({listed})")
    if not allow_import:
        raise NormstabError(f"{name!r} would import the module {library!r}; add --allow-import if you trust its code")
