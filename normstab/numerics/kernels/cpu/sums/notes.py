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
    INF_PROPAGATED,
    LARGEST,
    NAN_PRODUCED,
    NAN_PROPAGATED,
    OVERFLOW,
    SATURATED,
    SCRATCH,
    SMALLEST,
    SUBNORMAL,
    UNDERFLOW,
    ZERO_BIN,
)
from normstab.numerics.kernels.cpu.cpu_round import EXPONENTS, FIRST_NORMAL_BIN
from normstab.numerics.kernels.cpu.vector.lane_bins import BINADES, VECTORS_AT_ONCE
from normstab.numerics.kernels.cpu.vector.lane_operations import count_binades, is_binned, is_careful
from normstab.numerics.kernels.cpu.vector.note_code import (
    ALIVE,
    BELOW,
    MOST_KEPT,
    NOTES_OF_GROUP,
    OF_ADDENDS,
    kept_at,
    seen_at,
)
from normstab.numerics.kernels.cpu.vector.note_code import INEXACT as NOTE_OF_INEXACT
from normstab.numerics.kernels.cpu.vector.note_code import INFINITE as NOTE_OF_INFINITE
from normstab.numerics.kernels.cpu.vector.note_code import NAN_PRODUCED as NOTE_OF_PRODUCED
from normstab.numerics.kernels.cpu.vector.note_code import NAN_PROPAGATED as NOTE_OF_PROPAGATED
from normstab.numerics.kernels.cpu.vector.note_code import OVERFLOW as NOTE_OF_OVERFLOW
from normstab.numerics.kernels.cpu.vector.note_code import SMALLEST as NOTE_OF_SMALLEST
from normstab.numerics.kernels.cpu.vector.vectors import INFINITY, LANES, LINE, SEEN, WIDTH
from normstab.numerics.kernels.nearest import BEYOND, INF_PLUS, SPECIAL

__all__ = [
    "SIZE_OF_NOTES",
    "begin_group",
    "begin_panel",
    "drop_exponents",
    "has_special",
    "number_moved",
    "settle_group",
    "tally",
]

u32 = np.uint32
# Offsets in the buffers, and the bytes of all of it.
SEEN_OF_ADDENDS, KEPT, EXPONENTS_AT = seen_at(OF_ADDENDS), kept_at(0), kept_at(NOTES_OF_GROUP)
SIZE_OF_NOTES = EXPONENTS_AT + NOTES_OF_GROUP * 4 * EXPONENTS
SIZE_OF_KEPT = MOST_KEPT * LINE
LEAST_NORMAL32 = u32(1 << 23)


@outside
def begin_group(plan):  # pragma: no cover - compiled
    """Make all notes empty."""
    words = view(plan.base, NOTES_OF_GROUP * SEEN, u32)
    for j in range(NOTES_OF_GROUP * SEEN):
        # The smallest less 1, of which none yet is the greatest, and below what something new is to be said.
        what = j % SEEN // WIDTH
        words[j] = u32(0xFFFFFFFF) if what in (NOTE_OF_SMALLEST, BELOW) else u32(0)


@outside
def drop_exponents(plan):  # pragma: no cover - compiled
    """Forget all magnitudes counted: at first, and those of a group that failed; what is settled is forgotten there."""
    if is_binned(plan.way):
        exponents = view(plan.base + EXPONENTS_AT, NOTES_OF_GROUP * EXPONENTS, u32)
        for j in range(NOTES_OF_GROUP * EXPONENTS):
            exponents[j] = u32(0)


@outside
def begin_panel(plan, found):  # pragma: no cover - compiled
    """Say that the first `found` lanes are sums."""
    masks = view(plan.base + ALIVE, LANES, np.int32)
    for j in range(LANES):
        masks[j] = -1 if j < found else 0


@outside
def has_special(plan):  # pragma: no cover - compiled
    """Whether any magnitude of the group is special, or is counted in a histogram and subnormal in float32.

    Careful ways note no magnitude of what is special, and round others as long as they are not beyond all.
    """
    table = view(plan.way.table, BEYOND + 1, np.int64)
    special = table[BEYOND] if is_careful(plan.way) else table[SPECIAL]
    words = view(plan.base, NOTES_OF_GROUP * SEEN, u32)
    # Bins are counted by the exponent of float32, which subnormals share.
    least = LEAST_NORMAL32 - u32(1) if is_binned(plan.way) else u32(0)
    for note in range(0, NOTES_OF_GROUP * SEEN, SEEN):
        for j in range(WIDTH):
            if words[note + j] >= u32(special) or words[note + WIDTH + j] < least:
                return True
    return False


