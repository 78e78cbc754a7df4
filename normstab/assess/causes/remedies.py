"""Remedies: what would help, each from evidence in the records, with its number, and whether the grid tested it.

Advice only; nothing here changes a scenario. A remedy without evidence is not offered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from normstab.assess.causes.blame import Blame, rate
from normstab.assess.causes.headroom import degree_of, rules_of
from normstab.assess.causes.sites import place_of
from normstab.assess.constants import constant
from normstab.assess.runs import Group, Run
from normstab.numerics.formats import FORMATS, AnyFormat, Format
from normstab.numerics.ledger import Histogram, Site, Tally
from normstab.numerics.precision import Precision
from normstab.numerics.rules import DEFAULT

__all__ = ["REMEDIES", "Remedy", "Tested", "TestedPoint", "remedies_for"]


@dataclass(frozen=True)
class TestedPoint:
    """A grid point that was run: its coordinates, its verdict, whether that fails, and its resolved cell."""

    coordinates: Mapping[str, Any]
    verdict: str
    fails: bool
    cell: Mapping[str, Any]


Tested = Sequence[TestedPoint]
"""The grid points that were run."""


@dataclass(frozen=True)
class Remedy:
    """What to change, the evidence for it, the change as coordinates of the grid, and the verdict where tested.

    `has_failed`: a grid point that is changed so, and in nothing else, failed.
    """

    name: str
    advice: str
    evidence: str
    change: Mapping[str, Any]
    tested: str | None = None
    has_failed: bool = False

    @property
    def rank(self) -> int:
        """What comes first: what was seen to help, then what is untested or undecided, last what failed."""
        return 2 if self.has_failed else 0 if self.tested == "STABLE" else 1


def wide_squares(run: Run, precision: Precision) -> Remedy | None:
    """Return: keep squares in fp32, where squares overflow or vanish."""
    site, tally = _worst(run, "square", "overflow")
    word = "overflowed"
    if not tally.overflow:
        site, tally = _worst(run, "square", "underflow")
        word = "vanished"
        if rate(tally, "underflow") < constant("flushed_share"):
            return None
    harmed = tally.overflow or tally.underflow
    held = f"the largest is 2^{math.log2(tally.largest):.1f}, which fp32 holds" if tally.largest else "fp32 holds them"
    evidence = f"{harmed:,} of {tally.count:,} squares {word} at `{site}`; {held}"
    changed = replace(precision, square=FORMATS["fp32"], variance=precision.variance)
    return Remedy("wide squares", "keep the squares in fp32", evidence, {"precision": str(changed)})


def wide_variances(run: Run, precision: Precision) -> Remedy | None:
    """Return: keep variances in fp32, where squares fit and their mean overflows on its way to the compute format."""
    site, tally = _worst(run, "dispersion.div", "overflow")
    if not tally.overflow or _worst(run, "square", "overflow")[1].overflow:
        return None
    if not any(layer.norm == "l2" for layer in run.record.norm_layers.values()):
        return None
    largest = f"the largest 2^{math.log2(tally.largest):.1f}"
    evidence = f"{tally.overflow:,} of {tally.count:,} variances overflowed at `{site}`, {largest}"
    changed = replace(precision, square=precision.square or FORMATS["fp32"], variance=FORMATS["fp32"])
    return Remedy("wide variances", "keep the variances in fp32", evidence, {"precision": str(changed)})


def blocked_means(run: Run, precision: Precision) -> Remedy | None:
    """Return: form means in blocks, divided block by block, where a sum overflows."""
    found = [
        (site, tally) for site, tally in run.totals.items() if _operation(site).endswith(".sum") and tally.overflow
    ]
    if not found or precision.mean_block:
        return None
    site, tally = max(found, key=lambda pair: (pair[1].overflow, pair[0]))
    evidence = f"{tally.overflow:,} sums overflowed at `{site}`, the largest 2^{math.log2(tally.largest):.1f}"
    changed = replace(precision, mean="blockwise64")
    return Remedy(
        "blocked means", "form means in blocks of 64, each divided at once", evidence, {"precision": str(changed)}
    )


def l1_for_l2(run: Run, precision: Precision) -> Remedy | None:
    """Return: L1 in place of L2, where a square or variance overflows but the deviation itself fits."""
    norms = {layer.norm for layer in run.record.norm_layers.values()}
    found = [
        (s, t)
        for s, t in run.totals.items()
        if _operation(s) in ("square", "variance", "dispersion.div") and t.overflow
    ]
    if not found or not norms or max(map(degree_of, norms)) < 2:
        return None
    site, tally = max(found, key=lambda pair: (pair[1].largest, pair[0]))
    root, limit = math.sqrt(tally.largest), precision.format().max
    if not 0 < root <= limit:
        return None
    evidence = (
        f"the largest value at `{site}` is 2^{math.log2(tally.largest):.1f}; its root {root:.4g} fits below {limit:g}"
    )
    return Remedy("L1 norm", "normalise by the mean absolute deviation", evidence, {"norm": "l1"})


def larger_eps(run: Run, precision: Precision) -> Remedy | None:
    """Return: raise eps to the least normal value, where the cast of eps vanished."""
    lost = [site for site, tally in run.totals.items() if _operation(site) == "eps.const" and tally.underflow]
    if not lost:
        return None
    layer = Site.parse(lost[0]).path.removesuffix(".eps.const")
    eps = run.record.norm_layers[layer].eps if layer in run.record.norm_layers else None
    least = _least_normal(precision.format())
    value = "eps" if eps is None else f"eps = {eps:g}"
    evidence = f"{value} is zero in {precision.format()} in {len(lost)} layers; the least normal value is {least:.3g}"
    return Remedy("larger eps", f"raise eps to {least:.3g} or more", evidence, {"model.eps": least})


def loss_scale(run: Run, precision: Precision) -> Remedy | None:
    """Return: scale the loss by the largest 2^k that leaves the gradients a binade of room, where they vanish."""
    backward = [tally for site, tally in run.totals.items() if Site.parse(site).direction == "backward"]
    count, flushed = sum(t.count for t in backward), sum(t.underflow for t in backward)
    if not count or flushed / count < constant("flushed_share") or any(t.overflow for t in backward):
        return None
    limit, largest = precision.format(), max(t.largest for t in backward)
    if not largest:  # all below float32's least number
        return None
    room = math.floor(math.log2(limit.max) - math.log2(largest)) - 1
    if room < 1:
        return None
    histogram = sum((t.histogram for t in backward if t.histogram), Histogram())
    saved = _saved_by(histogram, room, limit) if histogram.finite_nonzero else None
    effect = "" if saved is None else f"; of those with a histogram it saves {100 * saved:.1f} %"
    evidence = (
        f"{flushed:,} of {count:,} gradient results vanish ({100 * flushed / count:.2g} %), "
        f"and the largest leaves {room} binades{effect}"
    )
    return Remedy("loss scale", f"scale the loss by 2^{room}", evidence, {"train.loss_scale": float(2**room)})


def bf16(run: Run, precision: Precision) -> Remedy | None:
    """Return: bf16 in place of a format of smaller range, where range is what is missing."""
    total, limit, wide = run.total, precision.format(), FORMATS["bf16"]
    lost = total.overflow + total.underflow
    if not isinstance(limit, Format) or limit.emax >= wide.emax or not total.count:
        return None
    if not total.overflow and lost / total.count < constant("flushed_share"):
        return None
    largest = max(t.largest for t in run.totals.values())
    if not 0 < largest <= wide.max:
        return None
    evidence = (
        f"{total.overflow:,} results overflowed and {total.underflow:,} vanished in {limit}; "
        f"the largest, 2^{math.log2(largest):.1f}, lies inside bf16's range"
    )
    changed = replace(precision, compute=wide)
    return Remedy("bf16", "use bf16, which has fp32's range", evidence, {"precision": str(changed)})


def stochastic_updates(run: Run, precision: Precision) -> Remedy | None:
    """Return: stochastic rounding, where most updates round to nothing."""
    updates = sum(epoch.updates for epoch in run.record.epochs)
    lost = sum(epoch.updates_zero for epoch in run.record.epochs)
    if not updates or lost / updates < constant("lost_updates_share") or precision.rounding.is_stochastic:
        return None
    changed = Precision.parse(str(precision).replace(f"/{precision.rounding}/", "/stochastic/", 1))
    evidence = f"{lost:,} of {updates:,} weight updates ({100 * lost / updates:.1f} %) changed nothing"
    return Remedy("stochastic rounding", "round the updates stochastically", evidence, {"precision": str(changed)})


REMEDIES: dict[str, Callable[[Run, Precision], Remedy | None]] = {
    "wide squares": wide_squares,
    "wide variances": wide_variances,
    "blocked means": blocked_means,
    "L1 norm": l1_for_l2,
    "larger eps": larger_eps,
    "loss scale": loss_scale,
    "bf16": bf16,
    "stochastic rounding": stochastic_updates,
}
"""Every remedy by name, in the order in which they are offered."""


def remedies_for(run: Run, group: Group, tested: Tested, *, blamed: Blame | None = None) -> list[Remedy]:
    """Return what the record of `run` says would help, by `rank`; `tested` are the other grid points.

    Of equal rank, what answers the offence that is `blamed` comes first.
    """
    return sorted(_remedies(run, group, tested), key=lambda remedy: (remedy.rank, not _answers(remedy, blamed)))


def _answers(remedy: Remedy, blamed: Blame | None) -> bool:
    """Whether a remedy is about what is blamed: gradients that vanish ask for a range, not for other squares."""
    if blamed is None or blamed.counter != "underflow" or Site.parse(blamed.site).direction != "backward":
        return True
    return remedy.name in ("loss scale", "bf16")


def _remedies(run: Run, group: Group, tested: Tested) -> Iterator[Remedy]:
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
            changed = _changed(run.record.cell, change)
            found = next((p for p in tested if _same(p.coordinates, wanted) or _settings(p.cell) == changed), None)
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
        part = replace(run, record=replace(run.record, epochs=epochs)) if set(deciding.values()) != {key} else run
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


def _changed(cell: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a cell with a remedy's change: what a variant of the scenario may have tried."""
    sections = _settings(cell)
    for key, value in change.items():
        section, name = PATHS.get(key) or tuple(key.split(".", 1))
        if name.startswith("rules."):
            sections[section]["rules"] = {**(sections[section].get("rules") or {}), name.removeprefix("rules."): value}
        else:
            sections[section][name] = value
    return sections


