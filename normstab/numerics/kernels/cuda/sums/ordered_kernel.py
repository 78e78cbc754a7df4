"""Many sums at once, each in its stated order: the one Triton kernel that every order is passes of.

A tile is ROWS sums by LANES. A lane starts with its first addend and adds `step` further on, until the chunk of the
row ends; then the lanes of a row are joined two by two, an odd last one moving up unchanged:

    positions of a chunk    [ x0 x1 x2 x3 | x4 x5 x6 x7 | x8 x9 ]          step = lanes = 4
    lane 0, 1, 2, 3          x0+x4+x8   x1+x5+x9   x2+x6   x3+x7           one after another, in registers
    joined                     (lane 0 + lane 1) + (lane 2 + lane 3)       one number for each row and chunk

sequential: one chunk, one lane. blocked(k): chunks of k, one lane; then one pass more over the chunks' sums. lanes(k):
one chunk, k lanes. pairwise: chunks of 128, as many lanes, one step; then the same of the chunks' sums, until one is
left (sum_passes). Positions are those of the reduced axes in row-major order; where they lie says `place_of`, so that
any axes are summed where they are, without a copy. A warp's neighbours are neighbours in memory where the kept axes
are (BY_ROWS), else along the lanes; a lone lane goes through a row by itself, and its cache lines serve it.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.cuda_bits import INF64, MAGNITUDE64, SIGN64, narrowed, widened
from normstab.numerics.kernels.cuda.device_log import COUNTED
from normstab.numerics.kernels.cuda.float32_bits import INF32, MAGNITUDE32, SIGN32, step_now, widened32
from normstab.numerics.kernels.cuda.sums.ordered_cells import (
    MOST_STEPS,
    halved,
    left_and_right,
    no_cells,
    settle_sums,
)
from normstab.numerics.kernels.cuda.sums.ordered_steps import How, add_step, is_narrow, load_step, rule_of
from normstab.numerics.tallies.counter_row import HISTOGRAM_BINS

__all__ = [
    "SITES",
    "VARYING",
    "joined",
    "kahan_step",
    "lanes_of",
    "leaf_of",
    "most_steps",
    "ordered_kernel",
    "own_rows",
    "place_of",
    "read_at",
    "settle_all",
    "told",
    "write_at",
]

# The sites of a sum, in the order of their counters and bins.
SITES = ("add", "load", "kahan")
# These change with every call or shape, and must not be compiled in.
VARYING = ["rows", "n", "chunks", "chunk_step", "span", "step", "lanes", "leaf_step", "target_row", "target_chunk"]
VARYING += ["half", "add_word", "add_step_word", "load_word", "load_step_word"]
COUNTS, LOADS, KAHAN, WIDTH = (tl.constexpr(x) for x in (How.COUNTS, How.LOADS, How.KAHAN, How.WIDTHS))
LOSES = tl.constexpr(How.LOSES)
MOST, COUNTED_, BINS = tl.constexpr(MOST_STEPS), tl.constexpr(COUNTED), tl.constexpr(HISTOGRAM_BINS)
NAN32, NAN64 = tl.constexpr((255 << 23) | (1 << 22)), tl.constexpr((2047 << 52) | (1 << 51))


@triton.jit
def place_of(position, sizes, strides):
    """Return where a position lies, along axes given fastest first; the size of the slowest is not needed."""
    at = position.to(tl.int64) * 0
    for axis in tl.static_range(len(strides)):
        part = position
        if axis + 1 < len(strides):
            part = position % sizes[axis]
            position = position // sizes[axis]
        at += part.to(tl.int64) * strides[axis]
    return at


@triton.jit
def read_at(source, at, inside, DIGITS: tl.constexpr, BIAS: tl.constexpr, HOW: tl.constexpr):
    """Return the bits of addends, in the width that sums have."""
    bits = tl.load(source + at, mask=inside, other=0)
    return widened32(bits, DIGITS) if is_narrow(HOW) else widened(bits, DIGITS, BIAS)


@triton.jit
def write_at(target, at, total, inside, HOW: tl.constexpr):
    """Store sums, a NaN as the canonical one."""
    if is_narrow(HOW):
        bits = tl.where((total & MAGNITUDE32) > INF32, NAN32, total)
    else:
        bits = tl.where((total & MAGNITUDE64) > INF64, NAN64, total)
        if target.dtype.element_ty == tl.int32:
            bits = narrowed(bits, 23, 127).to(tl.int32)
    tl.store(target + at, bits, mask=inside)


@triton.jit
def leaf_of(row_index, position, leaf_step, reduced, HOW: tl.constexpr):
    """Return the row-major index of the addend that a position stands for; anything where nothing is drawn."""
    # An addition draws by the first addend of its right operand.
    index = row_index
    if (HOW & WIDTH) > 0:
        index = row_index + place_of(position.to(tl.int64) * leaf_step, reduced[0], reduced[1])
    return index


@triton.jit
def most_steps(HOW: tl.constexpr):
    """Return after how many addends cells are settled: Kahan's corrections count three times for each."""
    return (MOST + 2) // 3 if (HOW & KAHAN) > 0 else MOST


