"""What could be kept wide in a cell, the likeliest cure first: its modules, or its classes of operations.

Ranked by what the records of the failing cell counted; nothing is run here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from normstab.assess.runs import Run
from normstab.numerics.ledger import Site, Tally
from normstab.numerics.precision import Precision
from normstab.numerics.rules import plain_operation
from normstab.simulation.around.operation_rules import NORM_SITES
from normstab.simulation.aten.operation_table import EXACT, HANDLERS

__all__ = ["CLASSES", "Candidate", "class_candidates", "module_candidates", "operation_candidates"]

SQUARES = ("square", "power")
VARIANCES = ("variance", "dispersion.div")
OF_TORCH = frozenset(plain_operation(name) for name in (*HANDLERS, *EXACT))


@dataclass(frozen=True)
class Candidate:
    """A module or class of operations: its name, what happened there in words, and how many results it rounds."""

    name: str
    evidence: str
    results: int


def _is_in_class(*operations: str) -> Callable[[Site], bool]:
    """Return whether a forward site's path ends with one of `operations`."""
    endings = tuple(f".{operation}" for operation in operations)
    return lambda site: site.direction == "forward" and f".{site.path}".endswith(endings)


CLASSES: Mapping[str, Callable[[Site], bool]] = {
    "square": _is_in_class(*SQUARES),
    "variance": _is_in_class(*VARIANCES),
    "reciprocal": _is_in_class("reciprocal"),
    "accumulator": _is_in_class("sum", "sum.load"),
    "gradient": lambda site: site.direction == "backward",
    "parameter": lambda site: False,
    "optimizer": lambda site: site.direction == "optimizer",
}
"""The classes of operations that a Precision can keep wide, each with the sites that belong to it.

Each is a key of a precision string, but `accumulator`, which is its third part. Stored parameters have no site.
"""


def module_candidates(run: Run, modules: Iterable[str]) -> list[Candidate]:
    """Return the modules whose own operations rounded something; `modules` are the names in the network.

    What runs in the root module, or outside every module, cannot be named by a rule and is no candidate.
    """
    names = {name for name in modules if name}

    def module_of(site: Site) -> str | None:
        name = site.path
        while name and name not in names:
            name = name.rpartition(".")[0]
        return name or None

    return _ranked(run, module_of)


def operation_candidates(run: Run, modules: Iterable[str], *, in_one_module: bool) -> list[Candidate]:
    """Return the operations that rounded something, as keys of rules: `op:square`, or `bn1::square` `in_one_module`.

    An operation of torch is one whole, also where it has several sites (`mean.sum`, `mean.div`); a norm's forward sites
    each are one. What runs in the root, or outside every module, has no key of a module. Casts of inputs and parameters
    are no operations.
    """
    names, layers = {name for name in modules if name}, run.record.norm_layers

    def key_of(site: Site) -> str | None:
        module = site.path
        while module and module not in names:
            module = module.rpartition(".")[0]
        path = site.path.removeprefix(f"{module}.") if module else site.path.removeprefix("(outside).")
        operation = _operation(path, is_in_norm=module in layers)
        if operation in NORM_SITES and site.direction != "forward":
            return None
        if operation is None or (in_one_module and not module):
            return None
        return f"{module}::{operation}" if in_one_module else f"op:{operation}"

    return _ranked(run, key_of)


def _operation(path: str, *, is_in_norm: bool) -> str | None:
    """Return the operation that a site below its module belongs to; None for a cast of an input or a parameter."""
    whole, first = plain_operation(path), plain_operation(path.partition(".")[0])
    if whole in NORM_SITES and (is_in_norm or first not in OF_TORCH):
        return whole
    return first if first in OF_TORCH and not is_in_norm else None


def class_candidates(run: Run, precision: Precision, wide: Precision) -> list[Candidate]:
    """Return the classes of operations that rounded something in a narrower format than `wide`.

    Stored parameters and optimizer states count where the precision gives them a format of their own.
    """

    def class_of(site: Site) -> str | None:
        return next((name for name, holds in CLASSES.items() if holds(site)), None)

    found = {candidate.name: candidate for candidate in _ranked(run, class_of)}
    for name in ("parameter", "optimizer"):
        if getattr(precision, name) is None:
            found.pop(name, None)
        else:
            found.setdefault(name, Candidate(name, "stored in a format of its own", 0))
    return [candidate for candidate in found.values() if not _is_wide(candidate.name, precision, wide)]


def _is_wide(name: str, precision: Precision, wide: Precision) -> bool:
    """Return whether the class is in the wide format already; an exact or native sum has nothing to gain."""
    if name == "accumulator":
        return precision.accumulation.format in (None, wide.compute)
    return precision.format(name) == wide.compute


def _ranked(run: Run, name_of: Callable[[Site], str | None]) -> list[Candidate]:
    """Return the names that `name_of` gives the sites, those that broke first before those that passed it on."""
    totals: dict[str, Tally] = {}
    firsts: dict[str, float] = {}
    for text, tally in run.totals.items():
        name = name_of(Site.parse(text))
        if name is None:
            continue
        totals[name] = totals.get(name, Tally()) + tally
        steps = run.record.first_steps.get(text, {})
        born = [steps[counter] for counter in PRODUCERS if counter in steps]
        firsts[name] = min([firsts.get(name, math.inf), *born])
    order = {name: place for place, name in enumerate(totals)}
    ranked = sorted(totals, key=lambda n: (firsts[n], -_share(totals[n], "overflow"), -_lost(totals[n]), order[n]))
    return [Candidate(name, _evidence(totals[name], firsts[name]), totals[name].count) for name in ranked]


# What makes an inf or a NaN, as told from what passes it on; a later first step means a propagator.
PRODUCERS = ("overflow", "divide_by_zero", "nan_produced")


def _share(tally: Tally, counter: str) -> float:
    """Return the share of the results that `counter` counted."""
    return (getattr(tally, counter) or 0) / tally.count if tally.count else 0.0


def _lost(tally: Tally) -> float:
    """Return the share of the results that vanished."""
    return _share(tally, "underflow")


def _evidence(tally: Tally, first: float) -> str:
    """Return what happened there in words."""
    when = "" if math.isinf(first) else f"first in step {first:.0f}"
    counted = [("overflowed", tally.overflow), ("NaN produced", tally.nan_produced), ("vanished", tally.underflow)]
    shown = [f"{count:,} of {tally.count:,} {word}" for word, count in counted if count]
    return ", ".join([*shown, *([when] if when else [])]) or "nothing was lost there"
