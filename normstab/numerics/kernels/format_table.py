"""A format and a rounding as a table of integers, the arguments of every CPU kernel. No numba here.

A kernel works on the bits of one lane: 32 (float32 and what widens to it) or 64 (float64). The fields are
those of `PLAN`; all magnitudes are bit patterns of the lane without the sign.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from normstab.numerics.formats import DTYPES, AnyFormat, FixedFormat
from normstab.numerics.precision import Rounding

__all__ = [
    "GENERIC",
    "GRID",
    "INTEGER",
    "LANE32",
    "LANE64",
    "MAGIC",
    "PLAN",
    "SPREAD",
    "Lane",
    "contains_dtype",
    "plan",
]

# The order is the layout of the table that the kernels read.
PLAN = (
    "shift",  # discarded bits of a normal number: 24 - p or 53 - p; 0 in fixed point
    "base",  # shift of a number with biased exponent e below emin: base - e
    "least",  # the least quantum 2^(emin - p + 1), or 2^-F
    "flushed_below",  # 2^emin in a format without subnormals, else 0
    "limit_positive",  # the largest magnitude that is in range
    "limit_negative",
    "over_positive",  # what an overflow becomes, sign included
    "over_negative",
    "inf_positive",  # what an infinity becomes
    "inf_negative",
    "zero_sign",  # mask of the bits of a zero result: 0 or the sign bit
    "nan_kept",  # mask of the bits of a NaN that stay: 0, or all when x is copied
    "nan_set",  # the canonical NaN, or 0 when x is copied
    "least_normal",  # 2^emin; 0 in fixed point, which has no subnormals
    "fraction_kept",  # mask of the fraction, aligned at 2^32 or 2^62: its top R bits when stochastic
    "add",  # what is added to the fraction: rounds away from zero on carry
    "add_odd",  # ... and this when the integer part is odd
    "add_negative",  # ... and this when x is negative
    "drawn",  # mask of the random bits, aligned as the fraction; 0 when deterministic
    "wrap_bits",  # I + F + 1 when overflow wraps, else 0
    "fraction_bits",  # F
    "field_width",  # random bits served per element by Philox: 8, 16 or 32; 0 when deterministic
    "saturates",  # 1 under the policy `saturate`
    "style",  # GENERIC, or the shortcut that gives the same bits: see `_shortcut`
    "magic_low",  # MAGIC: exponent bits of 2^emin
    "magic_high",  # ... of 2^(emax + 1)
    "magic_lift",  # ... and what lifts an exponent e to that of the number with quantum 2^(e - p + 1)
    "grid_down",  # GRID, SPREAD: the places from alignment down to the discarded bits
    "grid_add",  # GRID: add, add_odd and add_negative in units of the last bit
    "grid_odd",
    "grid_negative",
    "spread_scale",  # SPREAD: 2^(16 + p - 1 - emin), what turns a subnormal into quanta and 16 bits of fraction
    "spread_quantum",  # ... the quantum of a subnormal
    "spread_kept",  # ... mask of the quanta and the top R bits of the fraction
)
# Codes of the ways to round.
GENERIC, INTEGER, MAGIC, GRID, SPREAD = 0, 1, 2, 3, 4
SPREAD_BITS = 16


@dataclass(frozen=True)
class Lane:
    """The layout of one lane: its significand bits, exponent bias, and where fractions are aligned."""

    size: int
    significand_bits: int
    bias: int
    alignment: int

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (self.size - 1)

    @property
    def inf(self) -> int:
        """The bits of infinity."""
        return (2 * self.bias + 1) << self.significand_bits

    @property
    def nan(self) -> int:
        """The bits of the canonical NaN."""
        return self.inf | 1 << (self.significand_bits - 1)

    def bits(self, magnitude: float) -> int:
        """Return the bits of a magnitude; 0 below the lane's range and the largest finite above it."""
        if self.size == 64:
            return int(struct.unpack("<q", struct.pack("<d", magnitude))[0])
        largest = DTYPES["float32"].max
        return int(struct.unpack("<i", struct.pack("<f", min(magnitude, largest)))[0])

    def power(self, exponent: int) -> int:
        """Return the bits of 2^exponent, 0 below the lane's range."""
        return self.bits(2.0**exponent) if exponent > -1075 else 0


