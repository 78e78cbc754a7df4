"""The pointwise kernel of the CPU: compute in float64, round once, count, block by block, in one pass.

    operands, any strides --read--> a, b, c --compute--> value --round--> bits --write--> the dense result
                                    float64, a block of each, in the first-level cache

A block goes through all steps before the next is read, so that memory is walked once. The float64 `value` is such that
rounding it is the only rounding: correctly rounded, or rounded to odd (see to_odd). Operands are float32 or float64
with any three strides, or scalars. A task is a row of int64 (see `TASK`), so that a call has few arguments. The
definition is numerics section 8, Operations.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import math

import numpy as np

from normstab.numerics.kernels.cpu.bits import INF64, MAGNITUDE32, MAGNITUDE64, U31, rule64
from normstab.numerics.kernels.cpu.blocks import BLOCK, nearest_block64, nearest_uncounted64, round_block64, widened32
from normstab.numerics.kernels.cpu.compile import as_float64, device, kernel, outside, view
from normstab.numerics.kernels.cpu.counting import HISTOGRAM_BINS, SCRATCH, clear, count_special, histogram_bin
from normstab.numerics.kernels.cpu.layout import FLOAT32, copy_block, narrow_exact, widen_neighbours
from normstab.numerics.kernels.cpu.philox_cpu import draw_fields
from normstab.numerics.kernels.cpu.to_odd import fma_to_odd, folded, product_error, sum_to_odd

__all__ = ["CODES", "SCALAR", "TASK", "UNSAFE", "pointwise_chunk", "pointwise_nearest"]

u32 = np.uint32
ADD, SUB, MUL, DIV, SQRT, FMA = 0, 1, 2, 3, 4, 5
# Name of an operation -> its code.
CODES = {"add": ADD, "sub": SUB, "mul": MUL, "div": DIV, "sqrt": SQRT, "fma": FMA}
# The fields of a task. Then for each of three operands: address (a scalar: its bits), dtype or SCALAR,
# and the strides, in elements, along the three axes of the result; its last two sizes are given here.
TASK = (
    *("code", "target", "is_wide", "folds", "rounds_down", "word", "step", "first"),
    *("bins", "is_counted", "rows", "columns", "are_wide", "unsafe", "flushes"),
)
(
    CODE, TARGET, IS_WIDE, FOLDS, ROUNDS_DOWN, WORD, STEP, FIRST,
    BINS, IS_COUNTED, ROWS, COLUMNS, ARE_WIDE, UNSAFE, FLUSHES,
) = range(len(TASK))  # fmt: skip
OPERANDS, PER_OPERAND = len(TASK), 5
# Stride that marks a Python scalar.
SCALAR = -1
# The bounds are those of readable.wide_operands: beyond, an error may not be exact.
LEAST, LARGEST_FACTOR, LARGEST_RESULT = 2.0**-960, 1.1e300, 2.0**1020
WORDS = BLOCK + 8


@kernel
def pointwise_chunk(task, table, scratch, start, n):  # pragma: no cover - compiled
    """Compute elements start .. start + n - 1 of the result of a task, and count them into `scratch`."""
    rule = rule64(table)
    counts = view(scratch, SCRATCH, np.int64)
    clear(counts)
    a, b, c = filled(task, 0), filled(task, 1), filled(task, 2)
    value = np.empty(BLOCK, np.float64)
    x, y = value.view(np.int64), np.empty(BLOCK, np.int64)
    fields, words = np.zeros(BLOCK, u32), np.empty(WORDS, u32)
    # Buffers are made once: a block overwrites those of the one before.
    for at in range(start, start + n, BLOCK):
        m = min(BLOCK, start + n - at)
        carry(value, a, b, c, task, at, m)
        draw_fields(fields, words, task[WORD], task[STEP], task[FIRST] + at, m, rule.field_width)
        if round_block64(x, fields, y, m, rule, counts):
            count_specials(x, y, a, b, c, task, m, rule, counts)
        fill_bins(x, task, m)
        write_block(y, task, at, m)


@kernel
def pointwise_nearest(task, table, scratch, start, n):  # pragma: no cover - compiled
    """Compute as pointwise_chunk does where the shortcut MAGIC holds; count only if the task says so."""
    rule = rule64(table)
    counts = view(scratch, SCRATCH, np.int64)
    clear(counts)
    a, b, c = filled(task, 0), filled(task, 1), filled(task, 2)
    value = np.empty(BLOCK, np.float64)
    x, y = value.view(np.int64), np.empty(BLOCK, np.int64)
    for at in range(start, start + n, BLOCK):
        m = min(BLOCK, start + n - at)
        carry(value, a, b, c, task, at, m)
        if task[IS_COUNTED] == 0:
            nearest_uncounted64(x, y, m, rule)
        elif nearest_block64(x, y, m, rule, counts):
            count_specials(x, y, a, b, c, task, m, rule, counts)
        fill_bins(x, task, m)
        write_block(y, task, at, m)


@outside
def filled(task, operand):
    """Return the buffer of an operand: filled once for all blocks where it is a scalar."""
    values = np.zeros(BLOCK, np.float64)
    base = OPERANDS + operand * PER_OPERAND
    if task[base + 1] == SCALAR:
        for i in range(BLOCK):
            values[i] = as_float64(task[base])
    return values


@outside
def carry(value, a, b, c, task, at, n):
    """Read the operands of a block and compute its results in the float64 carrier."""
    read_operand(a, task, 0, at, n)
    read_operand(b, task, 1, at, n)
    read_operand(c, task, 2, at, n)
    compute(value, a, b, c, task, n)


@outside
def fill_bins(x, task, n):
    """Add a block to the histogram of the row, where it has one."""
    if task[BINS] != 0:
        bins = view(task[BINS], HISTOGRAM_BINS, np.int64)
        for i in range(n):
            bins[histogram_bin(x[i])] += 1


@outside
def read_operand(values, task, operand, start, n):
    """Read elements start .. start + n - 1 of an operand as float64, axis by axis."""
    base = OPERANDS + operand * PER_OPERAND
    address, dtype = task[base], task[base + 1]
    if dtype == SCALAR:
        return
    rows, columns = task[ROWS], task[COLUMNS]
    done = 0
    while done < n:
        # One run along the fastest axis at a time: within it a single stride leads from element to element.
        row, column = (start + done) // columns, (start + done) % columns
        run = min(columns - column, n - done)
        stride = task[base + 4]
        offset = (row // rows) * task[base + 2] + (row % rows) * task[base + 3] + column * stride
        if dtype == FLOAT32 and stride == 1 and task[FLUSHES] == 0:
            widen_neighbours(address + 4 * offset, values[done:], run)
        else:
            read_run(values[done:], address, dtype, offset, stride, run)
        done += run


@outside
def read_run(values, address, dtype, offset, stride, n):
    """Read `n` elements at one stride; float32 is widened by integers."""
    if dtype == FLOAT32:
        x = view(address + 4 * offset, (n - 1) * stride + 1, u32)
        # Said apart, for a stride that is known to be 1 is read in lanes.
        if stride == 1:
            for i in range(n):
                values[i] = widen(x[i])
        else:
            for i in range(n):
                values[i] = widen(x[i * stride])
    else:
        wide = view(address + 8 * offset, (n - 1) * stride + 1, np.float64)
        for i in range(n):
            values[i] = wide[i * stride]


@device
def widen(x):
    """Return the float64 of float32 bits."""
    return as_float64(widened32(u32(x & MAGNITUDE32)) | (np.int64(x >> U31) << 63))


@outside
def compute(value, a, b, c, task, n):
    """Fill `value` with the exact result in the float64 carrier: correctly rounded, or rounded to odd."""
    # A loop for each operation: a branch within a loop would keep it from lanes.
    # Products of 24-bit operands are exact.
    code, folds, rounds_down = task[CODE], task[FOLDS] != 0, task[ROUNDS_DOWN] != 0
    if task[ARE_WIDE] != 0:
        compute_wide(value, a, b, c, task, n)
    elif code == MUL:
        for i in range(n):
            value[i] = a[i] * b[i]
    elif code == DIV:
        for i in range(n):
            value[i] = a[i] / b[i]
    elif code == SQRT:
        for i in range(n):
            value[i] = math.sqrt(a[i])
    elif code == ADD:
        for i in range(n):
            value[i] = sum_to_odd(a[i], b[i], folds, rounds_down)
    elif code == SUB:
        for i in range(n):
            value[i] = sum_to_odd(a[i], -b[i], folds, rounds_down)
    else:
        for i in range(n):
            value[i] = sum_to_odd(a[i] * b[i], c[i], folds, rounds_down)


@outside
def compute_wide(value, a, b, c, task, n):
    """Fill `value` from operands of more than 24 bits, rounded to odd; see readable.wide_operands.

    Where an error could overflow or vanish the task is marked `unsafe`: whole numbers compute it then.
    """
    code, rounds_down = task[CODE], task[ROUNDS_DOWN] != 0
    # A code that is known in each loop: what optimizers do, and divisions, run in lanes.
    if code == MUL:
        is_safe = fill_wide(MUL, value, a, b, c, rounds_down, n)
    elif code == FMA:
        is_safe = fill_wide(FMA, value, a, b, c, rounds_down, n)
    elif code == ADD:
        is_safe = fill_wide(ADD, value, a, b, c, rounds_down, n)
    elif code == DIV:
        is_safe = fill_wide(DIV, value, a, b, c, rounds_down, n)
    else:
        is_safe = fill_wide(code, value, a, b, c, rounds_down, n)
    if not is_safe:
        task[UNSAFE] = 1


@device
def fill_wide(code, value, a, b, c, rounds_down, n):
    """Fill `value`, and return whether every error was found exactly."""
    unsafe = 0
    for i in range(n):
        x, y, z = a[i], b[i], c[i]
        value[i] = wide_value(code, x, y, z, rounds_down)
        # Infinities and NaN have no error to get wrong.
        is_finite = (abs(x) < np.inf) & (abs(y) < np.inf) & (abs(z) < np.inf)
        is_sure = (not is_finite) | (value[i] != value[i]) | is_exact_error(code, x, y, z, value[i])
        unsafe |= 0 if is_sure else 1
    return unsafe == 0


@device
def wide_value(code, x, y, z, rounds_down):
    """Return the result of an operation, rounded to odd."""
    if code == MUL:
        s = x * y
        return folded(s, product_error(x, y, s))
    if code == DIV:
        s = x / y
        p = s * y
        # The remainder x - s y, exactly: what the quotient lost has its sign, turned over where y is negative.
        rest = (x - p) - product_error(s, y, p)
        return folded(s, -rest if y < 0 else rest)
    if code == SQRT:
        s = math.sqrt(x)
        p = s * s
        return folded(s, (x - p) - product_error(s, s, p))
    if code == ADD:
        return sum_to_odd(x, y, True, rounds_down)
    if code == SUB:
        return sum_to_odd(x, -y, True, rounds_down)
    return fma_to_odd(x, y, z, rounds_down)


@device
def is_exact_error(code, x, y, z, s):
    """Whether the error of finite operands' result s was found exactly; see readable.wide_operands."""
    is_sum = (code == ADD) | (code == SUB)
    is_low = (abs(s) <= LARGEST_RESULT) & (abs(z) <= LARGEST_RESULT)
    is_low &= is_sum | ((abs(x) <= LARGEST_FACTOR) & (abs(y) <= LARGEST_FACTOR))
    is_low &= (code == DIV) | is_sum | (abs(x * y) <= LARGEST_RESULT)
    if is_sum:
        return is_low
    if code == DIV:
        return (y == 0) | (x == 0) | (is_low & (abs(x) >= LEAST) & (abs(s) >= LEAST) & (abs(s) <= LARGEST_FACTOR))
    if code == SQRT:
        return (x == 0) | (is_low & (x >= LEAST))
    return is_low & ((x == 0) | (y == 0) | (abs(x * y) >= LEAST))


