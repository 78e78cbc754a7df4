"""A-priori bounds of rounding errors: deterministic, probabilistic, and under stochastic rounding. Plain numbers.

A result is described by its `Step`s: how many roundings, and which error each makes, on the longest way from an
addend to it. Its error is at most `relative * condition + absolute`; the condition is the sum of the addends'
magnitudes (sums, means, products), or the exact result (norms). No bound speaks of a result that overflowed.
Which steps an operation takes in a Precision is said in `steps_of_sums`.

Sources. gamma: Higham, Accuracy and Stability of Numerical Algorithms, 2002, 3.1. (n - 1) u for nearest sums in any
order: Rump, BIT 52 (2012). Probabilistic: Higham and Mary, SISC 41 (2019), theorem 2.4. Stochastic rounding: Connolly,
Higham and Mary, SISC 43 (2021): there the model of the former is a fact, with 2 u for u. R random bits: El Arar, Fasi,
Filip and Mikaitis, arXiv 2408.03069: a bias of 2^-R. Two-pass variance: El Arar et al., arXiv 2304.05177.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from normstab.numerics.formats import AnyFormat, FixedFormat
from normstab.numerics.rounding_modes import Rounding

__all__ = [
    "NEAREST_MODES",
    "SUITABLE",
    "ErrorBound",
    "Roundoff",
    "Step",
    "accumulator_bits",
    "confidence",
    "gamma",
    "likely_bound",
    "norm_bound",
    "random_bits",
    "roundoff",
    "unit_roundoff",
    "variance_retention",
    "worst_bound",
]

NEAREST_MODES = ("nearest", "nearest-away", "half-up", "half-down", "half-toward-zero")
"""The modes whose error is at most half a quantum."""
LARGEST_EXPONENT = 700.0
"""From where on a bound exp(x) - 1 is called infinite: a float64 ends at x = 709.78."""


def unit_roundoff(format: AnyFormat) -> float:
    """Return u = 2^-p, the largest relative error of one nearest rounding; of fixed point, half its quantum."""
    return format.min_subnormal / 2 if isinstance(format, FixedFormat) else 2.0**-format.precision


@dataclass(frozen=True)
class Roundoff:
    """What one rounding may do: |error| <= unit |x| + quantum, and |mean error| <= bias |x|.

    `bias` is that of truncated random bits; the probabilistic model of the other modes has none.
    """

    unit: float
    quantum: float
    bias: float = 0.0

    @property
    def of_addition(self) -> Roundoff:
        """The same for a sum of two numbers of the format, which is exact where it is subnormal."""
        return Roundoff(self.unit, 0.0, self.bias)


def roundoff(format: AnyFormat, rounding: Rounding) -> Roundoff:
    """Return the roundoff of a format: u and half a quantum to nearest, twice that in every other mode."""
    factor = 1.0 if rounding.mode in NEAREST_MODES else 2.0
    quantum = factor * format.min_subnormal / 2
    if isinstance(format, FixedFormat):
        return Roundoff(0.0, quantum)
    unit = factor * unit_roundoff(format)
    bias = unit * 2.0**-rounding.bits if rounding.is_stochastic else 0.0
    return Roundoff(unit, quantum if format.has_subnormals else format.min_normal, bias)


@dataclass(frozen=True)
class Step:
    """`count` roundings one after the other. `absolute` is what their quanta add to the result, all together.

    `is_nearest_sum`: these are the additions of one nearest sum of `addends` numbers, whose error never exceeds
    (addends - 1) u, however many there are.
    """

    count: int
    unit: float
    bias: float = 0.0
    absolute: float = 0.0
    addends: int = 0
    is_nearest_sum: bool = False

    @staticmethod
    def of(roundoff: Roundoff, count: int = 1, *, tiny: float = 1.0) -> Step:
        """Return `count` roundings, the quanta of which reach the result `tiny` times each."""
        return Step(count, roundoff.unit, roundoff.bias, count * tiny * roundoff.quantum)

    def scaled(self, factor: float) -> Step:
        """Return the step of a result that is multiplied by `factor` afterwards: its quanta are too."""
        return replace(self, absolute=self.absolute * factor)

    @property
    def worst(self) -> float:
        """The largest relative error of the step."""
        bound = gamma(self.count, self.unit)
        return min(bound, (self.addends - 1) * self.unit) if self.is_nearest_sum else bound


@dataclass(frozen=True)
class ErrorBound:
    """|error| <= relative * condition + absolute."""

    relative: float
    absolute: float = 0.0


def gamma(m: int, unit: float) -> float:
    """Return gamma_m = m u / (1 - m u), infinite from m u = 1 on."""
    return m * unit / (1.0 - m * unit) if m * unit < 1.0 else math.inf


def worst_bound(steps: Iterable[Step]) -> ErrorBound:
    """Return the deterministic bound of the steps: product of (1 + each) minus 1."""
    found = list(steps)
    exponent = sum(math.log1p(step.worst) for step in found)
    relative = math.expm1(exponent) if exponent < LARGEST_EXPONENT else math.inf
    return ErrorBound(relative, _absolute(found, relative))


def likely_bound(steps: Iterable[Step], confidence: float) -> ErrorBound:
    """Return the bound exp(lambda sqrt(sum u^2) + sum (b + u^2 / (1 - u))) - 1, lambda being `confidence`.

    b is the bias of truncated random bits. For m roundings of one u it is the published one, gamma~_m(lambda). It never
    exceeds the deterministic bound. The probability that it holds is `confidence`'s.
    """
    found = list(steps)
    spread = math.sqrt(sum(step.count * step.unit**2 for step in found))
    if any(step.unit >= 1.0 for step in found):
        return worst_bound(found)
    drift = sum(step.count * (step.bias + step.unit**2 / (1.0 - step.unit)) for step in found)
    exponent = confidence * spread + drift
    likely = math.expm1(exponent) if exponent < LARGEST_EXPONENT else math.inf
    relative = min(likely, worst_bound(found).relative)
    return ErrorBound(relative, _absolute(found, relative))


def _absolute(steps: list[Step], relative: float) -> float:
    """Return what the quanta add up to, each of which later roundings may enlarge."""
    total = sum(step.absolute for step in steps)
    return total * (1.0 + relative) if total else 0.0


def confidence(failure: float, products: int) -> float:
    """Return lambda such that `products` products of roundings all hold but with probability `failure`.

    2 exp(-lambda^2 / 2) each (Azuma and Hoeffding), and the sum over all of them. A sum of n addends has n products.
    """
    return math.sqrt(2.0 * math.log(2.0 * max(products, 1) / failure))


def random_bits(n: int) -> int:
    """Return R = ceil(log2(n) / 2), from which the bias of n roundings is no larger than their spread.

    Source: arXiv 2408.03069: n 2^-R u against sqrt(n) u.
    """
    return math.ceil(math.log2(n) / 2) if n > 1 else 0


def norm_bound(
    magnitude: float, shift: float, bound: ErrorBound, *, is_squared: bool = False, eps: float = 0.0
) -> float:
    """Return by how much a computed scale may differ from the exact one.

    `magnitude` is the exact mean square (`is_squared`), or mean or maximum of |x - mean| with its constant; `shift` is
    what the error e of the computed mean adds to it, and `bound` holds for everything after the mean, eps included.
    M(x - m - e) <= M(x - m) + |e|; for squares, since the deviations add up to zero, mean (x - m - e)^2 = V + e^2,
    which is the two-pass variance of arXiv 2304.05177. A root loses more downwards than it gains upwards.
    """
    exact = magnitude + eps
    high = (exact + shift) * (1.0 + bound.relative) + bound.absolute
    if not is_squared:
        return high - exact
    low = max(0.0, exact * (1.0 - bound.relative) - bound.absolute)
    return max(math.sqrt(high) - math.sqrt(exact), math.sqrt(exact) - math.sqrt(low))


SUITABLE = 50.0
"""The largest normalised loss of variance, exp(n (1 - VRR)), of a suitable accumulation (Sakr et al.)."""


def variance_retention(significand: int, n: int, addend: int | None = None) -> float:
    """Return which share of the variance of a sum of `n` numbers an accumulator keeps that swamps its addends.

    `significand` are the trailing bits m of the accumulator, `addend` those p of the addends (at most m: an addend is
    cast to the accumulator first); None: full swamping alone. Addends have mean zero and deviation 1, so that the sum
    of i of them has deviation sqrt(i). It reaches stage j once it exceeds B_j = 2^(m - p + j): its quantum is then 2^j
    of an addend's, which loses j bits. Truncated, j bits are worth (2^j - 1) (2^(j + 1) - 1) / 6 of the addend's
    squared quantum 4^-p on average; a stage lasts 2 B_j additions. Together the stages below J lose
    a_J = sum over j < J of 2^(m - 3 p) / 3 2^j (2^j - 1) (2^(j + 1) - 1). With 2 Q the two normal tails, the sum ends
    - swamped in full at i, after B_p: q_i = 2 Q(2^m / sqrt(i)) (1 - 2 Q(2^m / sqrt(i - 1))), of i - a_(p + 1) kept;
    - in stage J - 1, for J = 2 .. p: 2 Q(B_(J - 1) / sqrt(n)) (1 - 2 Q(B_J / sqrt(n))), of n - a_J kept;
    - below B_1, with nothing lost: 1 - 2 Q(B_1 / sqrt(n)), of n.
    The share is the mean of what is kept, weighted so, over n; what keeps nothing is left out.
    Source: Sakr et al., "Accumulation bit-width scaling", ICLR 2019 (arXiv 1901.06588), theorem 1. Its terms are given
    from memory; a factor N_j that it may have before the stages' weights is not used, since they are probabilities.
    """
    p = 0 if addend is None else min(addend, significand)
    stops = [(i, _tails(significand, i) * (1.0 - _tails(significand, i - 1))) for i in range(2, n)]
    ends = [(i - _lost(significand, p, p + 1), weight) for i, weight in stops]
    for stage in range(2, p + 1):
        weight = _tails(significand - p + stage - 1, n) * (1.0 - _tails(significand - p + stage, n))
        ends.append((n - _lost(significand, p, stage), weight))
    ends.append((n, 1.0 - _tails(significand - p + (addend is not None), n)))
    counted = [(kept, weight) for kept, weight in ends if kept > 0.0]
    total = sum(weight for _, weight in counted)
    return sum(kept * weight for kept, weight in counted) / (total * n) if total else 0.0


def _tails(exponent: int, i: int) -> float:
    """Return 2 Q(2^exponent / sqrt(i)): how likely a sum of `i` numbers of deviation 1 exceeds 2^exponent."""
    return math.erfc(2.0**exponent / math.sqrt(2.0 * i)) if i else 0.0


def _lost(significand: int, addend: int, end: int) -> float:
    """Return a_J, what the stages of partial swamping below `end` lose of the variance, in addends."""
    stages = sum(2.0**j * (2.0**j - 1.0) * (2.0 ** (j + 1) - 1.0) for j in range(1, end))
    return 2.0 ** (significand - 3 * addend) / 3.0 * stages


def accumulator_bits(n: int, addend: int | None = None, levels: Sequence[int] | None = None) -> int:
    """Return the least number of trailing significand bits with which a sum of `n` numbers keeps its variance.

    `addend` are the trailing bits of the addends. `levels` are the lengths of the sums of which it is made, the first
    of them the inner one, where it is chunked (`steps_of_sums.chunks`): each is a sum of its own, of addends as wide
    as the sums below it (p + log2 of their length, the paper's corollary), and each has to be suitable.
    """
    for bits in range(1, 53):
        width, is_suitable = addend, True
        for length in levels or (n,):
            is_suitable &= length * (1.0 - variance_retention(bits, length, width)) < math.log(SUITABLE)
            width = None if width is None else width + int(math.log2(max(length, 1)))
        if is_suitable:
            return bits
    return 53