# The two widths that a kernel computes in.
LANE32, LANE64 = Lane(32, 23, 127, 32), Lane(64, 52, 1023, 62)


@lru_cache(maxsize=4096)
def plan(format: AnyFormat, rounding: Rounding, lane: Lane, *, copies: bool = False) -> NDArray[np.int64]:
    """Return the table of `format` under `rounding` for the kernels of a lane; do not write to it.

    `copies`: every value of the dtype is in the format, so nothing moves and a NaN keeps its payload.
    """
    fields = dict.fromkeys(PLAN, 0)
    fields |= dict(_fixed(format, lane) if isinstance(format, FixedFormat) else _float(format, rounding, lane))
    fields |= dict(_rounding(rounding, lane))
    fields["nan_set"] = lane.nan
    if copies:
        fields |= {"shift": 0, "base": -(2**20), "nan_kept": -1, "nan_set": 0, "style": GENERIC}
        fields |= {"limit_positive": lane.inf - 1, "limit_negative": lane.inf - 1, "flushed_below": 0}
    else:
        fields |= _shortcut(format, rounding, lane)
    # Masks and patterns with the top bit set are negative numbers of int64.
    wrapped = [_as_signed(value) for value in fields.values()]
    table = np.array(wrapped, np.int64)
    table.flags.writeable = False
    return table


def _as_signed(value: int) -> int:
    """Return `value` modulo 2^64 as a signed integer."""
    return (value + 2**63) % 2**64 - 2**63


def _float(format: AnyFormat, rounding: Rounding, lane: Lane) -> dict[str, int]:
    """Return the fields of a floating-point format; IEEE 754-2019 clause 7.4 for what an overflow becomes."""
    assert not isinstance(format, FixedFormat)
    p, digits = format.precision, lane.significand_bits + 1
    limit = lane.bits(format.max)
    beyond = {"inf": lane.inf, "nan": lane.nan, "saturate": limit}[format.overflow]
    mode = rounding.mode
    # An overflow stays at the largest number in the modes that clause 7.4 names, and in to-odd.
    stays_positive = mode in ("toward-zero", "to-odd", "down") or format.overflow == "saturate"
    stays_negative = mode in ("toward-zero", "to-odd", "up") or format.overflow == "saturate"
    sign = 0 if format.overflow == "nan" else lane.sign
    return {
        "shift": max(digits - p, 0),
        "base": format.emin + lane.bias + digits - p,
        "least": lane.power(format.emin - p + 1),
        "flushed_below": 0 if format.has_subnormals else lane.power(format.emin),
        "limit_positive": limit,
        "limit_negative": limit,
        "over_positive": limit if stays_positive else beyond,
        "over_negative": limit | lane.sign if stays_negative else beyond | sign,
        "inf_positive": beyond,
        "inf_negative": beyond | sign,
        "zero_sign": lane.sign if format.has_negative_zero else 0,
        "least_normal": lane.power(format.emin),
        "saturates": int(format.overflow == "saturate"),
    }


def _fixed(format: FixedFormat, lane: Lane) -> dict[str, int]:
    """Return the fields of a fixed-point format."""
    high, low = lane.bits(format.max), lane.bits(-format.min)
    saturates = format.overflow in ("saturate", "saturate-symmetric")
    return {
        "base": lane.bias + lane.significand_bits - format.fraction_bits,
        "least": lane.power(-format.fraction_bits),
        "limit_positive": high,
        "limit_negative": low,
        "over_positive": high,
        "over_negative": low | lane.sign,
        "inf_positive": high if saturates else lane.nan,
        "inf_negative": low | lane.sign if saturates else lane.nan,
        "wrap_bits": 0 if saturates else format.precision + 1,
        "fraction_bits": format.fraction_bits,
        "saturates": int(saturates),
    }