@outside
def tally(plan, which, vectors):  # pragma: no cover - compiled
    """Count by their exponents the magnitudes of `vectors` vectors beside note `which`, if there is a histogram."""
    if is_binned(plan.way):
        kept, counters = plan.base + KEPT + which * SIZE_OF_KEPT, plan.base + EXPONENTS_AT + which * 4 * EXPONENTS
        # What the note has seen up to now spans these binades, and so does what it keeps.
        words = view(plan.base + which * 4 * SEEN, SEEN, u32)
        largest, less = u32(0), u32(0xFFFFFFFF)
        for j in range(WIDTH):
            largest, less = max(largest, words[j]), min(less, words[NOTE_OF_SMALLEST * WIDTH + j])
        top, bottom = np.int64(largest >> u32(23)), np.int64(u32(less + u32(1)) >> u32(23))
        sizes = view(kept, MOST_KEPT * LANES, u32)
        if vectors >= VECTORS_AT_ONCE and top - bottom < BINADES:
            blocks = (vectors + VECTORS_AT_ONCE - 1) // VECTORS_AT_ONCE
            for i in range(vectors * WIDTH, blocks * VECTORS_AT_ONCE * WIDTH):
                sizes[i] = u32(0)
            count_binades((kept, blocks, top, top - bottom + 1, counters))
            return
        exponents = view(counters, EXPONENTS, u32)
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
    overflows, infinite, largest, less = np.int64(0), np.int64(0), u32(0), u32(0xFFFFFFFF)
    for j in range(WIDTH):
        scratch[SUBNORMAL] += np.int64(words[2 * WIDTH + j])
        scratch[UNDERFLOW] += np.int64(words[3 * WIDTH + j])
        scratch[INEXACT] += np.int64(words[NOTE_OF_INEXACT * WIDTH + j])
        scratch[NAN_PRODUCED] += np.int64(words[NOTE_OF_PRODUCED * WIDTH + j])
        scratch[NAN_PROPAGATED] += np.int64(words[NOTE_OF_PROPAGATED * WIDTH + j])
        overflows += np.int64(words[NOTE_OF_OVERFLOW * WIDTH + j])
        infinite += np.int64(words[NOTE_OF_INFINITE * WIDTH + j])
        largest, less = max(largest, words[j]), min(less, words[NOTE_OF_SMALLEST * WIDTH + j])
    least = u32(less + u32(1))
    if largest != u32(0):
        scratch[LARGEST] = max(scratch[LARGEST], as_int64(np.float64(as_float32(largest))))
        scratch[SMALLEST] = min(scratch[SMALLEST], as_int64(np.float64(as_float32(least))))
    scratch[OVERFLOW] += overflows
    # What an infinity becomes: it stays one, or is the greatest number, or NaN, which is counted already.
    infinity = view(plan.way.table, INF_PLUS + 1, np.int64)[INF_PLUS]
    if infinity == INFINITY:
        scratch[INF_PROPAGATED] += infinite
    elif infinity < INFINITY:
        scratch[SATURATED] += overflows + infinite
    if is_binned(plan.way):
        counters = view(plan.base + EXPONENTS_AT + which * 4 * EXPONENTS, EXPONENTS, u32)
        settle_exponents(counters, least, largest, n, view(bins + which * 8 * HISTOGRAM_BINS, HISTOGRAM_BINS, np.int64))


@outside
def settle_exponents(exponents, least, largest, n, found):  # pragma: no cover - compiled
    """Move n magnitudes, those from `least` to `largest` and zeros, from the counters of their exponents to bins."""
    # Zeros, and what idle lanes hold, have exponent 0: zeros are what the others leave of n.
    rest, first = n, np.int64(least >> u32(23))
    for e in range(1 if first == 0 else first, np.int64(largest >> u32(23)) + 1):
        for i in range(4 * e, 4 * e + 4):
            found[e + FIRST_NORMAL_BIN] += np.int64(exponents[i])
            rest -= np.int64(exponents[i])
            exponents[i] = u32(0)
    found[ZERO_BIN] += rest
