"""Rounding float32 in registers of 32 bits: the CUDA kernels' fast path, with the bits of cuda_bits.

    float32    s eeeeeeee fffffffffffffffffffffff
    float16    s eeeee    ffffffffff                   widened: 112 is added to the exponent
    bfloat16   s eeeeeeee fffffff                      widened: zeros are put behind

A value is its int32 bits. What a format and a mode are is in a plan of lane 32, which a kernel loads once, before its
loop; only the shortcut (`style`, see format_table.py) is compiled in, so that one kernel serves every eXmY. Integers
alone, but for MAGIC and SPREAD, whose additions and products of float32 are exact or rounded to nearest as they mean.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels import shortcut_table
from normstab.numerics.kernels.format_table import PLAN

__all__ = [
    "INF32",
    "MAGNITUDE32",
    "SIGN32",
    "aligned32",
    "as_float32",
    "as_int32",
    "fields32",
    "fields_at32",
    "finished32",
    "narrowed32",
    "rule32",
    "step_now",
    "unbounded32",
    "unsigned",
    "widened32",
]

# Masks of float32 bits, and infinity.
MAGNITUDE32, SIGN32, INF32 = tl.constexpr(2**31 - 1), tl.constexpr(-(2**31)), tl.constexpr(255 << 23)
INTEGER, MAGIC = tl.constexpr(shortcut_table.INTEGER), tl.constexpr(shortcut_table.MAGIC)
GRID, SPREAD = tl.constexpr(shortcut_table.GRID), tl.constexpr(shortcut_table.SPREAD)
# What a kernel holds of a plan, in this order.
HELD = (
    "shift", "base", "least", "flushed_below", "limit_positive", "limit_negative", "over_positive", "over_negative",
    "inf_positive", "inf_negative", "zero_sign", "nan_kept", "nan_set", "least_normal", "fraction_kept", "add",
    "add_odd", "add_negative", "drawn", "saturates", "magic_low", "magic_high", "magic_lift", "grid_down", "grid_add",
    "grid_odd", "grid_negative", "spread_scale", "spread_quantum", "spread_kept",
)  # fmt: skip
SHIFT, BASE, LEAST, FLUSHED_BELOW, LIMIT_POSITIVE, LIMIT_NEGATIVE, OVER_POSITIVE, OVER_NEGATIVE = (
    tl.constexpr(i) for i in range(8)
)
INF_POSITIVE, INF_NEGATIVE, ZERO_SIGN, NAN_KEPT, NAN_SET, LEAST_NORMAL, FRACTION_KEPT, ADD = (
    tl.constexpr(i) for i in range(8, 16)
)
ADD_ODD, ADD_NEGATIVE, DRAWN, SATURATES, MAGIC_LOW, MAGIC_HIGH, MAGIC_LIFT, GRID_DOWN, GRID_ADD = (
    tl.constexpr(i) for i in range(16, 25)
)
GRID_ODD, GRID_NEGATIVE, SPREAD_SCALE, SPREAD_QUANTUM, SPREAD_KEPT = (tl.constexpr(i) for i in range(25, 30))
# Where each of them lies in the table.
PLACES = tuple(PLAN.index(name) for name in HELD)
P0, P1, P2, P3, P4, P5, P6, P7, P8, P9 = (tl.constexpr(place) for place in PLACES[:10])
P10, P11, P12, P13, P14, P15, P16, P17, P18, P19 = (tl.constexpr(place) for place in PLACES[10:20])
P20, P21, P22, P23, P24, P25, P26, P27, P28, P29 = (tl.constexpr(place) for place in PLACES[20:])


@triton.jit
def rule32(table):
    """Return the fields of a plan of lane 32, as int32, in the order of HELD; those never used cost nothing."""
    return (
        tl.load(table + P0), tl.load(table + P1), tl.load(table + P2), tl.load(table + P3), tl.load(table + P4),
        tl.load(table + P5), tl.load(table + P6), tl.load(table + P7), tl.load(table + P8), tl.load(table + P9),
        tl.load(table + P10), tl.load(table + P11), tl.load(table + P12), tl.load(table + P13), tl.load(table + P14),
        tl.load(table + P15), tl.load(table + P16), tl.load(table + P17), tl.load(table + P18), tl.load(table + P19),
        tl.load(table + P20), tl.load(table + P21), tl.load(table + P22), tl.load(table + P23), tl.load(table + P24),
        tl.load(table + P25), tl.load(table + P26), tl.load(table + P27), tl.load(table + P28), tl.load(table + P29),
    )  # fmt: skip


@triton.jit
def as_float32(bits):
    """Return the float32 of the bits."""
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def as_int32(x):
    """Return the bits of a float32, or of a uint32."""
    return x.to(tl.int32, bitcast=True)


@triton.jit
def unsigned(bits):
    """Return int32 as uint32 of the same bits: right shifts bring zeros, and comparisons have no sign."""
    return bits.to(tl.uint32, bitcast=True)


@triton.jit
def widened32(bits, DIGITS: tl.constexpr):
    """Return the float32 bits of a float16 (10 fraction bits), bfloat16 (7) or float32 (23), given by its bits."""
    wide = bits.to(tl.int32)
    if DIGITS == 7:
        wide = wide << 16
    if DIGITS == 10:
        a = wide & 0x7FFF
        normal = (a << 13) + (112 << 23)
        # An exponent of all ones is raised twice, 31 + 2 * 112 = 255, and stays one.
        normal = tl.where(a >= (31 << 10), normal + (112 << 23), normal)
        # A subnormal is a whole number of 2^-24, both of them normal in float32.
        least = tl.full([], 103 << 23, tl.int32)
        small = as_int32(a.to(tl.float32) * as_float32(least))
        wide = tl.where(a < (1 << 10), small, normal) | ((wide >> 15) << 31)
    return wide


@triton.jit
def narrowed32(y, DIGITS: tl.constexpr):
    """Return the bits, as int32, of float32 bits in a dtype that represents them exactly."""
    narrow = y
    if DIGITS == 7:
        narrow = y >> 16
    if DIGITS == 10:
        a = y & MAGNITUDE32
        below = tl.minimum(tl.maximum(113 - (a >> 23), 0), 11)
        small = ((a & 0x7FFFFF) + 0x800000) >> (below + 13)
        normal = (a >> 13) - (112 << 10)
        narrow = tl.where(below > 0, small, normal)
        narrow = tl.where(a >= INF32, (31 << 10) + tl.where(a > INF32, 1 << 9, 0), narrow)
        narrow = narrow | ((y >> 16) & 0x8000)
    return narrow


@triton.jit
def step_now(step, later, WIDTH: tl.constexpr):
    """Return the step of this run, `later` at that address than when it was launched; as it is if nothing is drawn."""
    now = step.to(tl.int64)
    if WIDTH > 0:
        now += tl.load(later)
    return now


@triton.jit
def fields32(word, step, block, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return the random fields of BLOCK elements from the first of Philox block `block` on, aligned at 2^32.

    Four words a Philox block, joined in the order of the elements (philox.py).
    """
    blocks = block + tl.arange(0, BLOCK * WIDTH // 128)
    low = blocks.to(tl.uint32)
    step_low, step_high = low * 0 + step.to(tl.uint32), low * 0 + (step >> 32).to(tl.uint32)
    c0, c1, c2, c3 = tl.philox(word, low, (blocks >> 32).to(tl.uint32), step_low, step_high)
    fields = tl.interleave(tl.interleave(c0, c2), tl.interleave(c1, c3))
    if WIDTH <= 16:
        fields = tl.interleave(fields << 16, fields & 0xFFFF0000)
    if WIDTH == 8:
        fields = tl.interleave(fields << 8, fields & 0xFF000000)
    return fields.to(tl.uint32)


@triton.jit
def fields_at32(word, step, index, BITS: tl.constexpr):
    """Return the random fields of the elements at `index`, aligned at 2^32: a Philox block for each."""
    block, place = index // (128 // BITS), index % (128 // BITS)
    low = block.to(tl.uint32)
    step_low, step_high = low * 0 + step.to(tl.uint32), low * 0 + (step >> 32).to(tl.uint32)
    c0, c1, c2, c3 = tl.philox(word, low, (block >> 32).to(tl.uint32), step_low, step_high)
    which = place // (32 // BITS)
    chosen = tl.where(which < 2, tl.where(which == 0, c0, c1), tl.where(which == 2, c2, c3)).to(tl.uint32)
    above = 32 - BITS - (place % (32 // BITS)) * BITS  # places between the field and the word's top
    return (chosen << above.to(tl.uint32)) >> (32 - BITS) << (32 - BITS)


@triton.jit
def unbounded32(x, drawn, rule, STYLE: tl.constexpr):
    """Return the magnitude of cast(x) with the exponent unbounded above, as magnitude32 and its shortcuts on the CPU.

    `drawn` are the random bits, uint32, aligned at 2^32. Infinity and NaN come back as anything.
    """
    a = x & MAGNITUDE32
    if STYLE == MAGIC:
        # In the range of this constant the last bit of float32 is the format's: the addition rounds.
        lifted = tl.minimum(tl.maximum(a & INF32, rule[MAGIC_LOW]), rule[MAGIC_HIGH]) + rule[MAGIC_LIFT]
        c = as_float32(lifted)
        r = as_int32((as_float32(a) + c) - c)
    elif STYLE == INTEGER:
        # Half a quantum less 1, and 1 where the last bit that stays is odd: ties to even.
        # A carry may raise the exponent.
        ulp = tl.full([], 1, tl.int32) << rule[SHIFT]
        odd = (a >> rule[SHIFT]) & 1
        r = (a + ((ulp >> 1) - 1) + odd) & -ulp
    elif STYLE == GRID:
        ulp = tl.full([], 1, tl.int32) << rule[SHIFT]
        # What the mode adds to the bits that go, in units of the last of them.
        odd = rule[GRID_ODD] & -((a >> rule[SHIFT]) & 1)
        noise = as_int32((drawn & unsigned(rule[DRAWN])) >> unsigned(rule[GRID_DOWN]))
        r = (a + (rule[GRID_ADD] + odd + (rule[GRID_NEGATIVE] & (x >> 31)) + noise)) & -ulp
    elif STYLE == SPREAD:
        r = spread32(a, drawn & unsigned(rule[DRAWN]), rule)
    else:
        r = aligned32(a, unsigned(a) & 0, x >> 31, drawn, rule)
    return r


@triton.jit
def spread32(a, noise, rule):
    """Return the magnitude of stochastic rounding with at most 16 bits: a subnormal as a whole number of quanta.

    The product and the conversions are exact in what is kept, and the least subnormal is far above float32's.
    """
    ulp = tl.full([], 1, tl.int32) << rule[SHIFT]
    normal = (a + as_int32(noise >> unsigned(rule[GRID_DOWN]))) & -ulp
    scaled = (as_float32(tl.minimum(a, rule[LEAST_NORMAL])) * as_float32(rule[SPREAD_SCALE])).to(tl.int32)
    quanta = ((scaled & rule[SPREAD_KEPT]) + as_int32(noise >> 16)) >> 16
    small = as_int32(quanta.to(tl.float32) * as_float32(rule[SPREAD_QUANTUM]))
    return tl.where(a < rule[LEAST_NORMAL], small, normal)


@triton.jit
def aligned32(a, tail, negative, drawn, rule):
    """Return the magnitude for every mode: the fraction below the quantum is aligned at 2^32, and its carry rounds.

    `tail` are 32 bits more of x behind those of `a`, all zero in a cast.
    """
    biased = tl.maximum(a >> 23, 1)
    m = a - ((biased - 1) << 23)  # x = m 2^(biased - 150)
    s = tl.maximum(rule[BASE] - biased, rule[SHIFT])  # quantum = 2^s units of m
    low, excess = tl.minimum(s, 24), tl.minimum(tl.maximum(s - 24, 0), 31)
    k = m >> low
    # In two shifts: where nothing falls off it is one by 32 places, which does not exist.
    whole = ((unsigned(m) << unsigned(24 - low)) << 8) | (tail >> unsigned(low))
    fraction = tl.where(s > 55, 0, whole >> unsigned(excess)).to(tl.uint32)
    # Sticky: what fell out below decides only whether the rest is zero, and never a comparison with random bits.
    sticky = ((fraction << unsigned(excess)) != whole).to(tl.uint32)
    mask = unsigned(rule[DRAWN])
    fraction = (fraction | (sticky & ~mask)) & unsigned(rule[FRACTION_KEPT])
    addend = rule[ADD] + (rule[ADD_ODD] & -(k & 1)) + (rule[ADD_NEGATIVE] & negative)
    addend = unsigned(addend) + (drawn & mask)
    k += ((fraction + addend) < addend).to(tl.int32)  # the carry
    r = ((biased - 1) << 23) + (k << low)
    r = tl.where(s > 24, rule[LEAST], r)
    r = tl.where(k == 0, 0, r)
    return tl.where(r < rule[FLUSHED_BELOW], 0, r)


@triton.jit
def finished32(x, r, is_forced, rule):
    """Return the bits of cast(x) from its unbounded magnitude, and whether a finite x overflows; `is_forced`: it does.

    The overflow policy, signs, infinity and NaN, as `rounded` of cuda_bits.
    """
    a, sign, is_negative = x & MAGNITUDE32, x & SIGN32, x < 0
    # The order matters: of an infinity or a NaN r is anything,
    # and only the last two lines say what they become.
    y = tl.where(r == 0, sign & rule[ZERO_SIGN], r | sign)
    limit = tl.where(is_negative, rule[LIMIT_NEGATIVE], rule[LIMIT_POSITIVE])
    is_beyond = ((r > limit) & (a < INF32)) | is_forced
    y = tl.where(is_beyond, tl.where(is_negative, rule[OVER_NEGATIVE], rule[OVER_POSITIVE]), y)
    y = tl.where(a == INF32, tl.where(is_negative, rule[INF_NEGATIVE], rule[INF_POSITIVE]), y)
    return tl.where(a > INF32, (x & rule[NAN_KEPT]) | rule[NAN_SET], y), is_beyond
