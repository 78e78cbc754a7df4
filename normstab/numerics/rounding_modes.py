"""Rounding modes as data: in which direction a result goes, and how many random bits decide it.

Nothing here computes, and nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from normstab.errors import PrecisionError, near

__all__ = ["NEAREST", "ROUNDINGS", "Rounding"]

# Source: IEEE 754-2019 clause 4.3 (nearest: ties to even; to-odd: clause 4.3 note, Boldo and Melquiond 2008).
ROUNDINGS = ("nearest", "nearest-away", "toward-zero", "up", "down", "to-odd", "stochastic")
DEFAULT_RANDOM_BITS = 16
MOST_RANDOM_BITS = 32


@dataclass(frozen=True)
class Rounding:
    """A rounding mode; `bits` is R, the number of random bits of `stochastic`, and 0 for the others."""

    mode: str = "nearest"
    bits: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ROUNDINGS:
            raise PrecisionError(
                f"unknown rounding {self.mode!r}{near(self.mode, ROUNDINGS)} ({', '.join(ROUNDINGS)}, stochastic:R)"
            )
        if self.is_stochastic and not 1 <= self.bits <= MOST_RANDOM_BITS:
            raise PrecisionError(f"stochastic:R takes 1 <= R <= {MOST_RANDOM_BITS} random bits, found {self.bits}")
        if not self.is_stochastic and self.bits:
            raise PrecisionError(f"rounding {self.mode!r} takes no random bits, found ':{self.bits}'")

    @property
    def is_stochastic(self) -> bool:
        """Whether the result depends on random bits."""
        return self.mode == "stochastic"

    @staticmethod
    def parse(text: str | Rounding) -> Rounding:
        """Return the rounding that `text` names: a mode, or `stochastic:R`."""
        if isinstance(text, Rounding):
            return text
        if not isinstance(text, str):
            raise PrecisionError(f"a rounding is a string or a Rounding, not {type(text).__name__}: {text!r}")
        mode, colon, bits = text.strip().lower().partition(":")
        if colon and not bits.isdecimal():
            raise PrecisionError(f"rounding {text!r}: the number of random bits is a whole number, found {bits!r}")
        default = DEFAULT_RANDOM_BITS if mode == "stochastic" else 0
        return Rounding(mode, int(bits) if colon else default)

    def __str__(self) -> str:
        return f"{self.mode}:{self.bits}" if self.is_stochastic else self.mode


NEAREST = Rounding("nearest")  # ties to even, the default everywhere
