"""Exact sums, and exact sums of products, rounded once: the Triton kernels.

    tile            ROWS sums x LANES addends of each at a time, read where they lie
    first look      what is not finite, the signs, the lowest and the highest place there are
    further looks   each sums four digits of all addends (exact_digits), as many as the places need: mostly one
    at the end      lanes added up, digits carried, one rounding, its counters

Few rows are cut among programs, which is exact: each adds its digits to those of the row in memory, and a kernel of
its own rounds them (`settle_exact_kernel`). The order of additions does not matter anywhere.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.cuda_bits import (
    INF64,
    SIGN64,
    count_events,
    count_histogram,
    drawn_at,
    rounded,
    store_result,
    widened,
)
from normstab.numerics.kernels.cuda.float32_bits import widened32
from normstab.numerics.kernels.cuda.sums.exact_digits import (
    ABOVE,
    BELOW,
    BITS,
    DOWN,
    INF_OPERAND,
    MINUS,
    NAN_OPERAND,
    PLUS,
    PRODUCT,
    TOGETHER,
    added_digits,
    carried_digit,
    is_wide,
    no_digits,
    number_of,
    seen_of,
    taken_apart,
)
from normstab.numerics.kernels.cuda.sums.ordered_kernel import place_of

__all__ = ["VARYING", "exact_kernel", "settle_exact_kernel"]

# These change with every call or shape, and must not be compiled in.
VARYING = ["rows", "n", "span", "word", "step", "first_index"]
FOUR, BEYOND = tl.constexpr(TOGETHER), tl.constexpr(2**20)
NAN64 = tl.constexpr((2047 << 52) | (1 << 51))


@triton.jit
def either(a, b):
    """Return the bits that one of both has."""
    return a | b


@triton.jit
def read_factors(first, second, position, inside, axes, DIGITS: tl.constexpr, BIAS: tl.constexpr, KIND: tl.constexpr):
    """Return the bits of the factors at a position; of what is no product the same twice."""
    a = tl.load(first + place_of(position, axes[0][0], axes[0][1]), mask=inside, other=0)
    a = widened(a, DIGITS, BIAS) if is_wide(KIND) else widened32(a, DIGITS)
    b = a
    if (KIND & PRODUCT) > 0:
        b = tl.load(second + place_of(position, axes[1][0], axes[1][1]), mask=inside, other=0)
        b = widened(b, DIGITS, BIAS) if is_wide(KIND) else widened32(b, DIGITS)
    return a, b


@triton.jit
def first_look(
    first, second, start, end, is_row, reduced,
    DIGITS: tl.constexpr, BIAS: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Return what is noted of each row, and the lowest and the highest place of a tile."""
    seen = tl.zeros([ROWS, LANES], tl.int32)
    lowest, highest = seen + BEYOND, seen - 1
    for base in range(start, end, LANES):
        position = base + tl.arange(0, LANES)[None, :]
        inside = is_row & (position < end)
        a, b = read_factors(first, second, position, inside, reduced, DIGITS, BIAS, KIND)
        m, place, negative, is_special, is_nan = taken_apart(a, b, KIND)
        seen |= tl.where(inside, seen_of(a, b, negative, is_special, is_nan, KIND), 0)
        # Of a zero, and of what is not finite, m is 0: it has no digits.
        lowest = tl.minimum(lowest, tl.where(m != 0, place, BEYOND))
        highest = tl.maximum(highest, tl.where(m != 0, place, -1))
    return tl.reduce(seen, 1, either), tl.min(tl.min(lowest, axis=1), axis=0), tl.max(tl.max(highest, axis=1), axis=0)


