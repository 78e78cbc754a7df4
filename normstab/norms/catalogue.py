"""The normalization schemes by name: what their scale s is, with the constants of the literature.

A name is parsed once, here, into a frozen NormSpec; a Scheme is what one layer makes of it. How s is computed in an
arithmetic is `dispersion`. Nothing here needs torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from normstab.errors import NormstabError, near
from normstab.norms.noise.norm_noise import NormNoise

__all__ = ["NORMS", "NormSpec", "Scheme", "parse_norm"]

NAMES = ("l2", "l1", "linf", "topK", "range", "lpP")
_TOP_K = re.compile(r"top(-?\d{1,9})\Z")
_LP = re.compile(r"lp(-?\d+(?:\.\d+)?)\Z")
MOST_P = 64.0  # P - 1 rounded products each; beyond this every format but fp64 is out of range anyway


@dataclass(frozen=True)
class NormSpec:
    """A scheme: `kind` is a row of `dispersion.DISPERSIONS`; `k` is of topk and `p` of lp, both are 0 elsewhere."""

    kind: str
    k: int = 0
    p: float = 0.0

    def __post_init__(self) -> None:
        if (self.kind == "topk") != (self.k != 0) or self.k < 0:
            raise NormstabError(f"norm 'topK' averages the K largest values, K >= 1; found K = {self.k}")
        if (self.kind == "lp") != (self.p != 0) or not 0 <= self.p <= MOST_P:
            raise NormstabError(f"norm 'lpP' takes 0 < P <= {MOST_P:g}; found P = {self.p:g}")

    @property
    def has_constant(self) -> bool:
        """Whether the scale is multiplied by a constant, which makes it sigma on Gaussian values for l1 alone."""
        return self.kind in ("l1", "linf", "topk", "range")

    @property
    def degree(self) -> float:
        """The power of the input that a deviation is raised to before it is summed: 2 for l2, P for lpP, else 1."""
        return {"l2": 2.0, "lp": self.p}.get(self.kind, 1.0)

    def constant(self, n: int) -> float:
        """Return the constant C of n values in float64; 1 where the scheme has none, and for n = 1.

        Only that of l1 makes s the deviation of Gaussian values. The scale of linf is 1.40 to 1.46 of it for n from
        128 to 65536, that of top10 1.06 to 1.32. Range has two constants in the literature: 1 / sqrt(2 ln n), used
        here, leaves outputs with a deviation of 0.60, 0.57, 0.56 for n = 128, 1024, 8192; 1 / sqrt(8 ln n), which is
        `norm_constant` 0.5, with 1.20, 1.15, 1.11.

        Source: Hoffer et al. 2018, section 4 (l1, linf and topk) and its poster (sqrt(8 ln n) for a range); Banner et
        al. 2018, section 3 (range).
        """
        if self.kind == "l1":
            return math.sqrt(math.pi / 2)
        if n <= 1 or not self.has_constant:
            return 1.0
        if self.kind == "range":
            return 1.0 / math.sqrt(2.0 * math.log(n))
        return (1.0 + math.sqrt(math.pi * math.log(4.0))) / math.sqrt(8.0 * math.log(n))

    def require_values(self, n: int) -> None:
        """Raise unless the scheme is defined for n values."""
        if self.k > n:
            raise NormstabError(f"norm {str(self)!r} averages the {self.k} largest values, but there are only {n}")

    def __str__(self) -> str:
        return {"topk": f"top{self.k}", "lp": f"lp{self.p:g}"}.get(self.kind, self.kind)


@dataclass(frozen=True)
class Scheme:
    """What one layer does to a row of values: the norm, eps, a factor on its constant, whether it centres.

    `tracks` says that running statistics are wanted, which l2 and lp must compute apart from s. `spec` None is
    mean-only normalization: values are centred and not scaled. `noise` disturbs the mean and the scale.
    """

    spec: NormSpec | None
    eps: float = 1e-5
    constant_factor: float = 1.0
    centres: bool = True
    tracks: bool = False
    noise: NormNoise | None = None

    def constant(self, n: int) -> float:
        """Return C(n), the factor included."""
        assert self.spec is not None
        return self.spec.constant(n) * self.constant_factor


# Name of a norm -> its scheme; K and P of topK and lpP may be any.
NORMS: dict[str, NormSpec] = {
    "l2": NormSpec("l2"),
    "l1": NormSpec("l1"),
    "linf": NormSpec("linf"),
    "top10": NormSpec("topk", k=10),
    "range": NormSpec("range"),
    "lp3": NormSpec("lp", p=3.0),
}


def parse_norm(text: str | NormSpec) -> NormSpec:
    """Return the scheme that `text` names: l2, l1, linf, range, topK for any K >= 1, lpP for any P > 0.

    A NormSpec passes. Letter case and surrounding blanks do not matter. Raises NormstabError with the
    nearest name.
    """
    if isinstance(text, NormSpec):
        return text
    if not isinstance(text, str):
        raise NormstabError(f"a norm is a string, not {type(text).__name__}: {text!r} ({', '.join(NAMES)})")
    name = text.strip().lower()
    if name in NORMS:
        return NORMS[name]
    if match := _TOP_K.match(name):
        return _checked(text, "topk", k=int(match[1]))
    if match := _LP.match(name):
        return _checked(text, "lp", p=float(match[1]))
    raise NormstabError(f"unknown norm {text!r}{near(name, NORMS)} ({', '.join(NAMES)})")


def _checked(text: str, kind: str, *, k: int = 0, p: float = 0.0) -> NormSpec:
    """Return the spec, or raise naming `text` and what is allowed."""
    if kind == "topk" and k < 1:
        raise NormstabError(f"norm {text!r}: topK averages the K largest values, K >= 1")
    if kind == "lp" and not 0 < p <= MOST_P:
        raise NormstabError(f"norm {text!r}: lpP takes 0 < P <= {MOST_P:g}; the limit P = infinity is 'linf'")
    return NormSpec(kind, k=k, p=p)
