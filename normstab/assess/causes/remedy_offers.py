"""What may be offered as a remedy: one row each, from evidence in the records of a run, with its number.

A row without evidence in the run offers nothing. What became of a remedy is `remedies`' business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from normstab.assess.causes.blame import rate
from normstab.assess.causes.headroom import degree_of
from normstab.assess.causes.sites import place_of
from normstab.assess.constants import constant
from normstab.assess.runs import Run
from normstab.numerics.formats import FORMATS, AnyFormat, Format
from normstab.numerics.ledger import Histogram, Site, Tally
from normstab.numerics.precision import Precision
from normstab.numerics.rules import OUTSIDE, plain_operation

__all__ = ["REMEDIES", "Remedy"]


@dataclass(frozen=True)
class Remedy:
    """What to change, the evidence for it, the change as coordinates of the grid, and the verdict where tested.

    `has_failed`: a grid point that is changed so, and in nothing else, failed. `tried`: what became of it where it was
    tried for a part of a training, which is `has_helped` or `has_failed` where that decided it.
    """

    name: str
    advice: str
    evidence: str
    change: Mapping[str, Any]
    tested: str | None = None
    has_failed: bool = False
    tried: str | None = None
    has_helped: bool = False

    @property
    def outcome(self) -> str:
        """What is known of it: the verdict of a grid point that is changed so, what a trial gave, or nothing."""
        return f"tested here: {self.tested}" if self.tested else self.tried or "untested"

    @property
    def rank(self) -> int:
        """What comes first: what was seen to help, then what is untested or undecided, last what failed."""
        return 2 if self.has_failed else 0 if self.has_helped or self.tested == "STABLE" else 1


def wide_squares(run: Run, precision: Precision) -> Remedy | None:
    """Return: keep squares in fp32, where squares overflow or vanish."""
    site, tally = worst_site(run, "square", "overflow")
    word = "overflowed"
    if not tally.overflow:
        site, tally = worst_site(run, "square", "underflow")
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
    site, tally = worst_site(run, "dispersion.div", "overflow")
    if not tally.overflow or worst_site(run, "square", "overflow")[1].overflow:
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
        (site, tally) for site, tally in run.totals.items() if operation_of(site).endswith(".sum") and tally.overflow
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
        if operation_of(s) in ("square", "variance", "dispersion.div") and t.overflow
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
    lost = [site for site, tally in run.totals.items() if operation_of(site) == "eps.const" and tally.underflow]
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


def linf_for_sums(run: Run, precision: Precision) -> Remedy | None:
    """Return: Linf, whose scale is a maximum and no sum, where a sum of deviations overflows and the largest fits."""
    norms = {layer.norm for layer in run.record.norm_layers.values()}
    site, tally = worst_site(run, "dispersion.sum", "overflow")
    if not tally.overflow or not norms or all(norm.startswith(("linf", "range")) for norm in norms):
        return None
    largest = max((t.largest for s, t in run.totals.items() if operation_of(s) in ("centre", "abs")), default=0.0)
    if not 0 < largest <= precision.format().max:
        return None
    fits = f"the largest deviation is 2^{math.log2(largest):.1f}"
    evidence = f"{tally.overflow:,} sums of deviations overflowed at `{site}`; {fits}"
    return Remedy("Linf norm", "normalise by the largest deviation, which is no sum", evidence, {"norm": "linf"})


def wide_accumulator(run: Run, precision: Precision) -> Remedy | None:
    """Return: accumulate in fp32, where sums that are accumulated in a narrower format overflow, or lose addends."""
    narrow = precision.accumulation.format
    if narrow is None or narrow.max >= FORMATS["fp32"].max:
        return None
    found = [
        (site, tally)
        for site, tally in run.totals.items()
        if operation_of(site).endswith("sum") and (tally.overflow or tally.absorbed)
    ]
    if not found:
        return None
    site, tally = max(found, key=lambda pair: (pair[1].overflow, pair[1].absorbed or 0, pair[0]))
    lost = f"{tally.overflow:,} sums overflowed" if tally.overflow else f"{tally.absorbed:,} addends changed nothing"
    changed = replace(precision, accumulation=replace(precision.accumulation, format=FORMATS["fp32"]))
    evidence = f"{lost} at `{site}` in accumulators of {narrow}"
    return Remedy("wide accumulator", "accumulate sums in fp32", evidence, {"precision": str(changed)})


def wide_operation(run: Run, precision: Precision) -> Remedy | None:
    """Return: keep the operation that overflows most wide, in its module, or in every one where it has several."""
    layers = run.record.norm_layers
    places: dict[str, dict[str, Tally]] = {}
    for site, tally in run.totals.items():
        module, operation = place_of(site, layers)
        operation = plain_operation(operation)
        is_own = operation and operation not in (*CASTS, *OF_OTHER_ROWS)
        if tally.overflow and is_own and Site.parse(site).direction == "forward":
            places.setdefault(operation, {})[module] = tally
    if not places:
        return None
    operation, found = max(places.items(), key=lambda item: (sum(t.overflow for t in item[1].values()), item[0]))
    module = next(iter(found))
    is_one = len(found) == 1 and module not in ("", OUTSIDE)
    key = f"{module}::{operation}" if is_one else f"op:{operation}"
    largest = max(tally.largest for tally in found.values())
    held = f", the largest 2^{math.log2(largest):.1f}" if 0 < largest < math.inf else ""
    count, total = sum(t.overflow for t in found.values()), sum(t.count for t in found.values())
    modules = f"{len(found)} module{'s' if len(found) > 1 else ''}"
    evidence = f"{count:,} of {total:,} results of `{operation}` overflowed in {modules}{held}"
    where = f"in `{module}`" if is_one else "everywhere"
    wide = str(Precision.parse("fp32"))
    advice = f"keep `{operation}` in fp32 {where}"
    return Remedy("wide operation", advice, evidence, {f"numerics.rules.{key}": wide})


CASTS = ("input", "weight", "bias", "gamma", "beta", "running_mean", "running_var", "eps", "constant")
OF_OTHER_ROWS = ("square",)


def kahan_updates(run: Run, precision: Precision) -> Remedy | None:
    """Return: compensated updates, where most updates of stored parameters round to nothing."""
    updates = sum(epoch.updates for epoch in run.record.epochs)
    lost = sum(epoch.updates_zero for epoch in run.record.epochs)
    optimizer: Mapping[str, Any] = (run.record.cell.get("train") or {}).get("optimizer") or {}
    if not updates or lost / updates < constant("lost_updates_share") or optimizer.get("kahan"):
        return None
    if optimizer.get("name") not in ("sgd", "adamw"):
        return None
    evidence = f"{lost:,} of {updates:,} weight updates ({100 * lost / updates:.1f} %) changed nothing"
    change = {"train.optimizer.kahan": True}
    return Remedy("Kahan updates", "compensate the updates (Kahan)", evidence, change)


REMEDIES: dict[str, Callable[[Run, Precision], Remedy | None]] = {
    "wide squares": wide_squares,
    "wide variances": wide_variances,
    "blocked means": blocked_means,
    "L1 norm": l1_for_l2,
    "larger eps": larger_eps,
    "loss scale": loss_scale,
    "bf16": bf16,
    "stochastic rounding": stochastic_updates,
    "Kahan updates": kahan_updates,
    "wide accumulator": wide_accumulator,
    "Linf norm": linf_for_sums,
    "wide operation": wide_operation,
}
"""Every remedy by name, in the order in which they are offered."""


def operation_of(site: str) -> str:
    """Return the operation of a norm layer's site: the last two words for `dispersion.sum` and the like."""
    words = site.partition("[")[0].split(".")
    two = ".".join(words[-2:])
    return two if len(words) > 1 and words[-2] in ("mean", "dispersion", "eps") else words[-1]


def worst_site(run: Run, operation: str, counter: str) -> tuple[str, Tally]:
    """Return the site of `operation` with the most of `counter`, and its tally; an empty one where there is none."""
    found = [(site, tally) for site, tally in run.totals.items() if operation_of(site) == operation]
    return max(found, key=lambda pair: (getattr(pair[1], counter), pair[0]), default=("", Tally()))


def _least_normal(limit: AnyFormat) -> float:
    """Return the least value held with full precision."""
    return limit.min_normal if isinstance(limit, Format) else limit.min_subnormal


def _saved_by(histogram: Histogram, shift: int, limit: AnyFormat) -> float:
    """Return the share of the vanished values that a factor of 2^shift lifts above the least quantum."""
    least = math.log2(limit.min_subnormal) - 1
    lost = {e: n for e, n in histogram.binades.items() if e < least}
    return sum(n for e, n in lost.items() if e + shift >= least) / sum(lost.values()) if lost else 0.0