def _same(point: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a grid point is the wanted one; an axis the grid lacks cannot have been tested."""
    return dict(point) == dict(wanted)


def _operation(site: str) -> str:
    """Return the operation of a norm layer's site: the last two words for `dispersion.sum` and the like."""
    words = site.partition("[")[0].split(".")
    two = ".".join(words[-2:])
    return two if len(words) > 1 and words[-2] in ("mean", "dispersion", "eps") else words[-1]


def _worst(run: Run, operation: str, counter: str) -> tuple[str, Tally]:
    """Return the site of `operation` with the most of `counter`, and its tally; an empty one where there is none."""
    found = [(site, tally) for site, tally in run.totals.items() if _operation(site) == operation]
    return max(found, key=lambda pair: (getattr(pair[1], counter), pair[0]), default=("", Tally()))


def _least_normal(limit: AnyFormat) -> float:
    """Return the least value held with full precision."""
    return limit.min_normal if isinstance(limit, Format) else limit.min_subnormal


def _saved_by(histogram: Histogram, shift: int, limit: AnyFormat) -> float:
    """Return the share of the vanished values that a factor of 2^shift lifts above the least quantum."""
    least = math.log2(limit.min_subnormal) - 1
    lost = {e: n for e, n in histogram.binades.items() if e < least}
    return sum(n for e, n in lost.items() if e + shift >= least) / sum(lost.values()) if lost else 0.0
