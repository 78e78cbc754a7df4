"""Headroom of the norm layers: how many binades their input could still grow or shrink before a format gives way.

From largest and smallest magnitudes in the ledger; no training, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from normstab.assess.runs import Run
from normstab.errors import NormstabError
from normstab.norms.catalogue import parse_norm
from normstab.numerics.formats import AnyFormat, Format
from normstab.numerics.precision import Precision
from normstab.numerics.rules import Rules, plain_operation

__all__ = ["Headroom", "degree_of", "headroom", "precision_at", "rules_of", "site_format"]

# Forward sites whose result grows as a power of the input: the power is the p of the dispersion.
POWERED = ("square", "power", "dispersion.sum", "dispersion.div", "variance")
# Sites of one value per channel: a single small element does no harm, a small scale does.
LEAST = ("dispersion.sum", "dispersion.div", "variance", "sqrt", "root")


@dataclass(frozen=True)
class Headroom:
    """Of one norm layer: binades of input scale left upward and downward, and the site that limits each.

    Negative: it has been exceeded. `low` and `high` are the scales s seen over the run.
    """

    layer: str
    norm: str
    low: float | None
    high: float | None
    up: float | None
    up_site: str | None
    down: float | None
    down_site: str | None
    collapsed_channels: int
    channels: int


def headroom(run: Run) -> list[Headroom]:
    """Return the headroom of every norm layer of `run`, in the order of the network."""
    return [_layer_headroom(run, layer) for layer in run.record.norm_layers]


def _layer_headroom(run: Run, layer: str) -> Headroom:
    """Return the headroom of one layer; the binades are None where nothing was counted or nothing is rounded."""
    found = run.record.norm_layers[layer]
    ups: list[tuple[float, str]] = []
    downs: list[tuple[float, str]] = []
    for operation, tally in run.layer_sites[layer].items():
        precision = precision_at(run, layer, operation)
        limit = None if precision is None else site_format(precision, operation)
        degree = degree_of(found.norm) if operation.removesuffix(".load") in POWERED else 1
        if limit is None or tally.largest <= 0 or operation.endswith(".const"):
            continue
        site = f"{layer}.{operation}[forward]"
        ups.append((_binades(limit.max, tally.largest) / degree, site))
        if operation in LEAST:
            downs.append((_binades(tally.smallest, _least_normal(limit)) / degree, site))
    up, up_site = min(ups, default=(None, None))
    down, down_site = min(downs, default=(None, None))
    return Headroom(
        layer, found.norm, found.scale_low, found.scale_high, up, up_site, down, down_site,
        found.collapsed_channels, found.channels,
    )  # fmt: skip


def _binades(above: float, below: float) -> float:
    """Return log2(above / below), with the infinities where one is zero or infinite."""
    if above <= 0 or math.isinf(below):
        return -math.inf
    return math.inf if below <= 0 or math.isinf(above) else math.log2(above) - math.log2(below)


def _least_normal(limit: AnyFormat) -> float:
    """Return the least value held with full precision; the quantum for fixed point."""
    return limit.min_normal if isinstance(limit, Format) else limit.min_subnormal


def degree_of(norm: str) -> float:
    """Return the power of the input that the norm of this name sums; 1 where a record names no norm of ours."""
    try:
        return parse_norm(norm).degree
    except NormstabError:
        return 1.0


def precision_at(run: Run, module: str, operation: str | None = None) -> Precision | None:
    """Return the Precision that rounds `module`, or an operation in it, as the run did; None where none does."""
    return rules_of(run).of(module, operation)


def rules_of(run: Run) -> Rules[Precision | None]:
    """Return the rules of the run's cell, by the record; None stands for what is not rounded."""
    numerics: Mapping[str, object] = run.record.cell.get("numerics", {})
    text = numerics.get("precision", run.coordinates.get("precision", "native"))
    rules = numerics.get("rules") or {}
    assert isinstance(rules, Mapping)
    return _rules(str(text), tuple((key, str(rule)) for key, rule in rules.items()))


@cache
def _rules(text: str, rules: tuple[tuple[str, str], ...]) -> Rules[Precision | None]:
    """Return the rules, made once for the many sites of a report."""
    return Rules({key: _parsed(rule) for key, rule in rules}, _parsed(text))


def _parsed(text: str) -> Precision | None:
    """Return the Precision that `text` names; None for `native`, and for what is none."""
    try:
        precision = Precision.parse(text)
    except NormstabError:
        return None
    return None if precision.is_native else precision


def site_format(precision: Precision, operation: str) -> AnyFormat | None:
    """Return the format in which the forward operation of a norm layer is rounded; None where it is wide.

    `operation` is the site without the layer's name: `square`, `dispersion.sum`, `mean.sum.load` ...
    """
    name = plain_operation(operation)
    if name in ("mean.sum", "dispersion.sum"):
        return precision.accumulation.format
    if name in ("running_mean", "running_var"):
        return None
    roles = {"square": "square", "power": "square", "variance": "variance", "dispersion.div": "variance"}
    return precision.format(roles.get(name, "reciprocal" if name == "reciprocal" else None))
