"""The two Triton kernels: round a tensor; compute one of six operations in float64, round it once. Both count.

    elements        ..][ program 0 ][ program 1 ][ program 2 ][..      BLOCK each, one pass over memory
    Philox blocks     [            ][            ][            ]       whole ones for each program

With random bits the first program begins at the first element of a Philox block (`begin` <= 0), so that no two share
one. Tensors come as int16, int32 or int64 views of their bits. What a format and a rounding are is in the table
of a plan, so that one compilation serves all. They know no tensors; cuda_tensors does.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.cuda_bits import (
    INF64,
    MAGNITUDE64,
    SIGN64,
    as_float64,
    as_int64,
    count_events,
    count_histogram,
    drawn_fields,
    narrowed,
    rounded,
    store_result,
    widened,
)

__all__ = ["BLOCK", "CODES", "classes", "computed", "pointwise_kernel", "read", "round_kernel"]

# Elements per program; the counters of cuda_bits need fewer than 2^12.
BLOCK = 1024
# Name of an operation -> its code.
CODES = {"add": 0, "sub": 1, "mul": 2, "div": 3, "sqrt": 4, "fma": 5}
ADD, SUB, MUL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
DIV, SQRT, FMA = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
# These change with every call, and must not be compiled in.
VARYING = ["n", "begin", "word", "step", "philox_block"]


@triton.jit
def drawn_from(word, step, later, philox_block, like, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return the random fields of this program's elements, aligned at 2^62; zeros where WIDTH is 0.

    At `later` lies how many steps after `step` the launch runs: a captured one is launched once and runs often.
    """
    drawn = like * 0
    if WIDTH > 0:
        own = philox_block.to(tl.int64) + tl.program_id(0).to(tl.int64) * (BLOCK * WIDTH // 128)
        drawn = drawn_fields(word.to(tl.int64), step.to(tl.int64) + tl.load(later), own, WIDTH, BLOCK)
    return drawn


@triton.jit(do_not_specialize=VARYING)
def round_kernel(
    source,
    target,
    table,
    counts,
    bins,
    n: tl.int64,
    begin: tl.int64,
    word: tl.int64,
    step: tl.int64,
    philox_block: tl.int64,
    later,
    DIGITS: tl.constexpr,
    BIAS: tl.constexpr,
    COPIES: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNTS: tl.constexpr,
    HISTOGRAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Round `n` numbers at `source` into `target`, which may be `source`; the first program begins at `begin` <= 0.

    COPIES: every number is in the format and moves with all its bits. WIDTH: that of the random fields, or 0.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = begin.to(tl.int64) + start + tl.arange(0, BLOCK)
    inside = (offsets >= 0) & (offsets < n.to(tl.int64))
    bits = tl.load(source + offsets, mask=inside, other=0)
    x = widened(bits, DIGITS, BIAS)
    drawn = drawn_from(word, step, later, philox_block, x, WIDTH, BLOCK)
    y, is_beyond = rounded(x, drawn, table)
    # The bits as they came, since a NaN keeps its payload.
    if COPIES:
        tl.store(target + offsets, bits, mask=inside)
    else:
        tl.store(target + offsets, narrowed(y, DIGITS, BIAS).to(bits.dtype), mask=inside)
    if COUNTS:
        a = x & MAGNITUDE64
        count_events(counts, x, y, is_beyond, a > INF64, a == INF64, a < 0, inside, table)
    if HISTOGRAM:
        count_histogram(bins, x, inside)


@triton.jit
def read(source, offsets, inside):
    """Return the float64 bits of float32 or float64 operands."""
    bits = tl.load(source + offsets, mask=inside, other=0)
    return widened(bits, 23, 127) if bits.dtype == tl.int32 else bits


@triton.jit
def sum_to_odd(a, b, FOLDS: tl.constexpr, ROUNDS_DOWN: tl.constexpr):
    """Return the bits of a + b, rounded to odd where it FOLDS; an exact zero of unlike signs is -0 downwards.

    Source: Knuth's TwoSum; Boldo and Melquiond 2008 for round-to-odd; IEEE 754-2019, 6.3, for the zero.
    """
    s = a + b
    bits = as_int64(s)
    if FOLDS:
        b_seen = s - a
        error = (a - (s - b_seen)) + (b - b_seen)
        is_off = ((error > 0) | (error < 0)) & ((bits & MAGNITUDE64) < INF64) & ((bits & 1) == 0)
        away = tl.where((error > 0) == (bits >= 0), 1, -1)
        bits = tl.where(is_off, bits + away, bits)
    if ROUNDS_DOWN:
        unlike = (as_int64(a) ^ as_int64(b)) < 0
        bits = tl.where((s == 0) & unlike, SIGN64, bits)
    return bits


@triton.jit
def computed(a, b, c, OPERATION: tl.constexpr, FOLDS: tl.constexpr, ROUNDS_DOWN: tl.constexpr):
    """Return the bits of the result in the float64 carrier: correctly rounded, or rounded to odd.

    The operators are IEEE's own for float64; Triton's div_rn and sqrt_rn exist for float32, whose operators are not.
    """
    first, second = as_float64(a), as_float64(b)
    if OPERATION == ADD:
        bits = sum_to_odd(first, second, FOLDS, ROUNDS_DOWN)
    elif OPERATION == SUB:
        # By its bit: Triton's own minus is 0 - b, which loses the sign of a zero.
        bits = sum_to_odd(first, as_float64(b ^ SIGN64), FOLDS, ROUNDS_DOWN)
    elif OPERATION == MUL:
        bits = as_int64(first * second)
    elif OPERATION == DIV:
        bits = as_int64(first / second)
    elif OPERATION == SQRT:
        bits = as_int64(tl.sqrt(first))
    else:
        # The product of two 24-bit numbers is exact, so that its sum with c is the only one rounded.
        bits = sum_to_odd(first * second, as_float64(c), FOLDS, ROUNDS_DOWN)
    return bits


@triton.jit
def classes(a, b, c, OPERATION: tl.constexpr):
    """Return where an operand, given by its magnitude bits, is NaN; where one is infinite; where x / 0 is."""
    has_nan = (a > INF64) | (b > INF64) | (c > INF64)
    has_inf = (a == INF64) | (b == INF64) | (c == INF64)
    # Nowhere: magnitudes are not negative.
    by_zero = a < 0
    if OPERATION == DIV:
        by_zero = (b == 0) & (a != 0) & (a < INF64)
    return has_nan, has_inf, by_zero


@triton.jit(do_not_specialize=VARYING)
def pointwise_kernel(
    target, first, second, third, table, counts, bins,
    n: tl.int64, begin: tl.int64, word: tl.int64, step: tl.int64, philox_block: tl.int64, later,
    rows, columns,
    first_slow, first_middle, first_fast,
    second_slow, second_middle, second_fast,
    third_slow, third_middle, third_fast,
    OPERATION: tl.constexpr, FOLDS: tl.constexpr, ROUNDS_DOWN: tl.constexpr,
    WIDTH: tl.constexpr, COUNTS: tl.constexpr, HISTOGRAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute `n` dense results; each operand has its strides along three axes, the last two `rows` by `columns`.

    An operand that the operation does not have is the first one again.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    index = begin.to(tl.int64) + start + tl.arange(0, BLOCK)
    inside = (index >= 0) & (index < n.to(tl.int64))
    row, fast = index // columns, index % columns
    slow, middle = row // rows, row % rows
    a = read(first, slow * first_slow + middle * first_middle + fast * first_fast, inside)
    b, c = a, a
    if OPERATION != SQRT:
        b = read(second, slow * second_slow + middle * second_middle + fast * second_fast, inside)
    if OPERATION == FMA:
        c = read(third, slow * third_slow + middle * third_middle + fast * third_fast, inside)
    x = computed(a, b, c, OPERATION, FOLDS, ROUNDS_DOWN)
    drawn = drawn_from(word, step, later, philox_block, x, WIDTH, BLOCK)
    y, is_beyond = rounded(x, drawn, table)
    store_result(target + index, y, inside)
    if COUNTS:
        has_nan, has_inf, by_zero = classes(a & MAGNITUDE64, b & MAGNITUDE64, c & MAGNITUDE64, OPERATION)
        count_events(counts, x, y, is_beyond, has_nan, has_inf, by_zero, inside, table)
    if HISTOGRAM:
        count_histogram(bins, x, inside)
