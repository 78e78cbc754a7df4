"""Rounding as branch-free integer arithmetic: device functions that every CPU kernel is made of.

A significand is cut where the quantum of the format lies, and what falls off is moved to a place that is the same for
every number. So a rounding mode is a number that is added there: a carry out of it rounds away from zero.

    m of x          [ k: whole quanta | what falls off ]
    fraction                          [ what falls off  0 0 0 ]     aligned at 2^62 (lane 64) or 2^32 (lane 32)
    becomes         k, or k + 1 where fraction + what the mode adds + random bits carries

A `Rule` holds a plan (see format_table.py) in registers. Lane 64 is int64, lane 32 is uint32; a value is the pair
of its magnitude bits and `negative`, 0 or -1. Integers only: flush-to-zero and the rounding mode of the
processor change nothing.

    rule = rule64(table)                        # once per kernel
    y = round64(as_int64(c), 0, rule)           # the bits of cast(c); the third word are the random bits
    y = as_float64(round64(...))                # and its value
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from normstab.numerics.kernels.cpu.compile import as_float32, as_float64, as_int64, as_uint32, device, left32, right32
from normstab.numerics.kernels.format_table import PLAN

__all__ = [
    "Rule",
    "finish32",
    "finish64",
    "magnitude32",
    "magnitude64",
    "round64",
    "rule32",
    "rule64",
    "wrapped32",
    "wrapped64",
]

# numba unpacks a namedtuple, and PLAN is the one list of its fields.
Rule: Any = namedtuple("Rule", PLAN)  # type: ignore[misc]

u32 = np.uint32
MAGNITUDE64, SIGN64, INF64 = 2**63 - 1, -(2**63), 2047 << 52
MAGNITUDE32, SIGN32, INF32 = u32(2**31 - 1), u32(2**31), u32(255 << 23)
# Where fractions of lane 64 are aligned: below the sign, with one bit above them for the carry.
ALIGN64, FRACTION64 = 62, 2**62 - 1
U0, U1, U8, U23, U24, U31, U55 = u32(0), u32(1), u32(8), u32(23), u32(24), u32(31), u32(55)


@device
def rule64(t):
    """Return the table of a plan for lane 64 as a Rule of int64."""
    return Rule(  # type: ignore[call-arg]
        t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11], t[12], t[13], t[14], t[15],
        t[16], t[17], t[18], t[19], t[20], t[21], t[22], t[23], t[24], t[25], t[26], t[27], t[28], t[29], t[30],
        t[31], t[32], t[33], t[34], t[35], t[36],
    )  # fmt: skip


@device
def rule32(t):
    """Return the table of a plan for lane 32 as a Rule of uint32; `base` alone is an int32."""
    return Rule(  # type: ignore[call-arg]
        u32(t[0]), np.int32(t[1]), u32(t[2]), u32(t[3]), u32(t[4]), u32(t[5]), u32(t[6]), u32(t[7]), u32(t[8]),
        u32(t[9]), u32(t[10]), u32(t[11]), u32(t[12]), u32(t[13]), u32(t[14]), u32(t[15]), u32(t[16]),
        u32(t[17]), u32(t[18]), u32(t[19]), u32(t[20]), u32(t[21]), u32(t[22]), u32(t[23]), u32(t[24]),
        u32(t[25]), u32(t[26]), u32(t[27]), u32(t[28]), u32(t[29]), u32(t[30]), u32(t[31]), u32(t[32]),
        u32(t[33]), u32(t[34]), u32(t[35]), u32(t[36]),
    )  # fmt: skip


@device
def magnitude64(a, negative, drawn, rule):
    """Return the magnitude of cast(x) with the exponent unbounded above, before the overflow policy.

    `a` are the magnitude bits of x, `drawn` the random bits aligned at 2^62. Infinity and NaN come back as
    patterns not below those of infinity.
    """
    # A subnormal has the exponent of the least normal number, and no implicit bit; of the others m has it.
    biased = max(a >> 52, 1)
    m = a - ((biased - 1) << 52)  # x = m 2^(biased - 1075)
    s = max(rule.shift, rule.base - biased)  # quantum = 2^s units of m
    # A quantum beyond 2^62 units: m itself goes down first, for its fraction must end below 2^62.
    excess = min(max(s - ALIGN64, 0), 63)
    kept = m >> excess
    m = kept | np.int64((kept << excess) != m)  # sticky: below any bit that decides but "is it zero"
    t = min(s, ALIGN64)
    k = m >> t
    fraction = (m << (ALIGN64 - t)) & FRACTION64
    total = (fraction & rule.fraction_kept) + (drawn & rule.drawn)
    total += rule.add + (rule.add_odd if k & 1 else 0) + (rule.add_negative & negative)
    k += total >> ALIGN64
    # k has the implicit bit, so that a carry into the next binade raises the exponent by itself.
    r = ((biased - 1) << 52) + (k << min(t, 53))
    # Beyond 53 places k is 0 or 1, and the exponent of x says nothing of the result's.
    r = rule.least if s > 53 else r
    r = 0 if k == 0 else r
    return 0 if r < rule.flushed_below else r


@device
def finish64(r, a, negative, rule):
    """Return the bits of cast(x) from its unbounded magnitude `r`: overflow policy, signs, infinity and NaN."""
    sign = negative & SIGN64
    # The order matters: of an infinity or a NaN r is beyond the limit, and only then becomes what it becomes.
    y = r | sign
    y = sign & rule.zero_sign if r == 0 else y
    limit = rule.limit_negative if negative else rule.limit_positive
    y = (rule.over_negative if negative else rule.over_positive) if r > limit else y
    y = (rule.inf_negative if negative else rule.inf_positive) if a == INF64 else y
    return ((a | sign) & rule.nan_kept) | rule.nan_set if a > INF64 else y


@device
def wrapped64(r, negative, rule):
    """Return the bits of the fixed-point value k 2^-F, k taken modulo 2^(I+F+1) into two's complement."""
    biased = max(r >> 52, 1)
    m = r - ((biased - 1) << 52)
    up = biased - 1075 + rule.fraction_bits
    # The shift to the right is exact, r being whole quanta; one to the left may lose bits above the span.
    k = m << min(up, 62) if up >= 0 else m >> min(-up, 63)
    # The span is 2^32 at most: a multiple of 2^54 is 0 modulo it.
    k = 0 if up >= 54 else k
    span = 1 << rule.wrap_bits
    # Two's complement: modulo the span, then its upper half stands for the negative numbers.
    k = (-k if negative else k) & (span - 1)
    k = k - span if k >= (span >> 1) else k
    return as_int64(np.float64(k) * as_float64((1023 - rule.fraction_bits) << 52))