def _rounding(rounding: Rounding, lane: Lane) -> dict[str, int]:
    """Return what is added to the fraction, aligned at 2^alignment, so that its carry rounds away from zero."""
    one = 1 << lane.alignment
    every, half = one - 1, one >> 1
    if rounding.is_stochastic:
        top = every ^ ((1 << (lane.alignment - rounding.bits)) - 1)
        width = next(w for w in (8, 16, 32) if w >= rounding.bits)
        return {"fraction_kept": top, "drawn": top, "field_width": width}
    add, odd, negative = {
        "nearest": (half - 1, 1, 0),
        "nearest-away": (half, 0, 0),
        "half-up": (half, 0, -1),
        "half-down": (half - 1, 0, 1),
        "half-toward-zero": (half - 1, 0, 0),
        "toward-zero": (0, 0, 0),
        "up": (every, 0, -every),
        "down": (0, 0, every),
        "to-odd": (every, -every, 0),
    }[rounding.mode]
    return {"fraction_kept": every, "add": add, "add_odd": odd, "add_negative": negative}


def _shortcut(format: AnyFormat, rounding: Rounding, lane: Lane) -> dict[str, int]:
    """Return which shortcut gives the same bits in a lane, with its fields.

    INTEGER (nearest) and GRID (the other modes): emin is the lane's own, so subnormals lie on the same grid as
    the bits, and one addition to the bits rounds all. MAGIC (nearest): adding and then subtracting
    2^(e + digits - p) rounds, with a quantum so large that flushed subnormals round to 0 anyway. SPREAD
    (stochastic): normals as GRID, subnormals scaled to whole numbers, flushed ones being below any bit that counts.
    """
    digits, least = lane.significand_bits + 1, 1 - lane.bias
    if isinstance(format, FixedFormat) or format.precision >= digits:
        return {}
    if not (format.has_subnormals and format.has_negative_zero) or format.precision == 1:
        return {}  # with p = 1 the last bit that stays is the exponent's, and says nothing of odd and even
    p, at, bits = format.precision, lane.significand_bits, rounding.bits
    least_exponent = format.emin - p + 1
    if format.emin == least and lane is LANE32:
        return {"style": INTEGER} if rounding.mode == "nearest" else {"style": GRID} | _grid(rounding, lane, digits - p)
    if rounding.mode == "nearest":
        if least_exponent < least + 2 or format.emax + 1 + digits - p > lane.bias:
            return {}
        low, high, lift = format.emin + lane.bias, format.emax + 1 + lane.bias, digits - p
        return {"style": MAGIC, "magic_low": low << at, "magic_high": high << at, "magic_lift": lift << at}
    if not rounding.is_stochastic or lane is not LANE32 or bits > SPREAD_BITS or p > 31 - SPREAD_BITS:
        return {}
    if not least + 2 + bits <= least_exponent <= lane.bias or SPREAD_BITS - least_exponent > lane.bias:
        return {}
    return {"style": SPREAD} | _grid(rounding, lane, digits - p) | _spread(least_exponent, bits, lane)


def _grid(rounding: Rounding, lane: Lane, discarded: int) -> dict[str, int]:
    """Return the fields of GRID: those of `_rounding`, in units of the last bit."""
    if rounding.is_stochastic:
        return {"grid_down": lane.alignment - discarded}
    own = _rounding(rounding, Lane(lane.size, lane.significand_bits, lane.bias, discarded))
    return {"grid_add": own["add"], "grid_odd": own["add_odd"], "grid_negative": own["add_negative"]}


def _spread(least_exponent: int, bits: int, lane: Lane) -> dict[str, int]:
    """Return the fields of SPREAD for subnormals, whose quantum is 2^least_exponent."""
    return {
        "spread_scale": lane.power(SPREAD_BITS - least_exponent),
        "spread_quantum": lane.power(least_exponent),
        "spread_kept": 2**31 - 2 ** (SPREAD_BITS - bits),
    }


@lru_cache(maxsize=4096)
def contains_dtype(format: AnyFormat, dtype: str) -> bool:
    """Whether every value of the dtype, named as torch does, is in the format, so that a cast copies."""
    if isinstance(format, FixedFormat) or format.overflow != "inf" or not format.has_negative_zero:
        return False
    p, emin, largest = DTYPES[dtype].precision, DTYPES[dtype].emin, DTYPES[dtype].max
    least_exponent = format.emin - format.precision + 1 if format.has_subnormals else format.emin
    return format.precision >= p and format.max >= largest and least_exponent <= emin - p + 1
