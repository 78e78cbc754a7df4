"""Which shortcut of rounding gives the bits of the generic code, for a format, a mode and a lane; and its fields.

The fields are those of a plan (format_table.py). No numba here, and nothing that rounds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from normstab.numerics.formats import DTYPES, AnyFormat, FixedFormat
from normstab.numerics.precision import Rounding

__all__ = [
    "GENERIC",
    "GRID",
    "INTEGER",
    "LANE32",
    "LANE64",
    "MAGIC",
    "SPREAD",
    "STEPPED",
    "WIDE",
    "Lane",
    "added_to_fraction",
    "cast_shortcut_fields",
    "shortcut_fields",
]

# Codes of the ways to round.
GENERIC, INTEGER, MAGIC, GRID, SPREAD, STEPPED, WIDE = 0, 1, 2, 3, 4, 5, 6
SPREAD_BITS = 16
# A situation is a sum of what holds: the nearest number lies above x (in magnitude), its neighbour is as near, the
# nearest is an even number of quanta, x is negative.
ABOVE, TIE, EVEN, NEGATIVE = 1, 2, 4, 8
MOST_PLACES = 90  # of a point from the units: every power of two around is a normal float32


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


def added_to_fraction(rounding: Rounding, lane: Lane) -> dict[str, int]:
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


def shortcut_fields(format: AnyFormat, rounding: Rounding, lane: Lane) -> dict[str, int]:
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
    """Return the fields of GRID: those of added_to_fraction, in units of the last bit."""
    if rounding.is_stochastic:
        return {"grid_down": lane.alignment - discarded}
    own = added_to_fraction(rounding, Lane(lane.size, lane.significand_bits, lane.bias, discarded))
    return {"grid_add": own["add"], "grid_odd": own["add_odd"], "grid_negative": own["add_negative"]}


def _spread(least_exponent: int, bits: int, lane: Lane) -> dict[str, int]:
    """Return the fields of SPREAD for subnormals, whose quantum is 2^least_exponent."""
    return {
        "spread_scale": lane.power(SPREAD_BITS - least_exponent),
        "spread_quantum": lane.power(least_exponent),
        "spread_kept": 2**31 - 2 ** (SPREAD_BITS - bits),
    }


def cast_shortcut_fields(format: AnyFormat, rounding: Rounding, lane: Lane) -> dict[str, int]:
    """Return which shortcut casts of float32 on the CPU take where shortcut_fields has none, with its fields.

    STEPPED (all modes but stochastic): the nearest number as by MAGIC, then a quantum on or back where the mode says
    so. WIDE (stochastic): as SPREAD, with the quanta and the fraction of a scaled number in a word each, which leaves
    room for 32 random bits. Both also without -0 or subnormals, and in fixed point: all numbers have one quantum there.
    """
    if lane is not LANE32:
        return {}
    least, bits = 1 - lane.bias, rounding.bits if rounding.is_stochastic else 0
    if isinstance(format, FixedFormat):
        places = max(abs(format.integer_bits), abs(format.fraction_bits))
        if not format.is_signed or places > MOST_PLACES or (bits and format.overflow == "wrap"):
            return {}
        return _wide(-format.fraction_bits, 0, lane) if bits else _stepped_fixed(format, rounding, lane)
    p, digits = format.precision, lane.significand_bits + 1
    least_exponent = format.emin - p + 1
    is_normal = 1 < p < digits and least + 2 + bits <= least_exponent <= lane.bias
    if not is_normal or format.emax + 1 + digits - p > lane.bias or -least_exponent > lane.bias:
        return {}
    if bits:
        return _wide(least_exponent, digits - p, lane) | {"spread_below": lane.power(format.emin)}
    return _stepped(rounding, format.emin, format.emax + 1, digits - p, lane)


def _wide(least_exponent: int, discarded: int, lane: Lane) -> dict[str, int]:
    """Return the fields of WIDE; those of fixed point, whose numbers are all whole quanta from 2^23 quanta on."""
    return {
        "cast_style": WIDE,
        "grid_down": lane.alignment - 1 - discarded,
        "spread_scale": lane.power(-least_exponent),
        "spread_quantum": lane.power(least_exponent),
        "spread_below": lane.power(least_exponent + lane.significand_bits),
    }


def _stepped_fixed(format: FixedFormat, rounding: Rounding, lane: Lane) -> dict[str, int]:
    """Return the fields of STEPPED where every exponent has the quantum of 0's."""
    return _stepped(rounding, 0, 0, lane.significand_bits - format.fraction_bits, lane)


def _stepped(rounding: Rounding, low: int, high: int, lift: int, lane: Lane) -> dict[str, int]:
    """Return the fields of STEPPED for exponents `low` to `high`: those of MAGIC, and when the nearest is left."""
    at, leaves = lane.significand_bits, LEAVES[rounding.mode]
    low, high = (low + lane.bias) << at, (high + lane.bias) << at
    steps = sum(1 << situation for situation in range(16) if leaves(situation))
    return {"cast_style": STEPPED, "magic_low": low, "magic_high": high, "magic_lift": lift << at, "steps": steps}


def _leaves_upwards(situation: int) -> bool:
    """Whether the neighbour lies nearer to plus infinity."""
    return bool(situation & ABOVE) == bool(situation & NEGATIVE)


# In which situations a mode takes the neighbour of the nearest number (to even); asked only of inexact results.
LEAVES: dict[str, Callable[[int], bool]] = {
    "nearest": lambda situation: False,
    "nearest-away": lambda situation: bool(situation & TIE) and not situation & ABOVE,
    "half-toward-zero": lambda situation: bool(situation & TIE) and bool(situation & ABOVE),
    "half-up": lambda situation: bool(situation & TIE) and _leaves_upwards(situation),
    "half-down": lambda situation: bool(situation & TIE) and not _leaves_upwards(situation),
    "toward-zero": lambda situation: bool(situation & ABOVE),
    "up": _leaves_upwards,
    "down": lambda situation: not _leaves_upwards(situation),
    "to-odd": lambda situation: bool(situation & EVEN),
}
