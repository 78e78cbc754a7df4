"""Counters inside CPU kernels: a scratch of 12 int64 per chunk of work, later added to a ledger's row.

    scratch   [ count overflow ... inexact | largest smallest ]                          magnitudes as float64 bits
    row       [ ten counts | ten stamps | ten steps of first events | two magnitudes ]   these as float32

Each thread writes to a scratch of its own, and no two wait for each other. Sums, a maximum and a minimum may be taken
in any order, so that counts do not depend on chunks or threads.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import INF64, MAGNITUDE64, finish64, magnitude64, wrapped64
from normstab.numerics.kernels.cpu.compile import device, kernel, outside, view
from normstab.numerics.tallies.counter_row import HISTOGRAM_BINS, INF_BIN, NAN_BIN, ZERO_BIN

__all__ = [
    "HISTOGRAM_BINS",
    "INF_BIN",
    "SCRATCH",
    "ZERO_BIN",
    "clear",
    "count_special",
    "histogram_bin",
    "round_counted64",
    "settle",
    "settle_scratches",
]

COUNT, OVERFLOW, SATURATED, UNDERFLOW, SUBNORMAL = 0, 1, 2, 3, 4
NAN_PRODUCED, NAN_PROPAGATED, INF_PROPAGATED, DIVIDE_BY_ZERO, INEXACT = 5, 6, 7, 8, 9
# How many counters there are, then where the magnitudes lie, and the length of all.
COUNTED, LARGEST, SMALLEST, SCRATCH = 10, 10, 11, 12
# The largest float32; in float64 bits its least normal number;
# what the exponents' biases differ by, in float32 bits.
LARGEST32, MIN_NORMAL32, REBIAS = 0x7F7FFFFF, 897 << 52, 896 << 23


@device
def clear(scratch):
    """Set a scratch to nothing counted."""
    for i in range(COUNTED):
        scratch[i] = 0
    scratch[LARGEST], scratch[SMALLEST] = 0, INF64


@outside
def count_special(scratch, is_nan, becomes_nan, becomes_inf, has_nan, has_inf, divides_by_zero, saturates):
    """Count an infinite or NaN exact result; `has_nan` and `has_inf` are about the operands it came from."""
    # Whoever breaks a number counts it: what an operand had
    # already is passed on here, and nothing else happened.
    if has_nan:
        scratch[NAN_PROPAGATED] += 1
        return
    if is_nan:
        scratch[NAN_PRODUCED] += 1
        return
    scratch[DIVIDE_BY_ZERO] += divides_by_zero
    scratch[OVERFLOW] += not has_inf and not divides_by_zero
    scratch[SATURATED] += saturates
    scratch[NAN_PRODUCED] += becomes_nan
    scratch[INF_PROPAGATED] += has_inf and becomes_inf


@device
def round_counted64(scratch, c, drawn, has_nan, has_inf, divides_by_zero, rule):
    """Return the bits of cast(c) from the bits of a float64 c, and count it: round64 for sequential loops.

    The booleans say whether an operand of the operation that gave c was NaN or infinite, and whether a
    finite nonzero number was divided by zero; for a bare cast they describe c itself.
    """
    a, negative = c & MAGNITUDE64, c >> 63
    r = magnitude64(a, negative, drawn, rule)
    y = finish64(r, a, negative, rule)
    scratch[COUNT] += 1
    # What an infinity or a NaN counts as depends on the operands, not on the format's limits.
    if a >= INF64:
        result = y & MAGNITUDE64
        becomes_nan, becomes_inf = result > INF64, result == INF64
        count_special(scratch, a > INF64, becomes_nan, becomes_inf, has_nan, has_inf, divides_by_zero, rule.saturates)
        return y
    if r > (rule.limit_negative if negative else rule.limit_positive):
        if rule.wrap_bits != 0:
            y = wrapped64(r, negative, rule)
        scratch[OVERFLOW] += 1
        scratch[SATURATED] += rule.saturates
        scratch[NAN_PRODUCED] += (y & MAGNITUDE64) > INF64
    result = y & MAGNITUDE64
    scratch[UNDERFLOW] += a != 0 and result == 0
    scratch[SUBNORMAL] += 0 < result < rule.least_normal
    # Bits are compared, but a -0 that became +0 is the same number.
    scratch[INEXACT] += y != c and (result != 0 or a != 0)
    if a != 0:
        scratch[LARGEST] = max(scratch[LARGEST], a)
        scratch[SMALLEST] = min(scratch[SMALLEST], a)
    return y


@outside
def histogram_bin(c):
    """Return the bin of the ledger's histogram for the bits of a float64."""
    a = c & MAGNITUDE64
    if a >= INF64:
        return INF_BIN if a == INF64 else NAN_BIN
    if a == 0:
        return ZERO_BIN
    # Bin 0 is that of 2^-1074: a normal number lies 51 above
    # its biased exponent, a subnormal at its highest bit.
    if a >> 52:
        return (a >> 52) + 51
    bin_ = -1
    while a:
        a >>= 1
        bin_ += 1
    return bin_


@device
def _towards_zero32(a):
    """Return the float32 bits, rounded toward zero, of a finite float64 magnitude."""
    if a >= MIN_NORMAL32:
        return min((a >> 29) - REBIAS, LARGEST32)
    # A float32 subnormal is a whole number of 2^-149: the
    # significand, in units of 2^(biased - 1075), shifted down to it.
    biased = max(a >> 52, 1)
    return ((a & (2**52 - 1)) | (np.int64(biased > 1) << 52)) >> min(926 - biased, 63)


@kernel
def settle(scratches, chunks, row, stamp, step, with_inexact):  # pragma: no cover - compiled
    """Add `chunks` scratches, one after the other, to the ledger row at address `row`; see settle_scratches."""
    settle_scratches(scratches, chunks, SCRATCH, row, stamp, step, with_inexact)


@outside
def settle_scratches(scratches, chunks, apart, row, stamp, step, with_inexact):  # pragma: no cover - compiled
    """Add `chunks` scratches, `apart` int64 apart, to the ledger row at `row`; mark what rose from zero as a first."""
    # The layout is that of counter_row.Row: 30 int64 and, after their 240 bytes, two magnitudes in one more.
    counts = view(row, 31, np.int64)
    extremes = view(row + 240, 2, np.uint32)
    for j in range(COUNTED):
        total = 0
        for chunk in range(chunks):
            total += view(scratches + 8 * apart * chunk, SCRATCH, np.int64)[j]
        if total > 0 and (with_inexact or j != INEXACT):
            # No stamp yet (-1): this is the first event of its kind.
            if counts[COUNTED + j] < 0:
                counts[COUNTED + j], counts[2 * COUNTED + j] = stamp, step
            counts[j] += total
    for chunk in range(chunks):
        part = view(scratches + 8 * apart * chunk, SCRATCH, np.int64)
        largest, smallest = part[LARGEST], part[SMALLEST]
        if largest != 0:
            extremes[0] = max(extremes[0], np.uint32(_towards_zero32(largest)))
        if smallest != INF64:
            extremes[1] = min(extremes[1], np.uint32(_towards_zero32(smallest)))