@triton.jit
def four_digits(
    first, second, start, end, is_row, reduced, place,
    DIGITS: tl.constexpr, BIAS: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Return the sums of four digits of each row, from `place` on."""
    nothing = tl.zeros([ROWS, LANES], tl.int64)
    sums = (nothing, nothing, nothing, nothing)
    for base in range(start, end, LANES):
        position = base + tl.arange(0, LANES)[None, :]
        a, b = read_factors(first, second, position, is_row & (position < end), reduced, DIGITS, BIAS, KIND)
        m, at, negative, _, _ = taken_apart(a, b, KIND)
        sums = added_digits(sums, m, at, negative, place, KIND)
    return tl.sum(sums[0], axis=1), tl.sum(sums[1], axis=1), tl.sum(sums[2], axis=1), tl.sum(sums[3], axis=1)


@triton.jit
def write_rounded(
    state, seen, row, is_row, target, table, counts, bins, drawn_from,
    UNIT: tl.constexpr, KIND: tl.constexpr, WIDTH: tl.constexpr, COUNTS: tl.constexpr, HISTOGRAM: tl.constexpr,
):  # fmt: skip
    """Round the sums of rows, write and count them."""
    x = number_of(state, UNIT, KIND)
    has_minus, has_plus = (seen & MINUS) != 0, (seen & PLUS) != 0
    # An exact zero is -0 if every addend is; downwards, if any is.
    is_minus = has_minus if (KIND & DOWN) > 0 else has_minus & (has_plus == 0)
    x = tl.where((x == 0) & is_minus, SIGN64, x)
    above, below = (seen & ABOVE) != 0, (seen & BELOW) != 0
    x = tl.where(above, INF64, tl.where(below, INF64 | SIGN64, x))
    x = tl.where(above & below, NAN64, x)
    drawn = x * 0
    if WIDTH > 0:
        word, step, first_index, later = drawn_from
        drawn = drawn_at(word, step + tl.load(later), row + first_index, WIDTH)
    y, is_beyond = rounded(x, drawn, table)
    store_result(target + row, y, is_row)
    if COUNTS:
        has_nan, has_inf = (seen & NAN_OPERAND) != 0, (seen & INF_OPERAND) != 0
        count_events(counts, x, y, is_beyond, has_nan, has_inf, x != x, is_row, table)
    if HISTOGRAM:
        count_histogram(bins, x, is_row)


@triton.jit(do_not_specialize=VARYING)
def exact_kernel(
    first, second, target, table, counts, bins, digits, noted, rows, n, span, kept, reduced,
    word: tl.int64, step: tl.int64, first_index: tl.int64, later,
    DIGITS: tl.constexpr, BIAS: tl.constexpr, KIND: tl.constexpr, UNIT: tl.constexpr, SIGNIFICAND: tl.constexpr,
    PLACES: tl.constexpr, WIDTH: tl.constexpr, COUNTS: tl.constexpr, HISTOGRAM: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Sum rows into `target`, or, PLACES > 0, chunks of them, `span` long, into the digits of rows, so many each.

    `kept` and `reduced` are (sizes, strides) of axes, fastest first, for each of two factors.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < rows
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, n)
    left = first + place_of(row, kept[0][0], kept[0][1])[:, None]
    right = second + place_of(row, kept[1][0], kept[1][1])[:, None]
    seen, lowest, highest = first_look(
        left, right, start, end, is_row[:, None], reduced, DIGITS, BIAS, KIND, ROWS, LANES
    )  # fmt: skip
    state, following = no_digits(row), lowest // BITS
    for place in range(lowest // BITS, (highest + SIGNIFICAND - 1) // BITS + 1, FOUR):
        a, b, c, d = four_digits(
            left, right, start, end, is_row[:, None], reduced, place, DIGITS, BIAS, KIND, ROWS, LANES
        )  # fmt: skip
        following = place + FOUR
        if PLACES > 0:
            memory = digits + row * PLACES + place
            add_digit(memory, a, is_row)
            add_digit(memory + 1, b, is_row)
            add_digit(memory + 2, c, is_row)
            add_digit(memory + 3, d, is_row)
        else:
            state = carried_digit(carried_digit(state, a, place), b, place + 1)
            state = carried_digit(carried_digit(state, c, place + 2), d, place + 3)
    if PLACES > 0:
        tl.atomic_or(noted + row, seen, mask=is_row, sem="relaxed")
    else:
        # What is still carried: 2^33 at most, two digits.
        state = carried_digit(carried_digit(state, row * 0, following), row * 0, following + 1)
        write_rounded(
            state, seen, row, is_row, target, table, counts, bins, (word, step, first_index, later),
            UNIT, KIND, WIDTH, COUNTS, HISTOGRAM,
        )  # fmt: skip


@triton.jit
def add_digit(memory, total, is_row):
    """Add a program's sums of one digit to those in memory, where there is anything to add."""
    tl.atomic_add(memory, total, mask=is_row & (total != 0), sem="relaxed")


@triton.jit(do_not_specialize=VARYING)
def settle_exact_kernel(
    target, table, counts, bins, digits, noted, rows, word: tl.int64, step: tl.int64, first_index: tl.int64, later,
    KIND: tl.constexpr, UNIT: tl.constexpr, PLACES: tl.constexpr,
    WIDTH: tl.constexpr, COUNTS: tl.constexpr, HISTOGRAM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Round the sums whose digits, PLACES a row, all programs of `exact_kernel` have added up."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < rows
    state = no_digits(row)
    for place in range(PLACES):
        state = carried_digit(state, tl.load(digits + row * PLACES + place, mask=is_row, other=0), place)
    write_rounded(
        state, tl.load(noted + row, mask=is_row, other=0), row, is_row, target, table, counts, bins,
        (word, step, first_index, later), UNIT, KIND, WIDTH, COUNTS, HISTOGRAM,
    )  # fmt: skip