@triton.jit
def told(rule, adding, loading, later, half, HOW: tl.constexpr):
    """Return what every step reads at the site of additions, and at that of loads or products.

    The plan of the format, the key of Philox, the step of training, half of the precision; given are key and step.
    """
    to_add = rule, adding[0], step_now(adding[1], later, HOW & WIDTH), half
    to_load = rule, loading[0], step_now(loading[1], later, HOW & WIDTH), half
    return to_add, to_load


@triton.jit
def kahan_step(total, x, lost, index, joins, added, mended, to_add, bins, HOW: tl.constexpr):
    """Return (t, c, cells of t, cells of the rest) of y = x - c; t = total + y; c = (t - total) - y."""
    # Subtracted is by the bit of the sign: Triton's minus is 0 - x, which loses that of a zero.
    SIGN: tl.constexpr = SIGN32 if is_narrow(HOW) else SIGN64
    mending = bins + 2 * BINS
    y, mended = add_step(x, lost ^ SIGN, index, joins, mended, to_add, mending, HOW)
    t, added = add_step(total, y, index, joins, added, to_add, bins, HOW)
    d, mended = add_step(t, total ^ SIGN, index, joins, mended, to_add, mending, HOW)
    c, mended = add_step(d, y ^ SIGN, index, joins, mended, to_add, mending, HOW)
    return t, tl.where(joins, c, lost), added, mended


@triton.jit
def settle_all(added, loaded, mended, counts, HOW: tl.constexpr):
    """Add what all cells counted to the counters of their sites."""
    settle_sums(added, counts, is_narrow(HOW), (HOW & LOSES) > 0)
    if (HOW & LOADS) > 0:
        settle_sums(loaded, counts + COUNTED_, is_narrow(HOW), False)
    if (HOW & KAHAN) > 0:
        settle_sums(mended, counts + 2 * COUNTED_, is_narrow(HOW), (HOW & LOSES) > 0)


