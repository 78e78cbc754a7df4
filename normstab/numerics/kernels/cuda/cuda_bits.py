"""Rounding as integer arithmetic in Triton: device functions that every CUDA kernel is made of.

    m of x       [ k: whole quanta | what falls off ]       as in bits.py of the CPU, a number for each thread
    fraction                       [ what falls off 0 0 ]   aligned at 2^62: the mode adds to it, a carry raises k

    events of a number    [ overflow | saturated | underflow | subnormal | NaN ]    fields of 12 bits in one int64
    summed over a block   [       how often each happened, side by side       ]     one reduction for five counters

Values are the int64 bits of float64; whatever is narrower is widened and narrowed by integers, so that
flush-to-zero cannot act. `table` points at the plan (see format_table.py) of lane 64. Importing this needs Triton.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.float32_bits import fields32, fields_at32
from normstab.numerics.kernels.format_table import PLAN
from normstab.numerics.tallies.counter_row import INF_BIN, NAN_BIN, ZERO_BIN
from normstab.numerics.tallies.tally import COUNTERS

__all__ = [
    "INF64",
    "MAGNITUDE64",
    "SIGN64",
    "as_float64",
    "as_int64",
    "count_events",
    "count_histogram",
    "drawn_at",
    "drawn_fields",
    "events",
    "narrowed",
    "rounded",
    "store_result",
    "widened",
]

# Masks of float64 bits, and where fractions are aligned.
MAGNITUDE64 = tl.constexpr(2**63 - 1)
SIGN64 = tl.constexpr(-(2**63))
INF64 = tl.constexpr(2047 << 52)
ALIGN = tl.constexpr(62)
FRACTION = tl.constexpr(2**62 - 1)
# Where the fields of a plan lie.
SHIFT = tl.constexpr(PLAN.index("shift"))
BASE = tl.constexpr(PLAN.index("base"))
LEAST = tl.constexpr(PLAN.index("least"))
FLUSHED_BELOW = tl.constexpr(PLAN.index("flushed_below"))
LIMIT_POSITIVE = tl.constexpr(PLAN.index("limit_positive"))
LIMIT_NEGATIVE = tl.constexpr(PLAN.index("limit_negative"))
OVER_POSITIVE = tl.constexpr(PLAN.index("over_positive"))
OVER_NEGATIVE = tl.constexpr(PLAN.index("over_negative"))
INF_POSITIVE = tl.constexpr(PLAN.index("inf_positive"))
INF_NEGATIVE = tl.constexpr(PLAN.index("inf_negative"))
ZERO_SIGN = tl.constexpr(PLAN.index("zero_sign"))
NAN_KEPT = tl.constexpr(PLAN.index("nan_kept"))
NAN_SET = tl.constexpr(PLAN.index("nan_set"))
LEAST_NORMAL = tl.constexpr(PLAN.index("least_normal"))
FRACTION_KEPT = tl.constexpr(PLAN.index("fraction_kept"))
ADD = tl.constexpr(PLAN.index("add"))
ADD_ODD = tl.constexpr(PLAN.index("add_odd"))
ADD_NEGATIVE = tl.constexpr(PLAN.index("add_negative"))
DRAWN = tl.constexpr(PLAN.index("drawn"))
WRAP_BITS = tl.constexpr(PLAN.index("wrap_bits"))
FRACTION_BITS = tl.constexpr(PLAN.index("fraction_bits"))
SATURATES = tl.constexpr(PLAN.index("saturates"))
# Where the counters of the ledger lie that a run of events begins at, then the two magnitudes.
OVERFLOW, NUMBER_OF_EVENTS = tl.constexpr(COUNTERS.index("overflow")), tl.constexpr(len(COUNTERS) - 1)
FIELDS_OF_FIRST = tl.constexpr(COUNTERS.index("nan_propagated") - COUNTERS.index("overflow"))
LARGEST, BELOW_INF = tl.constexpr(len(COUNTERS)), tl.constexpr(len(COUNTERS) + 1)
# Bits of the field of one event: a program rounds fewer than 2^FIELD elements, and five fields fit.
FIELD = tl.constexpr(12)
# The bins of the special values.
ZERO, INFINITE, NAN = tl.constexpr(ZERO_BIN), tl.constexpr(INF_BIN), tl.constexpr(NAN_BIN)


@triton.jit
def as_float64(bits):
    """Return the float64 of the bits."""
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def as_int64(x):
    """Return the bits of a float64."""
    return x.to(tl.int64, bitcast=True)


@triton.jit
def widened(bits, DIGITS: tl.constexpr, BIAS: tl.constexpr):
    """Return the float64 bits of the bits of a dtype with so many fraction bits and this bias."""
    wide = bits.to(tl.int64)
    if DIGITS < 52:
        a = wide & (((2 * BIAS + 2) << DIGITS) - 1)
        # An exponent of all ones is raised twice, and stays one.
        rebias = tl.full([], (1023 - BIAS) << 52, tl.int64)
        normal = (a << (52 - DIGITS)) + rebias
        normal = tl.where(a >= ((2 * BIAS + 1) << DIGITS), normal + rebias, normal)
        # A subnormal is a whole number of the dtype's least, both of them normal in float64.
        least = tl.full([], (1024 - BIAS - DIGITS) << 52, tl.int64)
        small = as_int64(a.to(tl.float64) * as_float64(least))
        wide = tl.where(a < (1 << DIGITS), small, normal) | (wide & SIGN64)
    return wide


@triton.jit
def narrowed(y, DIGITS: tl.constexpr, BIAS: tl.constexpr):
    """Return the bits, as int64, of float64 bits in a dtype that represents them exactly."""
    narrow = y
    if DIGITS < 52:
        a = y & MAGNITUDE64
        # How far x lies below the dtype's normal numbers: so many
        # places more go, and nothing is left beyond all digits.
        below = tl.minimum(tl.maximum((1024 - BIAS) - (a >> 52), 0), DIGITS + 1)
        small = ((a & (2**52 - 1)) + 2**52) >> (below + (52 - DIGITS))
        normal = (a >> (52 - DIGITS)) - ((1023 - BIAS) << DIGITS)
        narrow = tl.where(below > 0, small, normal)
        special = ((2 * BIAS + 1) << DIGITS) + tl.where(a > INF64, 1 << (DIGITS - 1), 0)
        narrow = tl.where(a >= INF64, special, narrow)
        narrow = narrow | ((y >> 63) & ((2 * BIAS + 2) << DIGITS))
    return narrow


@triton.jit
def store_result(memory, y, inside):
    """Write float64 bits where the memory is of float64, as those of the float32 that it is where it is of float32."""
    if memory.dtype.element_ty == tl.int32:
        tl.store(memory, narrowed(y, 23, 127).to(tl.int32), mask=inside)
    else:
        tl.store(memory, y, mask=inside)


@triton.jit
def unbounded(a, negative, drawn, table):
    """Return the magnitude of cast(x) with the exponent unbounded above: magnitude64 of bits.py.

    `a` are the magnitude bits of x, `negative` is 0 or -1, `drawn` the random bits aligned at 2^62.
    """
    biased = tl.maximum(a >> 52, 1)
    m = a - ((biased - 1) << 52)  # x = m 2^(biased - 1075)
    # Below emin the quantum stays, and the shift grows as the number falls.
    s = tl.maximum(tl.load(table + BASE) - biased, tl.load(table + SHIFT))  # quantum = 2^s units of m
    excess = tl.minimum(tl.maximum(s - ALIGN, 0), 63)
    kept = m >> excess
    m = kept | ((kept << excess) != m).to(tl.int64)  # sticky: below any bit that decides but "is it zero"
    t = tl.minimum(s, ALIGN)
    k = m >> t
    fraction = (m << (-t + ALIGN)) & FRACTION
    total = (fraction & tl.load(table + FRACTION_KEPT)) + (drawn & tl.load(table + DRAWN))
    total += tl.load(table + ADD) + (tl.load(table + ADD_ODD) & -(k & 1)) + (tl.load(table + ADD_NEGATIVE) & negative)
    k += total >> ALIGN
    r = ((biased - 1) << 52) + (k << tl.minimum(t, 53))
    # There k is 0 or 1, and the exponent of x says nothing of the result's.
    r = tl.where(s > 53, tl.load(table + LEAST), r)
    r = tl.where(k == 0, 0, r)
    return tl.where(r < tl.load(table + FLUSHED_BELOW), 0, r)


@triton.jit
def wrapped(r, negative, table):
    """Return the bits of the fixed-point value k 2^-F, k taken modulo 2^(I+F+1) into two's complement."""
    places = tl.load(table + FRACTION_BITS)
    biased = tl.maximum(r >> 52, 1)
    m = r - ((biased - 1) << 52)
    up = biased - 1075 + places
    k = tl.where(up >= 0, m << tl.minimum(tl.maximum(up, 0), 62), m >> tl.minimum(tl.maximum(-up, 0), 63))
    k = tl.where(up >= 54, 0, k)
    span = tl.full([], 1, tl.int64) << tl.load(table + WRAP_BITS)
    # Two's complement: -k where negative is all ones, modulo
    # the span; its upper half are the negative numbers.
    k = ((k ^ negative) - negative) & (span - 1)
    k = tl.where(k >= (span >> 1), k - span, k)
    return as_int64(k.to(tl.float64) * as_float64((1023 - places) << 52))


