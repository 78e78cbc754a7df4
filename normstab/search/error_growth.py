"""How errors grow with the number of addends: measured, and fitted beside the exponents that were published.

One row per law: sums of one format, one after another or in pairs, to nearest or stochastically, and two-pass
variances. Each error is a root mean square over draws; the exponent is the slope of its logarithm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.philox import Key

__all__ = ["LAWS", "Growth", "error_growth"]

LENGTHS = tuple(2**k for k in range(6, 13))


@dataclass(frozen=True)
class Law:
    """What is measured over n, in which precision, and the exponent of n that `source` gives for it."""

    what: str
    precision: str
    published: float
    source: str
    measure: Callable[[Arithmetic, int, int, torch.Generator], float]


@dataclass(frozen=True)
class Growth:
    """A law, what was measured at each length, and the fitted exponent."""

    what: str
    precision: str
    lengths: tuple[int, ...]
    measured: tuple[float, ...]
    exponent: float
    published: float
    source: str


def error_growth(*, lengths: Sequence[int] = LENGTHS, draws: int = 256, seed: int = 0) -> list[Growth]:
    """Return each law's relative errors at `lengths`, over `draws` draws, with the exponent of a fit."""
    found = []
    for law in LAWS.values():
        generator = torch.Generator().manual_seed(seed)
        ar = Arithmetic(law.precision, key=Key(seed, "growth"))
        measured = tuple(law.measure(ar, n, draws, generator) for n in lengths)
        exponent = float(np.polyfit(np.log(lengths), np.log(measured), 1)[0])
        found.append(Growth(law.what, law.precision, tuple(lengths), measured, exponent, law.published, law.source))
    return found


def stall(ar: Arithmetic, n: int, draws: int, generator: torch.Generator) -> float:
    """Return where the sum of 4 n ones stands still in the format of p = log2 n: it has no number n + 1."""
    format = f"e8m{n.bit_length() - 2}"
    narrow = Arithmetic(f"{format}/nearest/{format}:sequential")
    return float(narrow.sum(torch.ones(4 * n)))


def error_of_sum(x: Tensor, ar: Arithmetic) -> float:
    """Return the relative error of the sums of rows."""
    exact = x.double().sum(1)
    return _root_mean_square((ar.sum(x, 1).double() - exact) / exact)


def of_constants(ar: Arithmetic, n: int, draws: int, generator: torch.Generator) -> float:
    """Return the error of sums of n equal numbers, whose roundings to nearest all go one way."""
    x = ar.cast(1.0 + torch.rand(draws, 1, generator=generator))
    return error_of_sum(x.expand(draws, n).contiguous(), ar)


def of_uniform(ar: Arithmetic, n: int, draws: int, generator: torch.Generator) -> float:
    """Return the error of sums of n numbers between 0 and 1."""
    return error_of_sum(ar.cast(torch.rand(draws, n, generator=generator)), ar)


def of_variance(ar: Arithmetic, n: int, draws: int, generator: torch.Generator) -> float:
    """Return the error of the two-pass variance of n numbers between 0 and 1, every operation rounded."""
    x = ar.cast(torch.rand(draws, n, generator=generator))
    d = ar.sub(x, ar.mean(x, 1, keepdim=True))
    exact = x.double().var(1, unbiased=False)
    return _root_mean_square((ar.mean(ar.mul(d, d), 1).double() - exact) / exact)


def _root_mean_square(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt())


NEAREST, STOCHASTIC = "fp16/nearest/fp16:sequential", "fp16/stochastic:32/fp16:sequential"
PAIRWISE = "fp16/stochastic:32/fp16:pairwise"
LAWS: Mapping[str, Law] = {
    "stall": Law(
        "sum of ones in e8m(p-1): where it stands still, over n = 2^p", "e8m5", 1.0, "Higham 2002, 4.2", stall
    ),
    "nearest": Law("sum of equal numbers", NEAREST, 1.0, "Higham and Mary 2019: n u", of_constants),
    "stochastic": Law("sum", STOCHASTIC, 0.5, "Connolly, Higham and Mary 2021: sqrt(n) u", of_uniform),
    "variance": Law("two-pass variance", NEAREST, 1.0, "arXiv 2304.05177: n u", of_variance),
    "stochastic variance": Law("two-pass variance", STOCHASTIC, 0.5, "arXiv 2304.05177: sqrt(n) u", of_variance),
    "pairwise variance": Law("two-pass variance", PAIRWISE, 0.0, "arXiv 2304.05177: sqrt(log n) u", of_variance),
}
"""Name of a law -> what is measured for it."""
