"""A format and a rounding as a table of integers, the arguments of every CPU kernel. No numba here.

A kernel works on the bits of one lane: 32 (float32 and what widens to it) or 64 (float64). The fields are
those of `PLAN`; all magnitudes are bit patterns of the lane without the sign.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from normstab.numerics.formats import DTYPES, AnyFormat, FixedFormat
from normstab.numerics.kernels.shortcut_table import (
    GENERIC,
    Lane,
    added_to_fraction,
    cast_shortcut_fields,
    shortcut_fields,
)
from normstab.numerics.precision import Rounding

__all__ = [
    "PLAN",
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
    "style",  # GENERIC, or the shortcut that gives the same bits: see shortcut_fields
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
    "cast_style",  # what casts on the CPU take: the style, or one that only they know
    "steps",  # STEPPED: bit s says whether the nearest number is left for its neighbour in situation s
    "spread_below",  # WIDE: the magnitudes that are scaled
)


@lru_cache(maxsize=4096)
def plan(format: AnyFormat, rounding: Rounding, lane: Lane, *, copies: bool = False) -> NDArray[np.int64]:
    """Return the table of `format` under `rounding` for the kernels of a lane; do not write to it.

    `copies`: every value of the dtype is in the format, so nothing moves and a NaN keeps its payload.
    """
    fields = dict.fromkeys(PLAN, 0)
    fields |= dict(_fixed(format, lane) if isinstance(format, FixedFormat) else _float(format, rounding, lane))
    fields |= dict(added_to_fraction(rounding, lane))
    fields["nan_set"] = lane.nan
    if copies:
        fields |= {"shift": 0, "base": -(2**20), "nan_kept": -1, "nan_set": 0, "style": GENERIC}
        fields |= {"limit_positive": lane.inf - 1, "limit_negative": lane.inf - 1, "flushed_below": 0}
    else:
        fields |= shortcut_fields(format, rounding, lane)
        fields["cast_style"] = fields["style"]
        if fields["style"] == GENERIC:
            fields |= cast_shortcut_fields(format, rounding, lane)
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


@lru_cache(maxsize=4096)
def contains_dtype(format: AnyFormat, dtype: str) -> bool:
    """Whether every value of the dtype, named as torch does, is in the format, so that a cast copies."""
    if isinstance(format, FixedFormat) or format.overflow != "inf" or not format.has_negative_zero:
        return False
    p, emin, largest = DTYPES[dtype].precision, DTYPES[dtype].emin, DTYPES[dtype].max
    least_exponent = format.emin - format.precision + 1 if format.has_subnormals else format.emin
    return format.precision >= p and format.max >= largest and least_exponent <= emin - p + 1
