"""Remedies: what would help, each from evidence in the records, with its number, and whether the grid tested it.

Advice only; nothing here changes a scenario. A remedy without evidence is not offered.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from normstab.assess.causes.blame import Blame
from normstab.assess.causes.headroom import rules_of
from normstab.assess.causes.remedy_offers import REMEDIES, Remedy
from normstab.assess.causes.sites import place_of
from normstab.assess.runs import Group, Run
from normstab.numerics.ledger import Site
from normstab.numerics.precision import Precision
from normstab.numerics.rules import DEFAULT

__all__ = ["REMEDIES", "GridTested", "Remedy", "TestedPoint", "changed_settings", "remedies_for"]


@dataclass(frozen=True)
class TestedPoint:
    """A grid point that was run: its coordinates, its verdict, whether that fails, and its resolved cell."""

    coordinates: Mapping[str, Any]
    verdict: str
    fails: bool
    cell: Mapping[str, Any]


class GridTested:
    """The grid points that were run, found by their coordinates or by their settings; of several the first."""

    def __init__(self, points: Iterable[TestedPoint] = ()) -> None:
        self._points: list[TestedPoint] = []
        self._places: dict[Hashable, int] = {}
        self._parts: dict[Hashable, Hashable] = {}
        for point in points:
            self.add(point)

    def add(self, point: TestedPoint) -> None:
        """Add a grid point behind the others; of its cell nothing is kept but its settings, shared with others."""
        for key in (self._key(point.coordinates), self._key(_settings(point.cell))):
            self._places.setdefault(key, len(self._points))
        self._points.append(replace(point, cell={}))

    def find(self, wanted: Mapping[str, Any], settings: Mapping[str, Any]) -> TestedPoint | None:
        """Return the first grid point at these coordinates, or of these settings; None where there is none."""
        places = [self._places.get(self._key(each)) for each in (wanted, settings)]
        known = [place for place in places if place is not None]
        return self._points[min(known)] if known else None

    def _key(self, plain: Mapping[str, Any]) -> Hashable:
        """Return plain data as a key; equal data have equal keys, and their parts are kept once."""
        parts = ((name, frozen(value)) for name, value in sorted(plain.items()))
        return tuple(self._parts.setdefault(part, part) for part in parts)


def frozen(value: Any) -> Hashable:
    """Return plain data as something that can be a key: equal where the data are equal."""
    if isinstance(value, Mapping):
        return tuple((name, frozen(inner)) for name, inner in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    assert isinstance(value, Hashable), value
    return value


def remedies_for(run: Run, group: Group, tested: GridTested, *, blamed: Blame | None = None) -> list[Remedy]:
    """Return what the record of `run` says would help, by `rank`; `tested` are the other grid points.

    Of equal rank, what answers the offence that is `blamed` comes first.
    """
    return sorted(_remedies(run, group, tested), key=lambda remedy: (remedy.rank, not _answers(remedy, blamed)))


def _answers(remedy: Remedy, blamed: Blame | None) -> bool:
    """Whether a remedy is about what is blamed: gradients that vanish ask for a range, not for other squares."""
    if blamed is None or blamed.counter != "underflow" or Site.parse(blamed.site).direction != "backward":
        return True
    return remedy.name in ("loss scale", "bf16")


def _remedies(run: Run, group: Group, tested: GridTested) -> Iterator[Remedy]:
    """Yield what the record says would help, in the order of REMEDIES, with what became of it."""
    parts = list(_by_rule(run))
    offered: set[str] = set()
    for offer in REMEDIES.values():
        for setting, precision, part in parts:
            remedy = offer(part, precision)
            if remedy is None or remedy.name in offered:
                continue
            offered.add(remedy.name)
            change = {setting if key == "precision" else key: value for key, value in remedy.change.items()}
            wanted = {**group.coordinates, **_in_grid(change, group)}
            changed = changed_settings(run.record.cell, change)
            found = tested.find(wanted, changed)
            if found is None:
                yield replace(remedy, change=change)
            else:
                yield replace(remedy, change=change, tested=found.verdict, has_failed=found.fails)


def _by_rule(run: Run) -> Iterator[tuple[str, Precision, Run]]:
    """Yield the setting that names a precision, that precision, and the run at the sites which it rounds.

    What a rule keeps wide, or narrow, no other precision of the network would help.
    """
    rules, layers = rules_of(run), run.record.norm_layers
    deciding = {site: rules.key_for(*place_of(site, layers)) for site in run.totals}
    written = run.record.cell.get("numerics", {}).get("rules") or {}
    for key in dict.fromkeys([DEFAULT, *deciding.values()]):
        precision = rules.by_key[key]
        if precision is None:
            continue
        epochs = tuple(
            replace(epoch, sites={site: tally for site, tally in epoch.sites.items() if deciding[site] == key})
            for epoch in run.record.epochs
        )
        is_part = set(deciding.values()) != {key}
        part = Run(replace(run.record, epochs=epochs), run.steps) if is_part else run
        yield f"numerics.rules.{key}" if key in written else "precision", precision, part


def _in_grid(change: Mapping[str, Any], group: Group) -> dict[str, Any]:
    """Return the change in the axis names of the group's grid: `precision` may be `numerics.precision` there."""
    sections = ("numerics", "model", "train", "dataset")
    long = {key: next((f"{s}.{key}" for s in sections if f"{s}.{key}" in group.coordinates), key) for key in change}
    return {key if key in group.coordinates else long[key]: value for key, value in change.items()}


# The short names of changes, as the sections of a resolved cell have them.
PATHS = {"precision": ("numerics", "precision"), "norm": ("model", "norm")}


def _settings(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections that decide what a cell trains, but for its seed."""
    sections = {name: dict(cell.get(name) or {}) for name in ("dataset", "model", "train", "numerics")}
    sections["train"].pop("seed", None)
    return sections


def changed_settings(cell: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a cell with a remedy's change: what a variant of the scenario may have tried."""
    sections = _settings(cell)
    for key, value in change.items():
        section, name = PATHS.get(key) or tuple(key.split(".", 1))
        if name.startswith("rules."):
            sections[section]["rules"] = {**(sections[section].get("rules") or {}), name.removeprefix("rules."): value}
        else:
            *outer, last = name.split(".")
            place = sections[section]
            for key_of_section in outer:  # copied on the way: the cell's own stay as they are
                place[key_of_section] = dict(place.get(key_of_section) or {})
                place = place[key_of_section]
            place[last] = value
    return sections
