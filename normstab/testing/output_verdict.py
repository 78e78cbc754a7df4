"""What an error in a tensor means: its share of the tensor's spread, and the verdict that follows without training.

One rule for `check` and `assert_stable`. It is told the bound that rounding alone allows; it derives none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normstab.experiment.scenario.verdict_table import Verdict
from normstab.numerics.formats import AnyFormat
from normstab.simulation.run import Run
from normstab.simulation.unsimulated import LARGEST_SHARE

__all__ = [
    "FAILING",
    "SEVERITY",
    "USELESS",
    "SpreadError",
    "spread_error",
    "unless_unsimulated",
    "verdict_without_training",
]

SEVERITY = tuple(verdict.name for verdict in Verdict if verdict is not Verdict.INCONCLUSIVE)
"""Verdicts, the mildest first; INCONCLUSIVE stands outside the order."""
FAILING = tuple(verdict.name for verdict in Verdict if verdict.fails)
"""The verdicts that fail a check or an assertion."""
USELESS = 0.1
"""An error of this share of the spread leaves a useless output, and a bound above it says nothing. Source: contract."""
CONSTANT = 1e-9  # values this close together, relative to the largest, are one value with float64's noise


@dataclass(frozen=True)
class SpreadError:
    """How far tensor `name` lies from the wide run's, as a share of that one's spread.

    `share` is the larger of the largest error by half the range, and the root mean square error by the standard
    deviation; `allowed` is what rounding alone may leave, by half the range, at most 1. A dead tensor is constant,
    or zero, where the wide one is not.
    """

    name: str
    share: float
    allowed: float
    is_dead: bool

    @property
    def is_useless(self) -> bool:
        """Whether so large an error leaves nothing to use, whatever a bound allows."""
        return self.is_dead or self.share > USELESS


def spread_error(name: str, found: Tensor, expected: Tensor, allowed: float) -> SpreadError:
    """Return how far `found` lies from `expected`; `allowed` is the largest absolute error of rounding alone.

    A constant or single expected value has no spread and is measured by its magnitude; zero by the bound alone.
    """
    a, b = found.detach().double().cpu().flatten(), expected.detach().double().cpu().flatten()
    if not b.numel():
        return SpreadError(name, 0.0, 0.0, False)
    error = torch.where(a == b, 0.0, a - b).abs().nan_to_num(math.inf, posinf=math.inf)
    largest, magnitude = float(error.max()), float(b.abs().max())
    half_range = float(b.max() - b.min()) / 2
    is_constant = half_range <= CONSTANT * magnitude
    if magnitude == 0:
        return SpreadError(name, 0.0 if largest <= allowed else math.inf, 0.0, False)
    spread = magnitude if is_constant else half_range
    deviation = magnitude if is_constant else float(b.std(correction=0))
    share = max(largest / spread, float(error.square().mean().sqrt()) / deviation)
    is_flat = bool((a == a[0]).all())
    return SpreadError(name, share, min(1.0, allowed / spread), is_flat and (not is_constant or not float(a[0])))


def verdict_without_training(errors: Sequence[SpreadError], format: AnyFormat) -> tuple[str, str]:
    """Return the gravest verdict that the errors of one pass give, and why; what is not finite was judged before."""
    if not errors:
        return "STABLE", "there is nothing to compare"
    dead = next((error for error in errors if error.is_dead), None)
    if dead is not None:
        return "COLLAPSED", f"the {dead.name} is constant in {format} and is not in fp64"
    worst = max(errors, key=lambda error: (error.is_useless, error.share / max(error.allowed, 1e-300), error.share))
    text = f"the {worst.name} is off by {worst.share:.2%} of its spread"
    if worst.is_useless:
        return "DEGRADED", f"{text}; from {USELESS:.0%} it is useless"
    if worst.share > worst.allowed:
        return "DEGRADED", f"{text}; rounding alone allows {worst.allowed:.2%}"
    widest = max(errors, key=lambda error: error.allowed)
    if widest.allowed > USELESS:
        why = f"which is no flaw by itself, but rounding alone may make {widest.allowed:.2%}"
        return "INCONCLUSIVE", f"{text}, {why}: one pass in {format} cannot say"
    return "STABLE", f"{text}, within the {worst.allowed:.2%} of rounding"


def unless_unsimulated(run: Run, verdict: str, reason: str) -> tuple[str, str]:
    """Return verdict and reason, or INCONCLUSIVE where more than 1 % of the results were computed as torch does."""
    share = run.share_not_simulated
    if share <= LARGEST_SHARE:
        return verdict, reason
    why = f"{share:.1%} of the results were not simulated ({', '.join(sorted(run.unrecognised))})"
    return "INCONCLUSIVE", f"{why}; else it would be {verdict}: {reason}"
