"""What disturbs a norm layer, as data: the kind of noise, how strong it is, and where it is added.

How it is drawn and added is `perturbation`. Nothing here needs torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from normstab.errors import NormstabError, lookup, near
from normstab.numerics.formats import AnyFormat, parse_format

__all__ = ["KINDS", "PLACES", "NormNoise"]

# Kind of noise -> what becomes of a value t. Source of both: the models of rounding that they are without its bias;
# Widrow and Kollar 2008, "Quantization noise", chapter 4 (uniform); Higham 2002, equation 2.4, with a random delta.
KINDS = {
    "uniform": "t + q u, u uniform on (-1/2, 1/2): an additive error of up to half a quantum",
    "multiplicative": "t (1 + zeta), zeta uniform around 0: a relative error",
}
# Where a layer is disturbed -> what is.
PLACES = {
    "output": "what the layer returns",
    "statistics": "the mean and the scale s that values are normalized by",
    "gradient": "the gradient of the layer's input",
}


@dataclass(frozen=True)
class NormNoise:
    """Noise of mean zero: `kind` is a name of KINDS, `where` one of PLACES or several.

    Its standard deviation is `sigma` (of t itself for uniform, of zeta for multiplicative), or that of rounding to the
    format `like`: q^2 / 12 is the variance of an error that is uniform within half a quantum. Uniform noise takes q of
    each value's own binade; zeta has, over the tensor that is disturbed, the variance sum(q^2 / 12) / sum(t^2), so
    that both add the same noise power at the same site. Range is not modelled: nothing overflows or saturates, and a
    value below half a quantum is disturbed where rounding would make it zero.

    Raises NormstabError unless exactly one of `sigma` (finite, >= 0) and `like` is given, and for unknown names.
    Source: Bennett 1948, "Spectra of quantized signals" (q^2 / 12).
    """

    kind: str
    sigma: float | None = None
    like: str | AnyFormat | None = None
    where: str | tuple[str, ...] = "output"

    def __post_init__(self) -> None:
        lookup(KINDS, self.kind, what="kind of norm_noise")
        if (self.sigma is None) == (self.like is None):
            given = "neither is given" if self.sigma is None else "both are given"
            raise NormstabError(f"norm_noise takes sigma, a standard deviation, or like, a format: {given}")
        if self.sigma is not None:
            if isinstance(self.sigma, bool) or not isinstance(self.sigma, Real):
                raise NormstabError(f"norm_noise.sigma: {self.sigma!r:.60} is no number")
            object.__setattr__(self, "sigma", float(self.sigma))
        if self.sigma is not None and not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise NormstabError(f"norm_noise.sigma is zero or positive, found {self.sigma}")
        if self.like is not None:
            object.__setattr__(self, "like", parse_format(self.like))
        if not isinstance(self.where, str | tuple | list):
            raise NormstabError(f"norm_noise.where: {self.where!r:.60} is no name, nor several ({', '.join(PLACES)})")
        places = (self.where,) if isinstance(self.where, str) else tuple(self.where)
        if not places:
            raise NormstabError(f"norm_noise.where names no place; allowed: {', '.join(PLACES)}")
        for place in places:
            if place not in PLACES:
                raise NormstabError(
                    f"norm_noise.where: unknown place {place!r}{near(str(place), PLACES)} ({', '.join(PLACES)})"
                )
        object.__setattr__(self, "where", tuple(place for place in PLACES if place in places))

    @property
    def format(self) -> AnyFormat | None:
        """The format whose rounding the noise is as strong as; None where `sigma` says how strong it is."""
        return None if self.like is None else parse_format(self.like)

    def at(self, place: str) -> bool:
        """Whether `place` is disturbed."""
        return place in self.where

    def __str__(self) -> str:
        strength = f"sigma={self.sigma:g}" if self.sigma is not None else f"like={self.like}"
        return f"{self.kind}({strength}, where={'+'.join(self.where)})"