@outside
def count_specials(x, y, a, b, c, task, n, rule, counts):
    """Count the infinite and NaN results of a block, by what their operands were."""
    code = task[CODE]
    for i in range(n):
        exact = x[i] & MAGNITUDE64
        if exact < INF64:
            continue
        # Buffers of operands that an operation lacks hold zeros, which are neither.
        result, infinity = y[i] & MAGNITUDE64, np.inf
        has_nan = (a[i] != a[i]) | (b[i] != b[i]) | (c[i] != c[i])
        has_inf = (abs(a[i]) == infinity) | (abs(b[i]) == infinity) | (abs(c[i]) == infinity)
        divides_by_zero = (code == DIV) & (b[i] == 0) & (a[i] != 0) & (abs(a[i]) < infinity)
        is_nan, y_nan, y_inf = exact > INF64, result > INF64, result == INF64
        count_special(counts, is_nan, y_nan, y_inf, has_nan, has_inf, divides_by_zero, rule.saturates)


@outside
def write_block(y, task, start, n):
    """Write the bits of a block as float64, or as float32, which represents them exactly."""
    if task[IS_WIDE] != 0:
        copy_block(y, view(task[TARGET] + 8 * start, n, np.int64), n)
        return
    narrow_exact(y, task[TARGET] + 4 * start, n, task[FLUSHES] != 0)
