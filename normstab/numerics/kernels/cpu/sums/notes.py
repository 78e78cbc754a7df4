"""What the fast kernels saw of a group of sums, until it is known that nothing in it was special: then it is counted.

    base  [ notes of sums, addends, Kahan's | magnitudes of each | counters of their exponents | tile ... ]

An infinity, a NaN or an overflow counts by its operands, which vectors no longer have. So they count nothing while
they add: they note, and a group that saw such a thing is thrown away and summed again by the general kernel. The notes
lie at the beginning of the buffers of `tiles`.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.compile import as_float32, as_int64, outside, view
from normstab.numerics.kernels.cpu.counting import (
    COUNT,
    HISTOGRAM_BINS,
    INEXACT,
    LARGEST,
    OVERFLOW,
    SATURATED,
    SCRATCH,
    SMALLEST,
    SUBNORMAL,
    UNDERFLOW,
    ZERO_BIN,
)
from normstab.numerics.kernels.cpu.cpu_round import EXPONENTS, FIRST_NORMAL_BIN
from normstab.numerics.kernels.cpu.vector.lane_operations import is_full
from normstab.numerics.kernels.cpu.vector.note_code import INEXACT as NOTE_OF_INEXACT
from normstab.numerics.kernels.cpu.vector.note_code import MOST_KEPT, NOTES_OF_GROUP, OF_ADDENDS, kept_at, seen_at
from normstab.numerics.kernels.cpu.vector.note_code import OVERFLOW as NOTE_OF_OVERFLOW
from normstab.numerics.kernels.cpu.vector.vectors import LINE, SEEN, WIDTH

__all__ = ["SIZE_OF_NOTES", "begin_group", "has_special", "number_moved", "settle_group", "tally"]

u32 = np.uint32
# Offsets in the buffers, and the bytes of all of it.
SEEN_OF_ADDENDS, KEPT, EXPONENTS_AT = seen_at(OF_ADDENDS), kept_at(0), kept_at(NOTES_OF_GROUP)
SIZE_OF_NOTES = EXPONENTS_AT + NOTES_OF_GROUP * 4 * EXPONENTS
SIZE_OF_KEPT = MOST_KEPT * LINE
LEAST_NORMAL32 = u32(1 << 23)


@outside
def begin_group(plan):  # pragma: no cover - compiled
    """Make all notes, and the magnitudes counted, empty."""
    words = view(plan.base, NOTES_OF_GROUP * SEEN, u32)
    for j in range(NOTES_OF_GROUP * SEEN):
        # The second vector of a note is the smallest less 1, so that none yet is the greatest.
        words[j] = u32(0xFFFFFFFF) if j % SEEN // WIDTH == 1 else u32(0)
    if is_full(plan.way) and plan.way.bins != 0:
        exponents = view(plan.base + EXPONENTS_AT, NOTES_OF_GROUP * EXPONENTS, u32)
        for j in range(NOTES_OF_GROUP * EXPONENTS):
            exponents[j] = u32(0)


@outside
def has_special(plan, special):  # pragma: no cover - compiled
    """Whether any magnitude of the group is special, or is counted in a histogram and subnormal in float32."""
    words = view(plan.base, NOTES_OF_GROUP * SEEN, u32)
    # Bins are counted by the exponent of float32, which subnormals share.
    least = LEAST_NORMAL32 - u32(1) if is_full(plan.way) and plan.way.bins != 0 else u32(0)
    for note in range(0, NOTES_OF_GROUP * SEEN, SEEN):
        for j in range(WIDTH):
            if words[note + j] >= u32(special) or words[note + WIDTH + j] < least:
                return True
    return False


@outside
def tally(plan, which, vectors):  # pragma: no cover - compiled
    """Count by their exponents the magnitudes of `vectors` vectors beside note `which`, if there is a histogram."""
    if is_full(plan.way) and plan.way.bins != 0:
        sizes = view(plan.base + KEPT + which * SIZE_OF_KEPT, vectors * WIDTH, u32)
        exponents = view(plan.base + EXPONENTS_AT + which * 4 * EXPONENTS, EXPONENTS, u32)
        for i in range(vectors * WIDTH):  # four counters an exponent: increments of one would wait for each other
            exponents[4 * np.int64(sizes[i] >> u32(23)) + (i & 3)] += u32(1)


@outside
def number_moved(plan):  # pragma: no cover - compiled
    """Return how many addends moved: those that are inexact."""
    words, moved = view(plan.base + SEEN_OF_ADDENDS, SEEN, u32), np.int64(0)
    for j in range(WIDTH):
        moved += np.int64(words[NOTE_OF_INEXACT * WIDTH + j])
    return moved


@outside
def settle_group(plan, which, n, counts, apart, bins):  # pragma: no cover - compiled
    """Count n roundings, noted as number `which`, in the scratch (`apart` bytes each) and the bins of that number."""
    scratch = view(counts + which * apart, SCRATCH, np.int64)
    words = view(plan.base + which * 4 * SEEN, SEEN, u32)
    scratch[COUNT] += n
    for j in range(WIDTH):
        scratch[SUBNORMAL] += np.int64(words[2 * WIDTH + j])
        scratch[UNDERFLOW] += np.int64(words[3 * WIDTH + j])
        scratch[INEXACT] += np.int64(words[NOTE_OF_INEXACT * WIDTH + j])
        # Overflows are noted only where they saturate.
        scratch[OVERFLOW] += np.int64(words[NOTE_OF_OVERFLOW * WIDTH + j])
        scratch[SATURATED] += np.int64(words[NOTE_OF_OVERFLOW * WIDTH + j])
        # A lane that saw nothing but zeros has no extremes.
        if words[j] != u32(0):
            scratch[LARGEST] = max(scratch[LARGEST], as_int64(np.float64(as_float32(words[j]))))
            least = as_int64(np.float64(as_float32(u32(words[WIDTH + j] + u32(1)))))
            scratch[SMALLEST] = min(scratch[SMALLEST], least)
    if is_full(plan.way) and plan.way.bins != 0:
        settle_exponents(plan.base + EXPONENTS_AT + which * 4 * EXPONENTS, n, bins + which * 8 * HISTOGRAM_BINS)


@outside
def settle_exponents(exponents_at, n, bins):  # pragma: no cover - compiled
    """Add n magnitudes to a histogram: those that are not zero by their exponents, whatever lies in idle lanes."""
    exponents, found = view(exponents_at, EXPONENTS, u32), view(bins, HISTOGRAM_BINS, np.int64)
    # Zeros, and what idle lanes hold, have exponent 0: zeros are what the others leave of n.
    rest = n
    for e in range(1, EXPONENTS // 4):
        number = np.int64(exponents[4 * e] + exponents[4 * e + 1] + exponents[4 * e + 2] + exponents[4 * e + 3])
        if number != 0:
            found[e + FIRST_NORMAL_BIN] += number
            rest -= number
    found[ZERO_BIN] += rest
