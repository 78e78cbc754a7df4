"""Rounding in a float32 carrier: for which formats and modes its bits and counters come out right, and its constants.

That is so for float32 itself, and for formats with p <= 11 whose operands are in the format: 2p + 2 <= 24, and
a sum of two of them is never rounded below the least subnormal. Where a sum is first rounded to odd, p <= 22 will do,
fixed point too, and rounding to a side. The vector code is in rounding_code.
"""

from __future__ import annotations

import struct
from functools import cache, lru_cache

import numpy as np
from numba.core import codegen, config
from numpy.typing import NDArray

from normstab.numerics.formats import AnyFormat, FixedFormat, Format, parse_format
from normstab.numerics.kernels.format_table import PLAN, plan
from normstab.numerics.kernels.shortcut_table import LANE32
from normstab.numerics.rounding_modes import Rounding

__all__ = [
    "BEYOND",
    "BITS",
    "DOWN_MINUS",
    "DOWN_PLUS",
    "DRAWN",
    "HALF",
    "INF_MINUS",
    "INF_PLUS",
    "LEAST_NORMAL",
    "LIFT",
    "LIMIT_MINUS",
    "LIMIT_PLUS",
    "LOW",
    "MAGIC",
    "OVER_MINUS",
    "OVER_PLUS",
    "PLAIN",
    "SPECIAL",
    "STEPPED",
    "STYLE",
    "UP_MINUS",
    "UP_PLUS",
    "ZERO_OF_SUM",
    "ZERO_SIGN",
    "converts_to_half",
    "lane_table",
    "saturates",
    "spec_table",
]

# How a float32 result is rounded: not at all (fp32), by the processor's own conversion to half (fp16, where it
# has one), or by adding and subtracting 1.5 2^(e + 24 - p), whose quantum is that of the format at exponent e;
# STEPPED: so, from a result rounded to odd, and then by a quantum toward the side of the mode.
# DRAWN: stochastically, up from the number below where random bits say so.
PLAIN, HALF, MAGIC, STEPPED, DRAWN = 0, 1, 2, 3, 4

# A table: the style; then as float32 bits the exponent of the least normal number, what lifts an exponent e to
# e + 24 - p, the least magnitude that is special (an overflow, infinity, NaN) and the least normal number. For
# STEPPED also whether a result of either sign goes up or down, the sign that zeros keep, and that of x - x. For DRAWN
# the random bits of a rounding, R. Last the greatest magnitude of either sign, what an overflow and an infinity of it
# become, sign included, and from where on nothing is rounded right. Where results saturate an overflow is not special.
STYLE, LOW, LIFT, SPECIAL, LEAST_NORMAL, UP_PLUS, UP_MINUS, DOWN_PLUS, DOWN_MINUS, ZERO_SIGN, ZERO_OF_SUM, BITS = range(
    12
)
LIMIT_PLUS, LIMIT_MINUS, OVER_PLUS, OVER_MINUS, INF_PLUS, INF_MINUS, BEYOND = range(BITS + 1, BITS + 8)
ENDS = [
    PLAN.index(f"{what}_{sign}") for what in ("limit", "over", "inf") for sign in ("positive", "negative")
]  # of a plan
SIGN = 1 << 31
MOST_FIXED = 100  # integer or fraction bits, so that every power of two around is a float32
MOST_BITS = 16  # of a stochastic rounding: what a float32 result leaves is counted in units of 2^-R quanta
MOST_DIGITS = 22  # of a format that a float32 rounded to odd determines
# Toward which side a mode goes: up, plus and minus; down, plus and minus.
SIDES = {"nearest": (0, 0, 0, 0), "toward-zero": (0, 1, 1, 0), "up": (1, 1, 0, 0), "down": (0, 0, 1, 1)}


