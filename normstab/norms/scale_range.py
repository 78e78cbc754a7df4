"""The scale range of a norm: over how many binades of input its result is the one without a range.

Two intervals of k around 0, with eps = 0: where 2^k x gives exactly the normalized x, and where the scale of
2^k x is within one percent of the true one. What they differ by between l1 and l2 is the paper's claim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.norms.catalogue import NormSpec, Scheme, parse_norm
from normstab.norms.functional import Forward, normalize_forward
from normstab.norms.reduction import Reduction
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.philox import Key
from normstab.numerics.precision import Precision
from normstab.numerics.spelling.arguments import whole

__all__ = ["ScaleRange", "scale_range"]

CHANNELS = 16
LARGEST_INTEGER, INTEGER_UNIT = 127, 2.0**-6
ACCURACY = 0.01
FARTHEST = 1200  # beyond the range of float64, so that every scan ends by itself


@dataclass(frozen=True)
class ScaleRange:
    """Two intervals of k, ends included, that hold k = 0; (0, -1) is the empty one.

    `exact`: the scale of 2^k x is 2^k that of x, and the normalized values are the same, bit for bit, for
    symmetric integers x. `accurate`: the scale of every one of 16 channels of Gaussian values is within 1 %
    of the exact scale of the unrounded 2^k x.
    """

    exact: tuple[int, int]
    accurate: tuple[int, int]

    def width(self, which: str = "accurate") -> int:
        """Return how many binades the interval `exact` or `accurate` holds."""
        low, high = self.exact if which == "exact" else self.accurate
        return high - low + 1


def scale_range(norm: str | NormSpec, precision: str | Precision, n: int, *, seed: int = 0) -> ScaleRange:
    """Return the scale range of `norm` over `n` values per channel in `precision`.

    Stochastic rounding draws the same bits for every k. Raises NormstabError for an unknown norm or precision,
    for `native`, which rounds nothing, and for fewer values than the norm needs.
    """
    spec, spec_of_precision = parse_norm(norm), Precision.parse(precision)
    if spec_of_precision.is_native:
        raise NormstabError("scale_range needs a number format; 'native' rounds nothing (fp32 is float32, rounded)")
    n = whole(n, "scale_range: n")
    if n < 1:
        raise NormstabError(f"scale_range needs at least one value per channel, found n = {n}")
    spec.require_values(n)
    of = _Probe(spec, spec_of_precision, n, seed)
    return ScaleRange(_contiguous(of.exactness()), _contiguous(of.accuracy()))


@dataclass(frozen=True)
class _Probe:
    """One norm in one precision, applied to inputs scaled by powers of two."""

    spec: NormSpec
    precision: Precision
    n: int
    seed: int

    def exactness(self) -> Callable[[int], bool]:
        """Return the claim that 2^k x is normalized exactly as x is."""
        x = symmetric_integers(self.n, self.seed)
        expected = self.normalize(x, 0)

        def holds(k: int) -> bool:
            found = self.normalize(x, k)
            scale, wanted = found.scale, expected.scale
            assert scale is not None and wanted is not None
            is_scaled = torch.equal(scale.double(), times_power(wanted.double(), k))
            is_finite = bool(scale.isfinite().all()) and bool((scale != 0).all())
            return is_finite and is_scaled and torch.equal(found.output, expected.output)

        return holds

    def accuracy(self) -> Callable[[int], bool]:
        """Return the claim that every channel's scale of 2^k x is within one percent of the true one."""
        x = gaussian(self.n, self.seed)
        reduction = Reduction.of_batch(x.shape)
        wide = normalize_forward(x, None, None, Scheme(self.spec, eps=0.0), reduction, Arithmetic("fp64"))
        true_scale = wide.scale
        assert true_scale is not None

        def holds(k: int) -> bool:
            scale = self.normalize(x, k).scale
            assert scale is not None
            # Both sides in units of 2^k, for the scale of 2^k x itself may leave the range of float64.
            error = times_power(scale.double(), -k) - true_scale
            return bool((error.abs() <= ACCURACY * true_scale).all())

        return holds

    def normalize(self, x: Tensor, k: int) -> Forward:
        """Return the normalized 2^k x, rounded to the format before anything else."""
        ar = Arithmetic(self.precision, key=Key(self.seed))
        scaled = ar.cast(times_power(x, k), "input")
        narrow = scaled.float() if ar.format.fits_float32 else scaled
        return normalize_forward(narrow, None, None, Scheme(self.spec, eps=0.0), Reduction.of_batch(x.shape), ar)


def times_power(x: Tensor, k: int) -> Tensor:
    """Return 2^k x in float64; torch.ldexp forms 2^k in float32 and loses it."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.ldexp(x.numpy(), k))


def symmetric_integers(n: int, seed: int) -> Tensor:
    """Return (n, 16) integers +-1 .. +-127 in units of 2^-6, each channel with as many of either sign.

    An odd n has one zero more.
    """
    draws = np.random.default_rng(seed)
    half = draws.integers(1, LARGEST_INTEGER + 1, size=(n // 2, CHANNELS))
    values = np.concatenate([half, -half, np.zeros((n % 2, CHANNELS), half.dtype)])
    return torch.from_numpy(draws.permuted(values, axis=0) * INTEGER_UNIT)


def gaussian(n: int, seed: int) -> Tensor:
    """Return (n, 16) standard normal values in float64."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, CHANNELS)))


def _contiguous(holds: Callable[[int], bool]) -> tuple[int, int]:
    """Return the largest interval of k around 0 on which the claim holds, (0, -1) where it fails at 0."""
    if not holds(0):
        return 0, -1
    low = high = 0
    while high < FARTHEST and holds(high + 1):
        high += 1
    while low > -FARTHEST and holds(low - 1):
        low -= 1
    return low, high
