"""Dotted paths into a scenario: what `--set a.b=c`, profiles, variants and grid axes change, and where that came from.

`grid.train.epochs`, `model.norm.layer1.bn1` and `numerics.rules.re:.*` are paths too: what follows an open
mapping is one key, dots and all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from normstab.errors import ScenarioError, near
from normstab.experiment.scenario.document import AXES, VARIANT
from normstab.experiment.scenario.scenario_text import Loc, Mark, ScenarioText, parse_text

__all__ = ["apply_profile", "apply_set", "loc_of", "put", "split_profiles", "value_at"]

OPEN = ("sweep.grid", "grid", "model.args", "model.norm", "numerics.rules", "profiles")
# Of one profile: the marks of the whole file are looked through for each.
MOST_SETTINGS = 200


def loc_of(path: str) -> Loc:
    """Return the document's location that a dotted path names."""
    for prefix in OPEN:
        if path.startswith(f"{prefix}."):
            return (*prefix.split("."), path[len(prefix) + 1 :])
    return tuple(path.split("."))


def value_at(document: Any, loc: Loc) -> Any:
    """Return the value at `loc`, or None where there is none."""
    for part in loc:
        if isinstance(document, dict):
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int) and part < len(document):
            document = document[part]
        else:
            return None
    return document


def put(document: dict[str, Any], loc: Loc, value: Any) -> bool:
    """Set the value at `loc`, making the mappings on the way; return False where a value stands in the way."""
    inner: Any = document
    for part in loc[:-1]:
        if inner.get(part) is None:
            inner[part] = {}
        inner = inner[part]
        if not isinstance(inner, dict):
            return False
    inner[loc[-1]] = value
    return True


def split_profiles(
    overrides: Sequence[str], profile: str | None
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the profiles to apply, in order, and the other overrides as (path, value text) pairs."""
    profiles = [profile] if profile else []
    others = []
    for override in overrides:
        path, equals, value = (part.strip() for part in override.partition("="))
        if not equals or not path:
            raise ScenarioError(f"--set {override!r}: expected PATH=VALUE, such as --set train.epochs=1")
        if path == "profile":
            profiles.append(value)
        else:
            others.append((path, value))
    return tuple(dict.fromkeys(profiles)), tuple(others)


def apply_profile(text: ScenarioText, name: str) -> None:
    """Apply the profile called `name` to the document; its values keep their places in the file."""
    profiles = value_at(text.document, ("profiles",))
    profiles = profiles if isinstance(profiles, dict) else {}
    if name not in profiles:
        listed = ", ".join(profiles) or "the file has none"
        raise ScenarioError(f"{text.name}: unknown profile {name!r}{near(name, profiles)} ({listed})")
    settings = profiles[name]
    if isinstance(settings, dict) and len(settings) > MOST_SETTINGS:
        raise ScenarioError(f"{text.name}: the profile {name!r} has more than {MOST_SETTINGS} settings")
    for path, value in settings.items() if isinstance(settings, dict) else ():
        source = ("profiles", name, path)
        marks = {loc[len(source) :]: mark for loc, mark in text.marks.items() if loc[: len(source)] == source}
        _apply(text, str(path), value, marks, text.mark(source, at_key=True))


def apply_set(text: ScenarioText, path: str, value_text: str) -> None:
    """Apply `--set path=value`, the value read as YAML; the names of the usual axes set the axis."""
    place = f"--set {path}={value_text}"
    if not value_text:
        raise ScenarioError(f"{place}: there is no value after '='; null clears a field")
    parsed = parse_text(value_text, place).document
    mark = Mark(place)
    if path in (*AXES, VARIANT):
        is_axis = path in (value_at(text.document, ("grid",)) or {})
        path = f"grid.{path}" if is_axis else AXES.get(path, f"grid.{path}")
    _apply(text, path, parsed, {(): mark}, mark)


def _apply(text: ScenarioText, path: str, value: Any, marks: Mapping[Loc, Mark], key: Mark) -> None:
    """Set `path` to `value`, with the marks of where the value came from."""
    if path.split(".")[0] in ("version", "name", "profiles"):
        raise ScenarioError(f"{key.place}: {path!r} cannot be changed by a profile or --set{key.shown()}")
    axis = next((name for name, full in AXES.items() if full == path), path)
    grid = value_at(text.document, ("grid",))
    if isinstance(grid, dict) and axis in grid:
        remedy = f"write grid.{axis}: [...] to change it"
        raise ScenarioError(f"{key.place}: {path!r} is set by the grid's axis {axis!r}; {remedy}{key.shown()}")
    loc = loc_of(path)
    if loc[0] == "grid" and len(loc) == 2 and not isinstance(value, list):
        value = [value]
    if not put(text.document, loc, value):
        raise ScenarioError(f"{key.place}: {path!r}: a part of this path is not a mapping{key.shown()}")
    for table in (text.marks, text.keys):
        for stale in [found for found in table if found[: len(loc)] == loc]:
            del table[stale]
    text.marks.update({(*loc, *inner): mark for inner, mark in marks.items()})
    text.keys[loc] = key
