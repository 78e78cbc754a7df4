"""Numbers cut into slices so short that float64 sums of products of them are exact, and what such sums add up to.

    row of x      top                                  bottom      the positions of its highest and lowest bits
    x_0           [ 1 0 1 1 | 0 1 1 0 | 0 0 0 0 ]
    x_1           [ 0 0 0 0 | 0 1 0 1 | 1 0 0 0 ]                  a slice: `width` positions of every number of a row

Position p has the weight 2^(p - 150), as in the exponents of float32: the greatest number's bits end below 278.
Source: Ozaki, Ogita, Oishi and Rump 2012, "Error-free transformations of matrix multiplication".
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment,operator"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import as_float64, as_int64, as_uint32, kernel, outside, view
from normstab.numerics.kernels.cpu.sums.steps import read
from normstab.numerics.kernels.cpu.to_odd import sum_to_odd

__all__ = ["HAS_INF", "HAS_NAN", "REACH", "TOP", "WIDTH", "cut", "join", "mend", "reach"]

u32 = np.uint32
# What is told of a row: how much is NaN or infinite, where its bits begin, how many positions they span.
HAS_NAN, HAS_INF, TOP, WIDTH, REACH = 0, 1, 2, 3, 4
MAGNITUDE, INFINITY, IMPLICIT, DIGITS = u32(0x7FFFFFFF), u32(0x7F800000), u32(1 << 23), 24
NOWHERE, WEIGHT = 1 << 20, 1023 - 150
AT_ONCE = 64  # sums


@kernel
def reach(x, rows, n, found):  # pragma: no cover - compiled
    """Tell REACH int64 of each of `rows` rows of n float32, one after the other at x."""
    every, told = view(x, rows * n, u32), view(found, REACH * rows, np.int64)
    for row in range(rows):
        values = every[row * n :]
        top, bottom, specials, nans = np.int32(0), np.int32(NOWHERE), np.int32(0), np.int32(0)
        for i in range(n):
            size = values[i] & MAGNITUDE
            biased = np.int32(size >> u32(23))
            m = np.int32(size & (IMPLICIT - u32(1))) | (np.int32(biased != 0) << np.int32(23))
            # The lowest bit alone is a float32 whose exponent says where it stands.
            lowest = np.int32(as_uint32(np.float32(m & -m)) >> u32(23)) - np.int32(127)
            place, is_number = biased + np.int32(biased == 0), (size != u32(0)) & (size < INFINITY)
            top = max(top, place + np.int32(DIGITS) if is_number else np.int32(0))
            bottom = min(bottom, place + lowest if is_number else np.int32(NOWHERE))
            specials += np.int32(size >= INFINITY)
            nans += np.int32(size > INFINITY)
        told[REACH * row + TOP], told[REACH * row + WIDTH] = top, max(top - bottom, 0)
        told[REACH * row + HAS_NAN], told[REACH * row + HAS_INF] = nans, specials - nans


@kernel
def cut(x, rows, n, found, width, slices, out, filled):  # pragma: no cover - compiled
    """Cut float32 rows into `slices` slices at `out`, each (rows, n) float64; mark in `filled` those with a number.

    What is infinite or NaN is zero in all.
    """
    every, told = view(x, rows * n, u32), view(found, REACH * rows, np.int64)
    marks, rest = view(filled, slices, np.uint8), np.empty(n)
    for row in range(rows):
        values = every[row * n :]
        for i in range(n):
            # Widened by whole numbers, for flush-to-zero may be on.
            size = values[i] & MAGNITUDE
            biased = np.int64(size >> u32(23))
            m = np.int64(size & (IMPLICIT - u32(1))) | (np.int64(biased != 0) << 23)
            m = m if biased < 255 else np.int64(0)
            weight = as_float64((max(biased, 1) + WEIGHT) << 52)
            rest[i] = np.float64(m if values[i] == size else -m) * weight
        top = told[REACH * row + TOP]
        for s in range(slices):
            # Adding 1.5 2^52 units and taking them away again leaves whole units, to nearest; what is left over is
            # half a unit at most, and in the last slice nothing.
            lift = 1.5 * as_float64((top - (s + 1) * width + WEIGHT + 52) << 52)
            own, seen = view(out + 8 * n * (s * rows + row), n, np.float64), np.int64(0)
            for i in range(n):
                part = (rest[i] + lift) - lift
                rest[i] -= part
                own[i] = part
                seen |= as_int64(part) << 1
            marks[s] |= seen != 0


@outside
def grow(parts, at, x, n):  # pragma: no cover - compiled
    """Add n numbers at x to sums kept in `at` parts each, of which they then have one more.

    Source: Shewchuk 1997, Grow-Expansion: the parts, the greatest last, share no bits and leave one free between them.
    """
    totals = parts[at]
    for j in range(n):
        totals[j] = x[j]
    for p in range(at):
        own = parts[p]
        for j in range(n):
            total, part = totals[j], own[j]
            s = total + part
            seen = s - total
            own[j] = (total - (s - seen)) + (part - seen)
            totals[j] = s


@kernel
def join(pieces, n_pieces, apart, n, out):  # pragma: no cover - compiled
    """Set n float64 at `out` to the sums, rounded to odd, of as many in each of the pieces, `apart` numbers apart."""
    parts = np.empty((n_pieces, AT_ONCE))
    for start in range(0, n, AT_ONCE):
        m = min(AT_ONCE, n - start)
        for p in range(n_pieces):
            grow(parts, p, view(pieces + 8 * (p * apart + start), m, np.float64), m)
        sums, least = view(out + 8 * start, m, np.float64), parts[0]
        for j in range(m):
            sums[j] = least[j]
        # From the least part on: what was rounded to odd is less than half of what is added, so that the last bit
        # of the sum, which it may only change, stands no lower than its own. The next rounding finds it set.
        for p in range(1, n_pieces):
            own = parts[p]
            for j in range(m):
                sums[j] = sum_to_odd(sums[j], own[j], True, False)


@outside
def zero_of(a, b, k, rounds_down):  # pragma: no cover - compiled
    """Return a sum of products of k float32 at a and b that is zero, with the sign that IEEE 754 gives it."""
    x, y = view(a, k, u32), view(b, k, u32)
    for i in range(k):
        is_minus = ((x[i] ^ y[i]) >> u32(31)) != u32(0)
        if is_minus == rounds_down:
            return -0.0 if rounds_down else 0.0
    return 0.0 if rounds_down else -0.0


@outside
def special_of(a, b, k):  # pragma: no cover - compiled
    """Return the sum of those products of k float32 at a and b that are infinite or NaN."""
    total = 0.0
    for i in range(k):
        product = read(a, 4, i) * read(b, 4, i)
        total += product if not abs(product) < np.inf else 0.0
    return total


@kernel
def mend(a, a_rows, a_special, b, b_columns, b_special, first, last, m, n, k, out, rounds_down):  # pragma: no cover
    """Set right what slices do not tell in rows first .. last - 1 of (B, M), N sums: signs of zeros, special sums.

    Each is of products of k float32 at an offset of a, and of as many of b. Beside the offsets lie bytes that say
    whether anything there is infinite or NaN.
    """
    rows, columns = view(a_rows, last, np.int64), view(b_columns, ((last - 1) // m + 1) * n, np.int64)
    marked, batches = view(a_special, last, np.uint8), view(b_special, ((last - 1) // m + 1) * n, np.uint8)
    for row in range(first, last):
        from_a, own = a + 4 * rows[row], view(out + 8 * n * row, n, np.float64)
        mine, marks = columns[row // m * n :], batches[row // m * n :]
        for j in range(n):
            if marked[row] | marks[j]:
                own[j] = special_of(from_a, b + 4 * mine[j], k)
            elif own[j] == 0.0:
                own[j] = zero_of(from_a, b + 4 * mine[j], k, rounds_down)
