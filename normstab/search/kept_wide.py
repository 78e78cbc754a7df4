"""A cell with some of its parts kept wide: the rules that do it. Plain data in, plain data out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from normstab.assess.runs import SEED_AXES
from normstab.experiment.scenario.spec import Cell, NumericsSpec
from normstab.numerics.precision import Accumulation, Precision

__all__ = ["class_precision", "module_rules", "with_kept_wide"]


def module_rules(members: Sequence[str], modules: Sequence[str], *, narrow: str, wide: str) -> dict[str, str]:
    """Return the rules by module name under which exactly the own operations of `members` are wide.

    A rule holds for the modules inside too: those of `modules` that are no members get a rule back to `narrow`.
    """
    rules = dict.fromkeys(members, wide)
    for name in modules:
        around = _nearest(name, rules)
        if around is not None and rules[around] == wide and name not in members:
            rules[name] = narrow
    return rules


def _nearest(name: str, rules: Mapping[str, str]) -> str | None:
    """Return the nearest module around `name`, itself included, that has a rule."""
    while name and name not in rules:
        name = name.rpartition(".")[0]
    return name or None


def class_precision(members: Sequence[str], precision: Precision, wide: Precision) -> Precision:
    """Return `precision` with the classes of operations `members` in the wide format."""
    chosen = {name: wide.compute for name in members if name != "accumulator"}
    if "accumulator" in members:
        kind = replace(precision.accumulation, format=wide.compute)
        assert isinstance(kind, Accumulation)
        return replace(precision, accumulation=kind, **chosen)  # type: ignore[arg-type]
    return replace(precision, **chosen)  # type: ignore[arg-type]


def with_kept_wide(cell: Cell, rules: Mapping[str, str], members: Sequence[str], *, seed: int) -> Cell:
    """Return `cell` with `rules` on top of its own, and with `seed`; the rule `_default` is its precision.

    The coordinate `kept_wide` tells the cells of a search apart.
    """
    others = {name: rule for name, rule in rules.items() if name != "_default"}
    numerics: NumericsSpec = replace(
        cell.numerics,
        precision=str(Precision.parse(rules.get("_default", cell.numerics.precision))),
        rules={**cell.numerics.rules, **{name: str(Precision.parse(rule)) for name, rule in others.items()}},
    )
    seeds = {axis: seed for axis in SEED_AXES if axis in cell.coordinates}
    coordinates = {**cell.coordinates, **seeds, "kept_wide": " ".join(members) or "nothing"}
    return replace(cell, numerics=numerics, train=replace(cell.train, seed=seed), coordinates=coordinates)
