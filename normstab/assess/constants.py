"""The constants of every verdict, in one table that each report prints.

Nothing here computes. A scenario can set its own tolerance; the rest is the same for every report.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CONSTANTS", "Constant", "constant"]


@dataclass(frozen=True)
class Constant:
    """A number that a verdict rests on, what it means, and where it comes from."""

    value: float
    meaning: str
    source: str


# Source of the rules: normstab's contract ("Verdicts"); of the smoothing and of the shares below it: stated here.
CONSTANTS: dict[str, Constant] = {
    "tolerance": Constant(0.01, "accuracy that a cell may lose, unless the scenario sets another", "rule"),
    "verdict_confidence": Constant(0.95, "confidence of the paired gap's interval for STABLE and DEGRADED", "rule"),
    "within_confidence": Constant(0.90, "confidence of the interval for an expectation `within` or `by`", "rule"),
    "chance_errors": Constant(3, "standard errors around chance within which an accuracy counts as chance", "rule"),
    "band_deviations": Constant(4, "standard deviations of the reference's seeds in the loss band", "rule"),
    "band_share": Constant(
        0.5, "share of the reference's progress (start minus end) in the band, where that is wider", "rule"
    ),
    "end_share": Constant(0.1, "share of the steps, at the end, that must lie above the band for DIVERGED", "rule"),
    "divergence_steps": Constant(20, "consecutive steps above the band that make a first divergence", "rule"),
    "assumed_deviation": Constant(
        0.01, "seed noise of an accuracy, assumed while the reference has one seed", "choice"
    ),
    "smoothing_steps": Constant(20, "steps of the trailing mean of a loss (at most a quarter of the run)", "choice"),
    "spike_deviations": Constant(
        5, "standard deviations of the losses before, above their mean, from which a loss is high", "choice"
    ),
    "spike_share": Constant(0.1, "share of the mean of the losses before that a high loss exceeds it by", "choice"),
    "spike_interval": Constant(10, "steps that are looked at for a spike's beginning, and for its end", "choice"),
    "spike_count": Constant(2, "high losses within that interval that begin a spike", "choice"),
    "headroom_share": Constant(0.9999, "share of the results that the smallest exponent range covers", "rule"),
    "flushed_share": Constant(1e-3, "share of results flushed to zero from which a remedy is offered", "choice"),
    "vanished_share": Constant(
        0.5,
        "share of a site's results flushed to zero from which it is the cause of an offence that came later",
        "choice",
    ),
    "lost_updates_share": Constant(0.5, "share of updates rounded to nothing from which a remedy is offered", "choice"),
}
"""Every constant of a judgement by name; `rule` constants are normstab's contract, `choice` ones are made here."""


def constant(name: str) -> float:
    """Return the value of the constant `name`."""
    return CONSTANTS[name].value
