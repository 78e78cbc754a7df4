"""How far a result in a format may lie from the exact one, by a stated bound; no number here is a guess.

Each operation of a run has the bound of its own rounding, from `numerics.bounds`, with its own reduction length n,
order of accumulation and unit roundoff, relative to its result's largest magnitude (`error_bounds.own_errors`):
r^ = r (1 + e_i), |e_i| <= b_i. To first order an output's relative error is the sum of kappa_i e_i, where kappa_i is
how much what follows amplifies a relative error (Higham 2002, 1.6 and 3.8). A test asks whether a network amplifies
them: the hypothesis is kappa_i <= 1, under which the product of all (1 + e_i) bounds the output, and an error beyond
that was amplified. Independent roundings of mean zero add up by their squares: m_i roundings of u_i leave at most
exp(lambda sqrt(sum m_i u_i^2) + sum m_i u_i^2 / (1 - u_i)) - 1 (`likely_bound`). A rounding to nearest is spread over
its interval, not at its ends: u_i / sqrt(3) stands for u_i beside lambda (a uniform variable is strictly sub-Gaussian:
its variance may stand for the square of its bound). Half a quantum of subnormals or of fixed point is an absolute
error: the hypothesis is that what follows amplifies neither it nor its ratio to the result, so that it counts relative
to the larger of the two, the result and the output.

Sources. To nearest: Higham and Mary, SISC 41 (2019), theorem 2.4, where roundings that behave like chance are a model;
stochastically: Connolly, Higham and Mary, SISC 43 (2021), where they are a fact. A directed rounding drifts: it has
the deterministic bound, product of (1 + gamma) - 1, alone. No tolerance exceeds 1, which is the result itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from normstab.numerics.bounds import NEAREST_MODES, Step, confidence, likely_bound, worst_bound
from normstab.numerics.formats import FORMATS, AnyFormat
from normstab.numerics.precision import Precision
from normstab.testing.error_bounds.relative_steps import Quanta

__all__ = ["Tolerance", "derive_tolerance", "result_format"]

FAILURE = 1e-6  # the probability that rounding alone, behaving like chance, fails a test
UNIFORM = math.sqrt(3)  # by which the spread of a uniform variable is less than its bound


@dataclass(frozen=True)
class Tolerance:
    """What is allowed: |found - expected| <= atol + rtol |expected|, and how that was derived."""

    rtol: float
    atol: float
    derivation: str


def derive_tolerance(precision: Precision, steps: Sequence[Step], *, elements: int, scale: float) -> Tolerance:
    """Return the tolerance for results made by operations with these `steps`, relative to their own results.

    `elements` results are compared at once and `scale` is the largest magnitude expected among them: the bound is
    relative to it, since cancellation leaves a small element the errors of large ones.
    """
    steps = [step.beside(scale) if isinstance(step, Quanta) else step for step in steps]
    mode = precision.rounding
    has_drift = mode.mode not in NEAREST_MODES and not mode.is_stochastic
    likely = confidence(FAILURE, elements)
    is_nearest = mode.mode in NEAREST_MODES
    bound = worst_bound(steps) if has_drift else likely_bound(steps, likely / UNIFORM if is_nearest else likely)
    relative = min(1.0, bound.relative)
    count = sum(step.count for step in steps)
    coarsest = max((step.unit for step in steps), default=0.0)
    root = "sqrt(sum m u^2 / 3)" if is_nearest else "sqrt(sum m u^2)"
    how = "product of (1 + gamma) - 1" if has_drift else f"expm1({likely:.1f} {root})"
    source = "" if has_drift else f" and {elements} elements ({_source(precision)})"
    derivation = (
        f"{how}, for {count} roundings of {len(steps)} bounds of single operations, the coarsest {coarsest:.3g}"
        f"{source}, relative to the largest magnitude"
    )
    return Tolerance(0.0, relative * scale, derivation)


def _source(precision: Precision) -> str:
    """Return where the probabilistic bound is from."""
    if precision.rounding.is_stochastic:
        return "Connolly, Higham and Mary 2021"
    return "Higham and Mary 2019, theorem 2.4"


def result_format(precision: Precision) -> AnyFormat:
    """Return the coarsest format of results: under autocast that of products, else the compute format."""
    return FORMATS[precision.autocast.removeprefix("cuda-")] if precision.autocast != "none" else precision.format()