@triton.jit
def rounded(x, drawn, table):
    """Return the bits of cast(x) of float64 bits, for every format and mode; and whether a finite x overflows."""
    a, negative = x & MAGNITUDE64, x >> 63
    r = unbounded(a, negative, drawn, table)
    is_negative = negative != 0
    sign = x & SIGN64
    y = tl.where(r == 0, sign & tl.load(table + ZERO_SIGN), r | sign)
    limit = tl.where(is_negative, tl.load(table + LIMIT_NEGATIVE), tl.load(table + LIMIT_POSITIVE))
    is_beyond = (r > limit) & (a < INF64)
    over = tl.where(is_negative, tl.load(table + OVER_NEGATIVE), tl.load(table + OVER_POSITIVE))
    if tl.load(table + WRAP_BITS) != 0:
        over = wrapped(r, negative, table)
    y = tl.where(is_beyond, over, y)
    infinity = tl.where(is_negative, tl.load(table + INF_NEGATIVE), tl.load(table + INF_POSITIVE))
    y = tl.where(a == INF64, infinity, y)
    nan = (x & tl.load(table + NAN_KEPT)) | tl.load(table + NAN_SET)
    return tl.where(a > INF64, nan, y), is_beyond


@triton.jit
def drawn_fields(word, step, block, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return what `fields32` does, aligned at 2^62."""
    return fields32(word, step, block, WIDTH, BLOCK).to(tl.int64) << 30


@triton.jit
def drawn_at(word, step, index, BITS: tl.constexpr):
    """Return what `fields_at32` does, aligned at 2^62."""
    return fields_at32(word, step, index, BITS).to(tl.int64) << 30


@triton.jit
def events(x, y, is_beyond, has_nan, has_inf, by_zero, inside, table):
    """Return what rounding x to y did, given the operands that x came from; `reference.count` says what is what.

    Two words of events, each in a field of its own, and |x| and infinity - |x| in bits; all zero but where `inside`.
    """
    a, result = x & MAGNITUDE64, y & MAGNITUDE64
    is_inf, is_nonzero = a == INF64, (a != 0) & (a < INF64)
    overflow = is_beyond | (is_inf & ((has_nan | has_inf | by_zero) == 0))
    saturated = (is_beyond | is_inf) & (tl.load(table + SATURATES) != 0)
    subnormal = (result > 0) & (result < tl.load(table + LEAST_NORMAL))
    first = overflow.to(tl.int64) | (saturated.to(tl.int64) << FIELD)
    first |= (is_nonzero & (result == 0)).to(tl.int64) << (2 * FIELD)
    first |= subnormal.to(tl.int64) << (3 * FIELD)
    first |= ((result > INF64) & (has_nan == 0)).to(tl.int64) << (4 * FIELD)
    second = has_nan.to(tl.int64) | (((result == INF64) & has_inf).to(tl.int64) << FIELD)
    second |= by_zero.to(tl.int64) << (2 * FIELD)
    second |= (is_nonzero & (y != x)).to(tl.int64) << (3 * FIELD)
    seen = inside & is_nonzero
    # Both are maxima over memory that begins with zeros: the smallest is kept as its distance from infinity.
    largest, below_inf = tl.where(seen, a, 0), tl.where(seen, -a + INF64, 0)
    return tl.where(inside, first, 0), tl.where(inside, second, 0), largest, below_inf


@triton.jit
def count_events(counts, x, y, is_beyond, has_nan, has_inf, by_zero, inside, table):
    """Count what rounding x to y did, given the operands that x came from.

    Events are summed side by side in fields of one int64 each: two reductions instead of nine.
    """
    first, second, largest, below_inf = events(x, y, is_beyond, has_nan, has_inf, by_zero, inside, table)
    first, second = tl.sum(first, axis=0), tl.sum(second, axis=0)
    place = tl.arange(0, 16)
    packed = tl.where(place < FIELDS_OF_FIRST, first >> (place * FIELD), second >> ((place - FIELDS_OF_FIRST) * FIELD))
    # One addition to memory for each event that happened, none for the others.
    often = tl.where(place < NUMBER_OF_EVENTS, packed & (2**FIELD - 1), 0)
    tl.atomic_add(counts + OVERFLOW + place, often, mask=often > 0, sem="relaxed")
    largest, below_inf = tl.max(largest, axis=0), tl.max(below_inf, axis=0)
    tl.atomic_max(counts + LARGEST, largest, mask=largest > 0, sem="relaxed")
    tl.atomic_max(counts + BELOW_INF, below_inf, mask=below_inf > 0, sem="relaxed")


@triton.jit
def count_histogram(bins, x, inside):
    """Count float64 bits per binade, zero, infinity and NaN, in the layout of the ledger."""
    a = x & MAGNITUDE64
    # The bit length of a whole number below 2^52 is the exponent of its float64.
    place = tl.where(a >= 2**52, (a >> 52) + 51, (as_int64(a.to(tl.float64)) >> 52) - 1023)
    place = tl.where(a == 0, ZERO, place)
    place = tl.where(a == INF64, INFINITE, tl.where(a > INF64, NAN, place))
    tl.atomic_add(bins + place, a * 0 + 1, mask=inside, sem="relaxed")
