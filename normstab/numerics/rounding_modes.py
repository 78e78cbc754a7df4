"""Rounding modes as data: in which direction a result goes, and how many random bits decide it.

Nothing here computes, and nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from normstab.errors import PrecisionError, near

__all__ = ["NEAREST", "ROUNDINGS", "Rounding"]

# Source: IEEE 754-2019 clause 4.3 (nearest: ties to even; to-odd: clause 4.3 note, Boldo and Melquiond 2008).
# The half- modes round to nearest, and ties upwards, downwards or toward zero: AP_RND, AP_RND_MIN_INF and
# AP_RND_ZERO of high-level synthesis (AMD UG1399, ap_fixed).
ROUNDINGS = (
    *("nearest", "nearest-away", "toward-zero", "up", "down", "to-odd", "stochastic"),
    *("half-up", "half-down", "half-toward-zero"),
)
DEFAULT_RANDOM_BITS = 16
MOST_RANDOM_BITS = 32


@dataclass(frozen=True)
class Rounding:
    """A rounding mode; `bits` is R, the number of random bits of `stochastic`, and 0 for the others.

    `stochastic:R` rounds away from zero with the probability f truncated to R bits, so on average too little, by
    less than 2^-R of a quantum; `is_unbiased` takes f rounded to R bits, ties to even, whose errors cancel.
    Source: Fitzgibbon and Felix 2025, "On stochastic rounding with few random bits" (their SRF and SRC).
    """

    mode: str = "nearest"
    bits: int = 0
    is_unbiased: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ROUNDINGS:
            raise PrecisionError(
                f"unknown rounding {self.mode!r}{near(self.mode, ROUNDINGS)} "
                f"({', '.join(ROUNDINGS)}, stochastic:R, stochastic:R:unbiased)"
            )
        if self.is_stochastic and not 1 <= self.bits <= MOST_RANDOM_BITS:
            raise PrecisionError(f"stochastic:R takes 1 <= R <= {MOST_RANDOM_BITS} random bits, found {self.bits}")
        if self.is_unbiased and not self.is_stochastic:
            raise PrecisionError(f"rounding {self.mode!r} is not random: ':unbiased' goes with stochastic:R")
        if not self.is_stochastic and self.bits:
            raise PrecisionError(f"rounding {self.mode!r} takes no random bits, found ':{self.bits}'")

    @property
    def is_stochastic(self) -> bool:
        """Whether the result depends on random bits."""
        return self.mode == "stochastic"

    @staticmethod
    def parse(text: str | Rounding) -> Rounding:
        """Return the rounding that `text` names: a mode, or `stochastic:R[:unbiased]`."""
        if isinstance(text, Rounding):
            return text
        if not isinstance(text, str):
            raise PrecisionError(f"a rounding is a string or a Rounding, not {type(text).__name__}: {text!r}")
        words = text.strip().lower()
        is_unbiased = words.endswith(":unbiased")
        mode, colon, bits = words.removesuffix(":unbiased").partition(":")
        if colon and not bits.isdecimal():
            raise PrecisionError(f"rounding {text!r}: the number of random bits is a whole number, found {bits!r}")
        default = DEFAULT_RANDOM_BITS if mode == "stochastic" else 0
        return Rounding(mode, int(bits) if colon else default, is_unbiased)

    def __str__(self) -> str:
        suffix = ":unbiased" if self.is_unbiased else ""
        return f"{self.mode}:{self.bits}{suffix}" if self.is_stochastic else self.mode


NEAREST = Rounding("nearest")  # ties to even, the default everywhere