@device
def round64(x, drawn, rule):
    """Return the bits of cast(x) from the bits of a float64 x, for every format and mode."""
    a, negative = x & MAGNITUDE64, x >> 63
    r = magnitude64(a, negative, drawn, rule)
    y = finish64(r, a, negative, rule)
    if rule.wrap_bits != 0 and a < INF64 and r > (rule.limit_negative if negative else rule.limit_positive):
        y = wrapped64(r, negative, rule)
    return y


@device
def magnitude32(a, negative, drawn, rule):
    """Return magnitude64 for the bits of a float32: `negative` is 0 or 0xFFFFFFFF, fractions align at 2^32."""
    biased = max(right32(a, U23), U1)
    m = u32(a - left32(u32(biased - U1), U23))
    s = u32(max(np.int32(rule.shift), np.int32(rule.base - np.int32(biased))))
    # m has 24 bits: what lies beyond is a matter of the fraction alone.
    low = min(s, U24)
    excess = min(u32(max(s, U24) - U24), U31)
    k = right32(m, low)
    # In two shifts: where nothing falls off it is one by 32 places, which does not exist.
    whole = left32(left32(m, u32(U24 - low)), U8)
    fraction = right32(whole, excess)
    fraction = U0 if s > U55 else fraction  # beyond the reach of a shift; `excess` is at most 31
    # What fell out below says only that there is a rest.
    # Random bits are not compared with it: with 32 of them its place is one of theirs.
    sticky = U1 if left32(fraction, excess) != whole else U0
    fraction = u32(u32(fraction | u32(sticky & u32(~rule.drawn))) & rule.fraction_kept)
    addend = u32(u32(rule.add + (rule.add_odd if k & U1 else U0)) + u32(rule.add_negative & negative))
    addend = u32(addend + u32(drawn & rule.drawn))
    # The carry of fraction + addend, by halves: a comparison would become an instruction that has no lanes.
    halves = u32(u32(right32(fraction, U1) + right32(addend, U1)) + u32(u32(fraction & addend) & U1))
    k = u32(k + right32(halves, U31))
    r = u32(left32(u32(biased - U1), U23) + left32(k, low))
    r = rule.least if s > U24 else r
    r = U0 if k == U0 else r
    return U0 if r < rule.flushed_below else r


@device
def finish32(r, a, negative, rule):
    """Return finish64 for the bits of a float32."""
    sign = u32(negative & SIGN32)
    y = u32(r | sign)
    y = u32(sign & rule.zero_sign) if r == U0 else y
    limit = rule.limit_negative if negative else rule.limit_positive
    y = (rule.over_negative if negative else rule.over_positive) if r > limit else y
    y = (rule.inf_negative if negative else rule.inf_positive) if a == INF32 else y
    return u32(u32(u32(a | sign) & rule.nan_kept) | rule.nan_set) if a > INF32 else y


@device
def wrapped32(r, negative, rule):
    """Return wrapped64 for the bits of a float32."""
    span = np.int64(1) << np.int64(rule.wrap_bits)
    k = np.float64(as_float32(r)) * np.float64(np.int64(1) << np.int64(rule.fraction_bits))
    k = k - np.float64(span) * np.floor(k / np.float64(span))  # exact: k is an integer, span a power of two
    k = np.float64(span) - k if negative and k > 0 else k
    k = k - np.float64(span) if k >= np.float64(span >> 1) else k
    return as_uint32(np.float32(k / np.float64(np.int64(1) << np.int64(rule.fraction_bits))))
