"""Scaled formats on the CPU: granule after granule, its largest magnitude, its scale, its numbers and codes.

    a row    [ x x x x | x x x x | x x ]       granules are K neighbours, the last of a row may be shorter
                  |
                  +-> 1. largest magnitude -> scale      the granule stays in the cache in between
                  +-> 2. x / scale, rounded -> value and code (granule_rounding)

Short granules are rounded many at a time, in one loop.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import (
    as_float32,
    as_float64,
    as_int64,
    as_uint32,
    device,
    kernel,
    outside,
    view,
)
from normstab.numerics.kernels.cpu.granules.granule_rounding import (
    FLUSHING,
    FRACTION,
    INFINITE,
    LEAST_SCALE,
    MAGNITUDE,
    PART,
    exponent_of,
    multiple,
    round_in_parts,
    round_narrow,
    round_whole,
)

__all__ = ["RULES", "granule_amax", "quantize_granules"]

# A table has the whole numbers and the float64 numbers that cpu_quantize lists, in its order. Whole:
#   0 row_length      3 precision            6 has_negative_zero    9 nan_code   12 least_exponent
#   1 width           4 emin                 7 fraction_bits       10 rule       13 greatest_exponent
#   2 granules        5 is_float             8 code_bits           11 emax       14 is_counted
# Numbers: 0 largest, 1 least, 2 tensor_scale, 3 fixed_scale.
# How the scale follows; `fixed`: it is given, that of the whole tensor.
RULES = {"max": 0, "floor": 1, "ceil": 2, "even": 3, "rceil": 4, "two scales": 5, "fixed": 6}
RULE_MAX, RULE_FLOOR, RULE_CEIL, RULE_EVEN, RULE_RCEIL, RULE_TWO_SCALES, RULE_FIXED = range(7)


@device
def largest_bits(bits, m):  # pragma: no cover - compiled
    """Return the largest magnitude of `m` float32 as bits, whose order is that of magnitudes, NaN the greatest."""
    found = np.uint32(0)
    for i in range(m):
        magnitude = np.uint32(bits[i] & MAGNITUDE)
        found = magnitude if magnitude > found else found
    return found


@device
def scale_of(amax, whole, number, of_scales):  # pragma: no cover - compiled
    """Return the scale for a positive finite amax, and 1 where it was clipped."""
    rule, largest = whole[10], number[0]
    if rule == RULE_FIXED:
        return number[3], 0
    if rule == RULE_MAX:
        return np.float64(np.float32(amax / largest)), 0
    if rule == RULE_TWO_SCALES:
        s = np.float64(np.float32(amax / np.float64(np.float32(largest * number[2]))))
        # The scale of a granule is itself a number of a narrow
        # format: precision, emin and maximum are in `of_scales`.
        s = multiple(s, max(exponent_of(s), np.int64(of_scales[1])) - np.int64(of_scales[0]) + 1)
        clipped = s > of_scales[2]
        return np.float64(np.float32(number[2] * min(s, of_scales[2]))), np.int64(clipped)
    if rule == RULE_EVEN:
        amax = multiple(amax, exponent_of(amax) - whole[3] + 1)
    e = exponent_of(amax) - whole[11]
    if rule == RULE_CEIL:
        # The least e with largest 2^e >= amax, by the bits: a logarithm would err next to powers of two.
        e = exponent_of(amax) - exponent_of(largest)
        if as_int64(amax) & FRACTION > as_int64(largest) & FRACTION:
            e += 1
    elif rule == RULE_RCEIL:
        quotient = np.float64(np.float32(amax / largest))
        # A quotient that vanished is below every exponent, and is clipped.
        e = whole[12] - 1 if quotient == 0 else exponent_of(quotient)
        if quotient != 0 and as_int64(quotient) & FRACTION != 0:
            e += 1
    kept = min(max(e, whole[12]), whole[13])
    return as_float64((kept + 1023) << 52), np.int64(kept != e)


@device
def least_bits(bits, m):  # pragma: no cover - compiled
    """Return the least magnitude that is not zero, of `m` float32 as bits; 0 where all are zero."""
    # Less 1 zero is the greatest.
    found = np.uint32(0xFFFFFFFF)
    for i in range(m):
        magnitude = np.uint32(np.uint32(bits[i] & MAGNITUDE) - np.uint32(1))
        found = magnitude if magnitude < found else found
    return np.uint32(found + np.uint32(1))


@device
def count_granule(bits, m, top, scale, clipped, whole, counts, extremes):  # pragma: no cover - compiled
    """Count what is one for a granule that is not broken: its scale, its largest and least quotient."""
    counts[0] += clipped
    if top == 0:
        counts[5] += 1
    elif scale == 0:
        # A scale that vanished takes every quotient with it, of which some are zero before they are rounded.
        counts[6] += 1
        for i in range(m):
            quotient = np.float64(as_float32(np.uint32(bits[i] & MAGNITUDE))) * FLUSHING
            if quotient != 0:
                counts[2] += 1
                extremes[0], extremes[1] = max(extremes[0], quotient), min(extremes[1], quotient)
    else:
        # Division keeps the order, so that those of the largest and the least magnitude are the extremes.
        most, least = np.float64(as_float32(top)) / scale, np.float64(as_float32(least_bits(bits, m))) / scale
        extremes[0], extremes[1] = max(extremes[0], most), min(extremes[1], least)
        extremes[2], extremes[3] = max(extremes[2], scale), min(extremes[3], scale)
        counts[6] += multiple(most, max(exponent_of(most), whole[4]) - whole[3] + 1) == 0


@device
def count_elements(of_elements, counts):  # pragma: no cover - compiled
    """Add how many elements were beyond the range, vanished, or are subnormal."""
    for j in range(3):
        counts[1 + j] += of_elements[j]


@kernel
def granule_amax(source, target, table, first, last):  # pragma: no cover - compiled
    """Write the bits of the largest magnitude of each granule, as uint32, whose order is that of magnitudes."""
    whole = view(table, 15, np.int64)
    length, width, granules = whole[0], whole[1], whole[2]
    out = view(target, last, np.uint32)
    for g in range(first, last):
        row, place = g // granules, g % granules
        m = min(width, length - place * width)
        bits = view(source + 4 * (row * length + place * width), m, np.uint32)
        out[g] = largest_bits(bits, m)


@device
def quick_batch(g, memory, start, n, shared, whole, number, of_scales, counts, extremes):  # pragma: no cover - compiled
    """Quantize the `n` elements of whole short granules from g on in one loop; False where that is not sure.

    Then nothing is counted.
    """
    width, source = whole[1], memory[0] + 4 * start
    scales = view(memory[2], g + n, np.float32)
    is_power_of_two = True
    for begin in range(0, n, width):
        m = min(width, n - begin)
        top = largest_bits(view(source + 4 * begin, m, np.uint32), m)
        scale, clipped = 1.0, np.int64(0)
        if 0 < top < INFINITE:
            scale, clipped = scale_of(np.float64(as_float32(top)), whole, number, of_scales)
        # Kept for the counting, at the granule's first place.
        shared[2, begin], shared[3, begin] = as_float32(top), np.float32(clipped)
        if top >= INFINITE or not LEAST_SCALE <= scale <= 1.0 / LEAST_SCALE:
            return False
        is_power_of_two = is_power_of_two and as_int64(scale) & FRACTION == 0
        # Written even if a later granule ends this: then all of them are quantized again, one by one.
        scales[g + begin // width] = np.float32(scale)
        reciprocal, narrow = np.float32(1.0 / scale), np.float32(scale)
        for i in range(begin, begin + m):
            shared[0, i], shared[1, i] = reciprocal, narrow
    x, out = view(source, n, np.float32), view(memory[1] + 4 * start, n, np.float32)
    of_elements, is_doubtful = round_narrow(x, shared, out, view(memory[3] + start, n, np.uint8), n, whole, number)
    if is_doubtful and not is_power_of_two:
        return False
    if whole[14]:
        count_elements(of_elements, counts)
        for begin in range(0, n, width):
            m = min(width, n - begin)
            bits, top, scale = view(source + 4 * begin, m, np.uint32), shared[2, begin], np.float64(shared[1, begin])
            count_granule(bits, m, as_uint32(top), scale, np.int64(shared[3, begin]), whole, counts, extremes)
    return True


@outside
def quantize_granule(g, memory, whole, number, of_scales, counts, extremes):  # pragma: no cover - compiled
    """Quantize granule g and count it."""
    length, width, granules = whole[0], whole[1], whole[2]
    row, place = g // granules, g % granules
    m, start = min(width, length - place * width), row * length + place * width
    bits, x = view(memory[0] + 4 * start, m, np.uint32), view(memory[0] + 4 * start, m, np.float32)
    out, codes = view(memory[1] + 4 * start, m, np.float32), view(memory[3] + start, m, np.uint8)
    scales = view(memory[2], g + 1, np.float32)
    top = largest_bits(bits, m)
    # An infinity or a NaN has no scale: the whole granule is NaN.
    if top >= INFINITE or (whole[10] == RULE_FIXED and number[3] != number[3]):
        scales[g] = np.nan
        counts[4] += m
        for i in range(m):
            out[i] = np.nan
            codes[i] = np.uint8(whole[9])
        return
    scale, clipped = 1.0, np.int64(0)
    if top > 0 or whole[10] == RULE_FIXED:
        scale, clipped = scale_of(np.float64(as_float32(top)), whole, number, of_scales)
    scales[g] = np.float32(scale)
    if whole[5]:
        of_elements = round_in_parts(x, scale, out, codes, m, whole, number)
    else:
        of_elements = round_whole(x, scale, out, codes, m, whole, number)
    if whole[14]:
        count_granule(bits, m, top, scale, clipped, whole, counts, extremes)
        if scale != 0:
            count_elements(of_elements, counts)


@kernel
def quantize_granules(addresses, table, first, last, found, of_scales):  # pragma: no cover - compiled
    """Quantize granules first .. last; `addresses` of x, values, scales, codes; counts into `found`.

    `found` holds int64: clipped scales, overflow, underflow, subnormal, broken elements, zero and dead
    granules; then float64: largest and smallest quotient, largest and smallest scale. Short granules go many at a
    time.
    """
    memory = view(addresses, 4, np.int64)
    whole, number = view(table, 15, np.int64), view(table + 8 * 15, 4, np.float64)
    scales_format = view(of_scales, 3, np.float64)
    counts, extremes = view(found, 7, np.int64), view(found + 8 * 7, 4, np.float64)
    length, width, granules = whole[0], whole[1], whole[2]
    shared = np.empty((4, PART), np.float32)
    at_once = PART // width if whole[5] else 1
    g = first
    while g < last:
        place = g % granules
        # Never beyond the end of a row, where a granule may be shorter.
        several = max(min(at_once, granules - place, last - g), 1)
        start = g // granules * length + place * width
        n = min(several * width, length - place * width)
        if at_once <= 1 or not quick_batch(g, memory, start, n, shared, whole, number, scales_format, counts, extremes):
            for one in range(g, g + several):
                quantize_granule(one, memory, whole, number, scales_format, counts, extremes)
        g += several
