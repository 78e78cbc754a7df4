"""What rounding destroyed, counted in registers: nine events in three words, two magnitudes, one addition at the end.

    elements of a tile      [0 1 2 3][4 5 6 7] ...     four neighbours are one thread's
    cells in registers      [   0   ][   1   ] ...     each cell: three words of three fields of ten bits

A cell takes four elements a tile and fewer than 2^10 in all (`MOST_TILES`); a program adds its cells up when it ends,
in the few atomic additions that a ledger costs.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.float32_bits import INF32, LEAST_NORMAL, MAGNITUDE32, SATURATES
from normstab.numerics.tallies.tally import COUNTERS

__all__ = ["MOST_TILES", "TOGETHER", "added", "events32", "settled_cells"]

# Elements of a cell in a tile, and how many tiles a program may take: 4 * 255 < 2^10.
TOGETHER, MOST_TILES = 4, 255
TOGETHER_ = tl.constexpr(TOGETHER)
FIELD, MASK, WIDE = tl.constexpr(10), tl.constexpr(2**10 - 1), tl.constexpr(21)
OVERFLOW, NUMBER = tl.constexpr(COUNTERS.index("overflow")), tl.constexpr(len(COUNTERS) - 1)
# After the magnitudes of float64 (cuda_bits) those of float32.
LARGEST, BELOW_INF = tl.constexpr(len(COUNTERS) + 2), tl.constexpr(len(COUNTERS) + 3)


@triton.jit
def events32(x, seen, y, is_beyond, has_nan, has_inf, by_zero, inside, rule):
    """Return what rounding x to y did, given the operands that x came from: three words, and two magnitudes.

    `seen` is the magnitude of x rounded to float32 toward zero, which x itself is in a cast. What each event is says
    `reference.count`; their order is that of COUNTERS. All are zero but where `inside`.
    """
    a, result = x & MAGNITUDE32, y & MAGNITUDE32
    is_inf, is_nonzero = a == INF32, (a != 0) & (a < INF32)
    overflow = is_beyond | (is_inf & ((has_nan | has_inf | by_zero) == 0))
    saturated = (is_beyond | is_inf) & (rule[SATURATES] != 0)
    subnormal = (result > 0) & (result < rule[LEAST_NORMAL])
    # Three events a word, ten bits each, so that a sum of words is three sums.
    one = overflow.to(tl.int32) | (saturated.to(tl.int32) << FIELD)
    one |= (is_nonzero & (result == 0)).to(tl.int32) << (2 * FIELD)
    two = subnormal.to(tl.int32) | (((result > INF32) & (has_nan == 0)).to(tl.int32) << FIELD)
    two |= has_nan.to(tl.int32) << (2 * FIELD)
    three = ((result == INF32) & has_inf).to(tl.int32) | (by_zero.to(tl.int32) << FIELD)
    three |= (is_nonzero & (y != x)).to(tl.int32) << (2 * FIELD)
    is_seen = inside & is_nonzero
    one, two, three = tl.where(inside, one, 0), tl.where(inside, two, 0), tl.where(inside, three, 0)
    return one, two, three, tl.where(is_seen, seen, 0), tl.where(is_seen, INF32 - seen, 0)


@triton.jit
def added(cells, x, seen, y, is_beyond, has_nan, has_inf, by_zero, inside, rule, BLOCK: tl.constexpr):
    """Return the cells with a tile added: the `events32` of four elements in each."""
    first, second, third, largest, below_inf = cells
    one, two, three, top, low = events32(x, seen, y, is_beyond, has_nan, has_inf, by_zero, inside, rule)
    first += tl.sum(tl.reshape(one, (BLOCK // TOGETHER_, TOGETHER_)), axis=1)
    second += tl.sum(tl.reshape(two, (BLOCK // TOGETHER_, TOGETHER_)), axis=1)
    third += tl.sum(tl.reshape(three, (BLOCK // TOGETHER_, TOGETHER_)), axis=1)
    top = tl.max(tl.reshape(top, (BLOCK // TOGETHER_, TOGETHER_)), axis=1)
    low = tl.max(tl.reshape(low, (BLOCK // TOGETHER_, TOGETHER_)), axis=1)
    return first, second, third, tl.maximum(largest, top), tl.maximum(below_inf, low)


@triton.jit
def spread(word):
    """Return a word's three fields, each of 21 bits, in an int64: 2048 cells of 2^10 do not reach the next one."""
    wide = word.to(tl.int64)
    return (wide & MASK) | (((wide >> FIELD) & MASK) << WIDE) | (((wide >> (2 * FIELD)) & MASK) << (2 * WIDE))


@triton.jit
def settled_cells(cells, counts):
    """Add what a program has counted to `counts`, int64: see `launches`. Cells have any shape, 2048 at most."""
    first, second, third, largest, below_inf = cells
    one, two, three = tl.sum(spread(first)), tl.sum(spread(second)), tl.sum(spread(third))
    place = tl.arange(0, 16)
    # Place i of COUNTERS from overflow on is field i % 3 of word i // 3.
    word = tl.where(place < 3, one, tl.where(place < 6, two, three))
    often = (word >> ((place % 3) * WIDE)) & (2**21 - 1)
    often = tl.where(place < NUMBER, often, 0)
    tl.atomic_add(counts + OVERFLOW + place, often, mask=often > 0, sem="relaxed")
    top, low = tl.max(largest).to(tl.int64), tl.max(below_inf).to(tl.int64)
    tl.atomic_max(counts + LARGEST, top, mask=top > 0, sem="relaxed")
    tl.atomic_max(counts + BELOW_INF, low, mask=low > 0, sem="relaxed")
