"""The CUDA kernels in float32: round a tensor; compute one of the six operations and round it once. Both count.

    tiles of a tensor       [0][1][2] ... [P-1][P][P+1] ...
    program 0 takes         [0]                [P]            and so on: a grid of P programs that stay

What a program counts it keeps in registers and adds to memory when it ends. float32_tensors says which calls these
kernels serve; the others are those of cuda_kernels, in float64, with the same bits and counters.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.cuda_kernels import CODES
from normstab.numerics.kernels.cuda.float32_bits import (
    INF32,
    MAGNITUDE32,
    fields32,
    finished32,
    narrowed32,
    rule32,
    step_now,
    unbounded32,
    widened32,
)
from normstab.numerics.kernels.cuda.float32_events import TOGETHER, added, settled_cells
from normstab.numerics.kernels.cuda.float32_exact import classes32, exact32, rounded32
from normstab.numerics.kernels.cuda.float32_fused import fused32

__all__ = ["VARYING32", "pointwise32_kernel", "round32_kernel"]

SQRT, FMA, CELL = tl.constexpr(CODES["sqrt"]), tl.constexpr(CODES["fma"]), tl.constexpr(TOGETHER)
# These change with every call, and must not be compiled in. Of `n` and `begin` what is compiled in is whether 16
# divides them, for then a thread moves 16 bytes at a time.
VARYING32 = ["word", "step", "philox_block"]


@triton.jit
def drawn32(word, now, philox_block, tile, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return the random fields of a tile's elements; zeros where WIDTH is 0."""
    drawn = tl.zeros([BLOCK], tl.uint32)
    if WIDTH > 0:
        own = philox_block.to(tl.int64) + tile * (BLOCK * WIDTH // 128)
        drawn = fields32(word.to(tl.int64), now, own, WIDTH, BLOCK)
    return drawn


@triton.jit(do_not_specialize=VARYING32)
def round32_kernel(
    source, target, table, counts,
    n, begin, word: tl.int64, step: tl.int64, philox_block: tl.int64, later,
    DIGITS: tl.constexpr, COPIES: tl.constexpr, STYLE: tl.constexpr, WIDTH: tl.constexpr, COUNTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Round `n` numbers at `source` into `target`, which may be `source`; tile 0 begins at `begin` <= 0.

    COPIES: every number is in the format and moves with all its bits. WIDTH: that of the random fields, or 0; at
    `later` lies how many steps after `step` this runs.
    """
    # Before the loop, for all tiles of this program.
    rule = rule32(table)
    now = step_now(step, later, WIDTH)
    nothing = tl.zeros([BLOCK // CELL], tl.int32)
    first, second, third, largest, below_inf = nothing, nothing, nothing, nothing, nothing
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(n - begin, BLOCK), tl.num_programs(0)):
        offsets = begin + tile * BLOCK + tl.arange(0, BLOCK)
        inside = (offsets >= 0) & (offsets < n)
        bits = tl.load(source + offsets, mask=inside, other=0)
        x = widened32(bits, DIGITS)
        drawn = drawn32(word, now, philox_block, tile, WIDTH, BLOCK)
        y, is_beyond = finished32(x, unbounded32(x, drawn, rule, STYLE), x != x, rule)
        if COPIES:
            tl.store(target + offsets, bits, mask=inside)
        else:
            tl.store(target + offsets, narrowed32(y, DIGITS).to(bits.dtype), mask=inside)
        if COUNTS:
            a = x & MAGNITUDE32
            first, second, third, largest, below_inf = added(
                (first, second, third, largest, below_inf), x, a, y, is_beyond, a > INF32, a == INF32, a < 0, inside,
                rule, BLOCK,
            )  # fmt: skip
    if COUNTS:
        settled_cells((first, second, third, largest, below_inf), counts)


@triton.jit
def place_of(index, rows, columns, slow, middle, fast, FLAT: tl.constexpr):
    """Return where an operand's elements lie: at their index where all are FLAT, else by its three strides."""
    place = index
    if not FLAT:
        row = index // columns
        place = (row // rows) * slow + (row % rows) * middle + (index % columns) * fast
    return place


@triton.jit(do_not_specialize=VARYING32)
def pointwise32_kernel(
    target, left, right, last, table, counts,
    n, begin, word: tl.int64, step: tl.int64, philox_block: tl.int64, later, rows, columns,
    left_slow, left_middle, left_fast, right_slow, right_middle, right_fast, last_slow, last_middle, last_fast,
    OPERATION: tl.constexpr, ROUNDS_DOWN: tl.constexpr, STYLE: tl.constexpr, FLAT: tl.constexpr, WIDTH: tl.constexpr,
    COUNTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute `n` dense results; each operand has its strides along three axes, the last two `rows` by `columns`.

    An operand that the operation does not have is the first one again. `begin`, `later` and WIDTH are as of
    `round32_kernel`.
    """
    rule, now = rule32(table), step_now(step, later, WIDTH)
    nothing = tl.zeros([BLOCK // CELL], tl.int32)
    first, second, third, largest, below_inf = nothing, nothing, nothing, nothing, nothing
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(n - begin, BLOCK), tl.num_programs(0)):
        index = begin + tile * BLOCK + tl.arange(0, BLOCK)
        inside = (index >= 0) & (index < n)
        a = tl.load(left + place_of(index, rows, columns, left_slow, left_middle, left_fast, FLAT), inside, other=0)
        b = a
        if OPERATION != SQRT:
            place = place_of(index, rows, columns, right_slow, right_middle, right_fast, FLAT)
            b = tl.load(right + place, inside, other=0)
        if OPERATION == FMA:
            place = place_of(index, rows, columns, last_slow, last_middle, last_fast, FLAT)
            c = tl.load(last + place, inside, other=0)
            found = fused32(a, b, c, ROUNDS_DOWN)
        else:
            c = a
            found = exact32(a, b, OPERATION, ROUNDS_DOWN)
        drawn = drawn32(word, now, philox_block, tile, WIDTH, BLOCK)
        y, is_beyond = rounded32(found, drawn, rule, STYLE, WIDTH > 0)
        tl.store(target + index, y, mask=inside)
        if COUNTS:
            has_nan, has_inf, by_zero = classes32(a & MAGNITUDE32, b & MAGNITUDE32, c & MAGNITUDE32, OPERATION)
            x, seen, _, _ = found
            first, second, third, largest, below_inf = added(
                (first, second, third, largest, below_inf), x, seen, y, is_beyond, has_nan, has_inf, by_zero, inside,
                rule, BLOCK,
            )  # fmt: skip
    if COUNTS:
        settled_cells((first, second, third, largest, below_inf), counts)
