"""Exact sums, one row at a time: an integer accumulator as wide as all of float64, in limbs of 32 bits.

A number m 2^(e - 1075) is shifted to its place and added to three limbs, which as int64 hold 2^30 such additions
before a carry must be passed on. Only the end is rounded, to 53 bits, to odd or to nearest.

    limb:    0      1      2     ...                  (2^-1074 is bit 0 of limb 0)
                 [-------- m, 53 bits --------]
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import INF64, MAGNITUDE64
from normstab.numerics.kernels.cpu.compile import as_float64, as_int64, device, kernel, outside, view
from normstab.numerics.kernels.cpu.sums.steps import read

__all__ = ["FLAGS", "HAS_INF", "HAS_NAN", "MOST_ADDENDS", "exact_products", "exact_rows"]

# From 2^-1074 to 2^1024 there are 2098 bits, and 30 for carries of 2^30 addends: 67 limbs would do.
LIMBS, LIMB_BITS, LIMB_MASK = 72, 32, 2**32 - 1
# Of one sum: each adds twice to a limb.
MOST_ADDENDS = 1 << 30
DIGITS, LARGEST_EXCESS = 53, 2045
# What is noted of a row: how often an operand is NaN or infinite, and an addend has the sign bit; the sum of specials.
HAS_NAN, HAS_INF, MINUS, FLAGS = 0, 1, 2, 3


@device
def put_number(limbs, value):
    """Add a finite float64 to the limbs."""
    bits = as_int64(value)
    biased = (bits & MAGNITUDE64) >> 52
    m = (bits & (2**52 - 1)) | (np.int64(biased != 0) << 52)
    position = max(biased, 1) - 1
    limb, places = position >> 5, position & 31
    # Two shifts: 53 bits moved by up to 31 places do not fit in one int64.
    low, high = (m & LIMB_MASK) << places, (m >> LIMB_BITS) << places
    # The sign goes with each piece: limbs are signed until the end.
    sign = 1 - 2 * np.int64(bits < 0)
    limbs[limb] += sign * (low & LIMB_MASK)
    limbs[limb + 1] += sign * (((low >> LIMB_BITS) & LIMB_MASK) + (high & LIMB_MASK))
    limbs[limb + 2] += sign * (high >> LIMB_BITS)


@outside
def carried_over(limbs):  # pragma: no cover - compiled
    """Bring every limb into 0 .. 2^32 - 1; return what is left above: -1 for a negative number."""
    carry = np.int64(0)
    for i in range(LIMBS):
        total = limbs[i] + carry
        limbs[i] = total & LIMB_MASK
        carry = total >> LIMB_BITS
    return carry


@outside
def rounded_number(limbs, to_odd):  # pragma: no cover - compiled
    """Return the number in the limbs as float64, rounded to odd or to nearest even; +0 if it is zero."""
    negative = np.int64(0)
    if carried_over(limbs) < 0:
        negative = np.int64(1)
        # The number is what the limbs say less 2^(32 LIMBS): its magnitude is their complement, plus one.
        for i in range(LIMBS):
            limbs[i] = LIMB_MASK - limbs[i]
        limbs[0] += 1
        carried_over(limbs)
    top = LIMBS - 1
    while top > 0 and limbs[top] == 0:
        top -= 1
    length, rest = LIMB_BITS * top, limbs[top]
    while rest:
        rest >>= 1
        length += 1
    excess = max(length - DIGITS, 0)
    kept, half, below = np.int64(0), np.int64(0), np.int64(0)
    # Bits above the cut are kept; below it, the first is half
    # a unit, and of the others it matters whether any is set.
    for i in range(top + 1):
        at = LIMB_BITS * i - excess  # where the limb's lowest bit stands among those that are kept
        if at >= 0:
            kept += limbs[i] << at
        elif at > -LIMB_BITS:
            kept += limbs[i] >> -at
        if at < 0:
            lost = limbs[i] & ((1 << min(-at, LIMB_BITS)) - 1)
            if -at <= LIMB_BITS:  # the first bit that is lost is in this limb
                half = lost >> (-at - 1)
                lost = lost & ((1 << (-at - 1)) - 1)
            below |= lost
    if to_odd:
        kept |= np.int64((half | below) != 0)
    elif half != 0 and (below != 0 or kept & 1):
        kept += 1
    # Beside its exponent the implicit bit of `kept` counts one: that is the carry of a subnormal, or of 2^53, too.
    magnitude = np.int64(INF64)
    if excess <= LARGEST_EXCESS:
        magnitude = (np.int64(excess) << 52) + kept
    if magnitude > INF64:
        magnitude = np.int64(INF64)
    return as_float64(magnitude | (negative << 63))


@outside
def begin(limbs, flags):  # pragma: no cover - compiled
    """Empty the limbs and the flags of a row."""
    for i in range(LIMBS):
        limbs[i] = 0
    for i in range(FLAGS):
        flags[i] = 0


@device
def take_operand(value, flags):
    """Note whether an operand is NaN or infinite."""
    flags[HAS_NAN] += np.int64(value != value)
    flags[HAS_INF] += np.int64(abs(value) == np.inf)


@device
def take_addend(value, limbs, flags):
    """Add a number; return it if it is special, else 0."""
    bits = as_int64(value)
    flags[MINUS] += np.int64(bits < 0)
    if (bits & MAGNITUDE64) >= INF64:
        return value
    put_number(limbs, value)
    return 0.0


@outside
def finished(limbs, special, minus, n, to_odd, rounds_down):  # pragma: no cover - compiled
    """Return the sum: special if any addend was; a zero with the sign that IEEE 754 gives it."""
    if special != 0.0:
        return special
    total = rounded_number(limbs, to_odd)
    if total == 0.0 and minus >= (1 if rounds_down else n):
        total = -0.0
    return total


@kernel
def exact_rows(
    x, x_size, out, noted, first, last, kept, outer, n_outer, n_inner, inner_memory, to_odd, rounds_down
):  # pragma: no cover - compiled
    """Sum rows first .. last - 1 of `kept` into float64 at `out`, with FLAGS int64 a row at `noted`."""
    rows, outers = view(kept, 2 * last, np.int64), view(outer, 2 * n_outer, np.int64)
    totals, flags = view(out, last, np.float64), view(noted, FLAGS * last, np.int64)
    limbs = np.empty(LIMBS, np.int64)
    for row in range(first, last):
        mine, special = flags[FLAGS * row :], 0.0
        begin(limbs, mine)
        for o in range(n_outer):
            memory = rows[2 * row] + outers[2 * o]
            for i in range(n_inner):
                value = read(x, x_size, memory + i * inner_memory)
                take_operand(value, mine)
                special += take_addend(value, limbs, mine)
        totals[row] = finished(limbs, special, mine[MINUS], n_outer * n_inner, to_odd, rounds_down)


@kernel
def exact_products(
    a, a_size, a_rows, a_step, b, b_size, b_columns, b_step, out, noted, first, last, m, n, k, to_odd, rounds_down
):  # pragma: no cover - compiled
    """Compute elements first .. last - 1 of a product (B, M, N), exact sums of float64 products, as exact_rows does."""
    rows, columns = view(a_rows, last // n + 1, np.int64), view(b_columns, (last // (m * n) + 1) * n, np.int64)
    totals, flags = view(out, last, np.float64), view(noted, FLAGS * last, np.int64)
    limbs = np.empty(LIMBS, np.int64)
    for element in range(first, last):
        from_a, from_b = rows[element // n], columns[element // (m * n) * n + element % n]
        mine, special = flags[FLAGS * element :], 0.0
        begin(limbs, mine)
        for i in range(k):
            x, y = read(a, a_size, from_a + i * a_step), read(b, b_size, from_b + i * b_step)
            take_operand(x, mine)
            take_operand(y, mine)
            special += take_addend(x * y, limbs, mine)
        totals[element] = finished(limbs, special, mine[MINUS], k, to_odd, rounds_down)
