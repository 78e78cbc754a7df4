"""Small exact statistics: quantiles, intervals of means, and the interval of a paired accuracy gap.

Letters: S seeds, I test images. Nothing here knows records or verdicts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from normstab.assess.constants import constant

__all__ = ["Interval", "PairedGap", "mean_interval", "normal_quantile", "paired_gap", "seed_gap", "t_quantile"]

MOST_FREEDOM = 10_000
MOST_SEEDS = 1000
"""A decision that would need more seeds than this is reported as out of reach."""


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedGap:
    """Reference minus cell, in accuracy, over the same test images and paired seeds.

    `image_variance` is the variance of the gap over images, each image's difference summed over the seeds
    first, since the seeds share the images; `seed_variance` is what whole-network luck adds. Of networks for tokens
    the difference of each seed is one number (`quantity`: token accuracy, or token loss, cell minus reference), and all
    of its variance is that of the seeds: tokens of a sequence are no independent tests.
    """

    estimate: float
    image_variance: float
    seed_variance: float
    seeds: int
    images: int
    quantity: Literal["accuracy", "token accuracy", "token loss"] = "accuracy"

    @property
    def standard_error(self) -> float:
        """The standard error of the gap."""
        return math.sqrt(self.image_variance + self.seed_variance)

    def interval(self, confidence: float) -> Interval:
        """Return Student's two-sided interval of the gap, at the degrees of freedom of both variances together."""
        reach = self._quantile(confidence) * self.standard_error
        return Interval(self.estimate, self.estimate - reach, self.estimate + reach)

    def more_seeds(self, bound: float, confidence: float) -> int | None:
        """Return how many more seeds would settle on which side of `bound` the gap lies, were it to stay.

        Both variances are taken to fall as one over the seeds. None: more than MOST_SEEDS.
        """
        distance, reach = abs(self.estimate - bound), self._quantile(confidence) * self.standard_error
        if reach > distance * math.sqrt(MOST_SEEDS / self.seeds):
            return None
        return max(1, math.ceil(self.seeds * (reach / distance) ** 2) - self.seeds)

    def more_images(self, bound: float, confidence: float) -> int | None:
        """Return how many more test images would settle it at these seeds; None: no number of them would."""
        room = ((self.estimate - bound) / self._quantile(confidence)) ** 2 - self.seed_variance
        if room <= self.image_variance / 1000:
            return None
        return max(1, math.ceil(self.images * self.image_variance / room) - self.images)

    def _quantile(self, confidence: float) -> float:
        """Return Student's quantile, at most `MOST_FREEDOM` degrees: beyond, the normal one to four digits.

        Source: Satterthwaite 1946, Biometrics Bulletin 2:110. A seed noise that is assumed has no doubt of its own.
        """
        seed_doubt = self.seed_variance**2 / (self.seeds - 1) if self.seeds > 1 else 0.0
        doubt = self.image_variance**2 / max(1, self.images - 1) + seed_doubt
        freedom = min(MOST_FREEDOM, (self.image_variance + self.seed_variance) ** 2 / doubt) if doubt else MOST_FREEDOM
        return t_quantile(confidence, max(1, int(freedom)))


def paired_gap(
    difference_SI: NDArray[np.float64], seeds_SI: Sequence[NDArray[np.bool_]], *, networks: float = 2.0
) -> PairedGap:
    """Return the mean of `difference_SI` with its variance; row s holds, per image, reference minus cell of one seed.

    `seeds_SI` are which images each seed of the reference classified rightly: they tell how much accuracy varies from
    seed to seed beyond what single images explain. The variance over images has half a pair added to each of the
    four outcomes, so that a few agreeing images are no proof of equality. `networks` is how many networks' luck is
    in a row: 2 for a pair, the sum of squared weights for another contrast. Source: Agresti and Min 2005, Statistics
    in Medicine 24:729, the adjusted Wald interval for matched proportions; for S > 1 over sums per image.
    """
    seeds, images = difference_SI.shape
    sum_I = difference_SI.sum(axis=0)
    squares = float((sum_I**2).sum()) + 1.0 - float(sum_I.sum()) ** 2 / (images + 2 / seeds)
    shared = _seed_excess(seeds_SI) * _drift(difference_SI, seeds_SI)
    image_variance = max(squares, 1.0) / (seeds * images + 2) ** 2
    return PairedGap(float(difference_SI.mean()), image_variance, networks * shared / seeds, seeds, images)


def seed_gap(
    differences: Sequence[float], *, images: int, quantity: Literal["token accuracy", "token loss"]
) -> PairedGap | None:
    """Return the mean of one difference per seed, with Student's interval over the seeds; None for fewer than two."""
    if len(differences) < 2:
        return None
    variance = float(np.var(differences, ddof=1)) / len(differences)
    return PairedGap(float(np.mean(differences)), 0.0, variance, len(differences), images, quantity)


def _seed_excess(correct_SI: Sequence[NDArray[np.bool_]]) -> float:
    """Return the variance of accuracy over seeds beyond that of images flipping independently.

    One seed cannot tell: `assumed_deviation` stands in. Without any, nothing is added.
    """
    if len(correct_SI) < 2:
        return constant("assumed_deviation") ** 2 * len(correct_SI)
    correct = np.asarray(correct_SI, float)
    return max(0.0, float(correct.mean(axis=1).var(ddof=1) - correct.var(axis=0, ddof=1).mean() / correct.shape[1]))


def _drift(difference_SI: NDArray[np.float64], correct_SI: Sequence[NDArray[np.bool_]]) -> float:
    """Return how far the pairs disagree, relative to two seeds of the reference; at most 1.

    A pair that starts from the same weights and sees the same data shares its luck until rounding drives it apart:
    equal predictions share all of it, predictions as unlike as those of two seeds share none. With one seed, two
    seeds are taken to disagree as networks of that accuracy would that err independently.
    """
    if not len(correct_SI):
        return 0.0
    correct = np.asarray(correct_SI, float)
    accuracy = float(correct.mean())
    spread = float(correct.var(axis=0, ddof=1).mean()) if len(correct) > 1 else accuracy * (1.0 - accuracy)
    return min(1.0, float(np.abs(difference_SI).mean()) / (2.0 * spread)) if spread > 0 else 1.0


def normal_quantile(confidence: float) -> float:
    """Return z such that a standard normal lies within +-z with probability `confidence`."""
    return NormalDist().inv_cdf((1.0 + confidence) / 2.0)


def mean_interval(values: Sequence[float], confidence: float) -> Interval | None:
    """Return Student's interval of the mean of `values`; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    reach = t_quantile(confidence, len(values) - 1) * deviation / math.sqrt(len(values))
    return Interval(mean, mean - reach, mean + reach)


@functools.lru_cache(maxsize=4096)  # a hundred steps of bisection, asked for again and again by every group of seeds
def t_quantile(confidence: float, freedom: int) -> float:
    """Return t such that Student's t with `freedom` degrees lies within +-t with probability `confidence`.

    By bisection on the exact distribution function for whole degrees of freedom.
    """
    low, high = 0.0, 1.0
    while _t_within(high, freedom) < confidence:
        high *= 2.0
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _t_within(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2.0


def _t_within(t: float, freedom: int) -> float:
    """Return P(-t < T < t). Source: Abramowitz and Stegun 1964, 26.7.3 (odd) and 26.7.4 (even)."""
    theta = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    is_odd = freedom % 2
    term, total = (cosine, 0.0) if is_odd else (1.0, 0.0)
    for k in range(2 + is_odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return 2.0 / math.pi * (theta + sine * total) if is_odd else sine * total