@triton.jit
def joined(
    total, begin, present, row_index, leaf_step, reduced_index, to_add, counts, bins,
    HOW: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Return the sums of the first `present` lanes of each row, joined pairwise; `begin` is the position of lane 0."""
    cells = no_cells(total, is_narrow(HOW))
    for level in tl.static_range(LEVELS):
        total, cells = join_neighbours(
            total, cells, level, begin, present, row_index, leaf_step, reduced_index, to_add, bins,
            HOW, ROWS, LANES >> (level + 1),
        )  # fmt: skip
    if (HOW & COUNTS) > 0 and LEVELS > 0:
        settle_sums(cells, counts, is_narrow(HOW), (HOW & LOSES) > 0)
    return total


@triton.jit
def join_neighbours(
    total, cells, level, begin, present, row_index, leaf_step, reduced_index, to_add, bins,
    HOW: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Return half as many sums and cells: of sums that stand for 2^level lanes each, two neighbours added."""
    left, right = left_and_right(total, ROWS, PAIRS)
    other = ((2 * tl.arange(0, PAIRS) + 1) << level)[None, :]  # the right operand's first lane
    is_pair = other < present
    index = leaf_of(row_index, begin + other, leaf_step, reduced_index, HOW)
    cells = halved(cells, ROWS, PAIRS, is_narrow(HOW))
    y, cells = add_step(left, right, index, is_pair, cells, to_add, bins, HOW)
    return tl.where(is_pair, y, left), cells


@triton.jit
def own_rows(rows, chunks, BY_ROWS: tl.constexpr, ROWS: tl.constexpr):
    """Return the rows and the chunks that this program sums, and which of them there are."""
    number = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = number < tl.full([], 1, tl.int64) * rows * chunks
    row, chunk = number // chunks, number % chunks
    # Numbered so that neighbouring threads have neighbours in memory: rows first, or chunks.
    if BY_ROWS:
        row, chunk = number % rows, number // rows
    return row, chunk, is_row


@triton.jit
def lanes_of(chunk, chunk_step, span, n, is_row, lanes, IS_LONG: tl.constexpr, LANES: tl.constexpr):
    """Return where each chunk begins, the positions of the lanes' first addends, where it ends; which lanes are."""
    begin = chunk * chunk_step
    end = tl.minimum(begin + span, n)
    if not IS_LONG:  # divisions and comparisons of 32 bits cost a third
        begin, end = begin.to(tl.int32), end.to(tl.int32)
    lane = tl.arange(0, LANES)[None, :]
    return begin[:, None], begin[:, None] + lane, end[:, None], is_row[:, None] & (lane < lanes)


@triton.jit(do_not_specialize=VARYING)
def ordered_kernel(
    source, target, table, counts, bins, rows, n, chunks, chunk_step, span, step, lanes, leaf_step,
    kept, reduced, kept_index, reduced_index, target_row, target_chunk, half,
    add_word: tl.int64, add_step_word: tl.int64, load_word: tl.int64, load_step_word: tl.int64, later,
    DIGITS: tl.constexpr, BIAS: tl.constexpr, HOW: tl.constexpr, BY_ROWS: tl.constexpr, IS_LONG: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Sum chunks of rows into `target`, one number for each row and chunk; LANES = 2^LEVELS.

    `kept` and `reduced` are (sizes, strides) of axes, fastest first; the same of the index in the whole tensor.
    """
    row, chunk, is_row = own_rows(rows, chunks, BY_ROWS, ROWS)
    begin, first, end, live = lanes_of(chunk, chunk_step, span, n, is_row, lanes, IS_LONG, LANES)
    rule = rule_of(table, HOW)
    memory = source + place_of(row, kept[0], kept[1])[:, None]
    row_index = place_of(row, kept_index[0], kept_index[1])[:, None]
    to_add, to_load = told(rule, (add_word, add_step_word), (load_word, load_step_word), later, half, HOW)
    upcoming = read_at(memory, place_of(first, reduced[0], reduced[1]), live & (first < end), DIGITS, BIAS, HOW)
    total, lost = upcoming, upcoming * 0
    steps = (tl.minimum(span, n) + step - 1) // step
    for base in range(0, steps, most_steps(HOW)):
        empty = no_cells(total, is_narrow(HOW))
        added, loaded, mended = empty, empty, empty
        for t in range(base, tl.minimum(base + most_steps(HOW), steps)):
            # The next addend is on its way while this one is added.
            x, position, following = upcoming, first + t * step, first + (t + 1) * step
            at = place_of(following, reduced[0], reduced[1])
            upcoming = read_at(memory, at, live & (following < end), DIGITS, BIAS, HOW)
            inside, index = live & (position < end), leaf_of(row_index, position, leaf_step, reduced_index, HOW)
            if (HOW & LOADS) > 0:
                x, loaded = load_step(x, index, inside, loaded, to_load, bins + BINS, HOW)
            joins = inside & (t > 0)
            if (HOW & KAHAN) > 0:
                y, lost, added, mended = kahan_step(total, x, lost, index, joins, added, mended, to_add, bins, HOW)
            else:
                y, added = add_step(total, x, index, joins, added, to_add, bins, HOW)
            total = tl.where(joins, y, tl.where(inside, x, total))
        if (HOW & COUNTS) > 0:
            settle_all(added, loaded, mended, counts, HOW)
    present = tl.where(is_row[:, None], tl.minimum(end - begin, lanes), 0)
    total = joined(
        total, begin, present, row_index, leaf_step, reduced_index, to_add, counts, bins, HOW, ROWS, LANES, LEVELS
    )
    at = (row * target_row + chunk * target_chunk)[:, None]
    write_at(target, at, total, is_row[:, None], HOW)