@cache
def lane_table(format: AnyFormat, rounding: Rounding, *, is_odd: bool = False) -> NDArray[np.int64] | None:
    """Return the table of a format and a mode that the float32 carrier serves, or None.

    `is_odd`: of addends that may have all digits of float32, so that sums are rounded to odd first.
    """
    if not format.fits_float32:
        return None
    ends = [end & 0xFFFFFFFF for end in plan(format, rounding, LANE32)[ENDS].tolist()]
    if rounding.mode == "nearest":
        narrow = spec_table(format)
        if narrow is not None and (narrow[STYLE] == PLAIN or not is_odd):
            beyond = 2.0 ** (102 + format.precision) if narrow[STYLE] == MAGIC else np.inf
            return np.array([*narrow, *[0] * (BITS - LEAST_NORMAL), *ends, _bits(beyond)], np.int64)
    lifts = _lifts(format)
    if lifts is None or not (rounding.mode in SIDES or (rounding.is_stochastic and not is_odd)):
        return None
    is_nearest, lowest, lift, normal, limit = rounding.mode == "nearest", *lifts
    if rounding.is_stochastic and (rounding.is_unbiased or not rounding.bits <= min(MOST_BITS, lowest + lift + 1)):
        return None
    # Magnitudes are seen truncated: to a side, what lies
    # just above the maximum looks like it, and may overflow.
    special = _bits(format.max + _last_quantum(format) / 2) if is_nearest else _bits(format.max)
    special = _bits(np.inf) if saturates(format) else special
    keeps = not isinstance(format, FixedFormat) and format.has_negative_zero
    down, style = SIGN if rounding.mode == "down" else 0, DRAWN if rounding.is_stochastic else STEPPED
    sides = SIDES.get(rounding.mode, (0, 0, 0, 0))
    row = [style, lowest << 23, lift << 23, min(special, _bits(limit)), normal, *sides]
    return np.array([*row, SIGN if keeps else 0, down, rounding.bits, *ends, _bits(limit)], np.int64)


def saturates(format: AnyFormat) -> bool:
    """Whether what overflows becomes the greatest number of its sign, in every mode."""
    return format.overflow in ("saturate", "saturate-symmetric")


def _lifts(format: AnyFormat) -> tuple[int, int, int, float] | None:
    """Return the lowest exponent (biased) of quanta, what lifts it, the bits of 2^emin, and below what c is finite.

    All numbers of a fixed-point format have the quantum of its greatest: there are no subnormals to count.
    """
    if isinstance(format, FixedFormat):
        top, bottom = format.integer_bits, -format.fraction_bits
        if not format.is_signed or top - bottom >= MOST_DIGITS or top > MOST_FIXED or bottom < -MOST_FIXED:
            return None
        lift = 23 - top + bottom
        return top + 127, lift, 1, 2.0 ** (126 - lift)
    p = format.precision
    if not (format.has_subnormals and 1 < p <= MOST_DIGITS) or format.emin < -126 or format.emin - p + 1 < -149:
        return None
    return format.emin + 127, 24 - p, _bits(format.min_normal), 2.0 ** (126 - (24 - p))


def _last_quantum(format: AnyFormat) -> float:
    """Return the quantum of the greatest number."""
    if isinstance(format, FixedFormat):
        return 2.0**-format.fraction_bits
    return float(2.0 ** (np.floor(np.log2(format.max)) - format.precision + 1))


@lru_cache(maxsize=256)
def spec_table(format: AnyFormat) -> NDArray[np.int64] | None:
    """Return the table of a format that the float32 carrier serves, or None."""
    if not isinstance(format, Format) or not (format.has_subnormals and format.has_negative_zero):
        return None
    p = format.precision
    if format == parse_format("fp32"):
        # Magnitudes are seen rounded toward zero: an infinite sum as the largest finite number.
        return np.array([PLAIN, 0, 0, _bits(np.inf) - 1, _bits(2.0**-126)], np.int64)
    if p > 11 or format.emin < -126 or format.emin - p + 1 < -149:
        return None
    # A tie above an even maximum is no overflow, but what lies just above a tie may be seen as the tie.
    above = np.inf if saturates(format) else format.max + _last_quantum(format) / 2
    special = min(_bits(above), _bits(2.0 ** (126 - (24 - p))))
    style = HALF if format == parse_format("fp16") and converts_to_half() else MAGIC
    low, lift = (format.emin + 127) << 23, (24 - p) << 23
    return np.array([style, low, lift, special, _bits(format.min_normal)], np.int64)


def _bits(value: float) -> int:
    """Return the bits of a float32; those of infinity beyond its range."""
    return (
        int(np.float32(min(value, 3e38)).view(np.uint32)) if value < 3e38 else struct.unpack("<I", b"\0\0\x80\x7f")[0]
    )


@lru_cache(maxsize=1)
def converts_to_half() -> bool:
    """Whether kernels are compiled for a processor that converts float32 to half and back in hardware."""
    chosen = config.CPU_FEATURES  # type: ignore[attr-defined]
    features = codegen.get_host_cpu_features() if chosen is None else chosen
    return "+f16c" in features.split(",")
