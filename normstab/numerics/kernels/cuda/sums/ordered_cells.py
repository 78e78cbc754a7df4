"""What the additions of open sums did, counted in registers: every sum counts its own, no step adds across threads.

    a tile of open sums     [ s0 ][ s1 ][ s2 ] ...         one register each
    its cells               [ c0 ][ c1 ][ c2 ] ...         32 bits: three words of 10-bit fields, two magnitudes
                                                           64 bits: two words of 12-bit fields, two magnitudes
                                                           both: one word more for what additions lost, 32 bits

A cell is added to at most MOST_STEPS times before a program adds all of them up and to memory (`settle_sums`). Where
sums are joined two by two, so are their cells (`halved`).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda import cuda_bits
from normstab.numerics.kernels.cuda.device_log import LOSSES_AT
from normstab.numerics.kernels.cuda.float32_events import settled_cells
from normstab.numerics.tallies.tally import COUNTERS

__all__ = ["MOST_CELLS", "MOST_STEPS", "grown", "halved", "left_and_right", "no_cells", "settle_sums", "with_losses"]

# A field of 21 bits holds what so many cells counted in so many steps.
MOST_CELLS, MOST_STEPS = 2048, 1023
FIELD, MASK, WIDE = tl.constexpr(cuda_bits.FIELD.value), tl.constexpr(2**12 - 1), tl.constexpr(21)
OVERFLOW, NUMBER = tl.constexpr(COUNTERS.index("overflow")), tl.constexpr(len(COUNTERS) - 1)
LARGEST, BELOW_INF = tl.constexpr(len(COUNTERS)), tl.constexpr(len(COUNTERS) + 1)
LOST = tl.constexpr(LOSSES_AT)


@triton.jit
def no_cells(like, NARROW: tl.constexpr):
    """Return empty cells for sums of the shape and width of `like`."""
    nothing = like * 0
    cells = (nothing, nothing, nothing, nothing, nothing.to(tl.int32))
    if NARROW:
        cells = (nothing, nothing, nothing, nothing, nothing, nothing)
    return cells


@triton.jit
def grown(cells, found, NARROW: tl.constexpr):
    """Return the cells with the events and the magnitudes of one step added."""
    if NARROW:
        first, second, third, largest, below_inf, lost = cells
        one, two, three, top, low = found
        both = (first + one, second + two, third + three, tl.maximum(largest, top), tl.maximum(below_inf, low), lost)
    else:
        first, second, largest, below_inf, lost = cells
        one, two, top, low = found
        both = (first + one, second + two, tl.maximum(largest, top), tl.maximum(below_inf, low), lost)
    return both


@triton.jit
def with_losses(cells, found, NARROW: tl.constexpr):
    """Return the cells with what one addition lost added."""
    if NARROW:
        both = (cells[0], cells[1], cells[2], cells[3], cells[4], cells[5] + found)
    else:
        both = (cells[0], cells[1], cells[2], cells[3], cells[4] + found)
    return both


@triton.jit
def left_and_right(x, ROWS: tl.constexpr, PAIRS: tl.constexpr):
    """Return the elements of even place along the second axis, and those of odd place."""
    return tl.split(tl.reshape(x, (ROWS, PAIRS, 2)))


@triton.jit
def halved(cells, ROWS: tl.constexpr, PAIRS: tl.constexpr, NARROW: tl.constexpr):
    """Return cells for half as many sums: each counts what two neighbours counted."""
    first = left_and_right(cells[0], ROWS, PAIRS)
    second = left_and_right(cells[1], ROWS, PAIRS)
    third = left_and_right(cells[2], ROWS, PAIRS)
    fourth = left_and_right(cells[3], ROWS, PAIRS)
    fifth = left_and_right(cells[4], ROWS, PAIRS)
    if NARROW:
        lost = left_and_right(cells[5], ROWS, PAIRS)
        half = (
            first[0] + first[1], second[0] + second[1], third[0] + third[1],
            tl.maximum(fourth[0], fourth[1]), tl.maximum(fifth[0], fifth[1]), lost[0] + lost[1],
        )  # fmt: skip
    else:
        top, low = tl.maximum(third[0], third[1]), tl.maximum(fourth[0], fourth[1])
        half = (first[0] + first[1], second[0] + second[1], top, low, fifth[0] + fifth[1])
    return half


@triton.jit
def settle_sums(cells, counts, NARROW: tl.constexpr, LOSES: tl.constexpr):
    """Add what the cells of a program counted to `counts`, int64: see `launches`."""
    if LOSES:
        settle_losses(cells[5] if NARROW else cells[4], counts)
    if NARROW:
        settled_cells((cells[0], cells[1], cells[2], cells[3], cells[4]), counts)
    else:
        first, second, largest, below_inf, _ = cells
        # Nine events of 12 bits, five and four a word, laid out as three words of 21: sums of all cells fit.
        one = tl.sum(moved(first, 0, 0) | moved(first, 1, 1) | moved(first, 2, 2))
        two = tl.sum(moved(first, 3, 0) | moved(first, 4, 1) | moved(second, 0, 2))
        three = tl.sum(moved(second, 1, 0) | moved(second, 2, 1) | moved(second, 3, 2))
        place = tl.arange(0, 16)
        word = tl.where(place < 3, one, tl.where(place < 6, two, three))
        often = (word >> ((place % 3) * WIDE)) & (2**21 - 1)
        often = tl.where(place < NUMBER, often, 0)
        tl.atomic_add(counts + OVERFLOW + place, often, mask=often > 0, sem="relaxed")
        top, low = tl.max(largest), tl.max(below_inf)
        tl.atomic_max(counts + LARGEST, top, mask=top > 0, sem="relaxed")
        tl.atomic_max(counts + BELOW_INF, low, mask=low > 0, sem="relaxed")


@triton.jit
def settle_losses(lost, counts):
    """Add what was absorbed and cancelled to `counts`; each cell counted fewer than 2^10 of either."""
    wide = lost.to(tl.int64)
    often = tl.sum((wide & (2**10 - 1)) | ((wide >> 10) << 32))
    place = tl.arange(0, 2)
    often = (often >> (32 * place)) & (2**32 - 1)
    tl.atomic_add(counts + LOST + place, often, mask=often > 0, sem="relaxed")


@triton.jit
def moved(word, FROM: tl.constexpr, TO: tl.constexpr):
    """Return field FROM of a cell's word as field TO of 21 bits."""
    return ((word >> (FROM * FIELD)) & MASK) << (TO * WIDE)
