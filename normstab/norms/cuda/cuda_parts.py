"""What the Triton kernels of a layer are made of: places of values, one rounded operation, sums in lanes or blocks.

    layer   [ FIELDS | bits of C, eps | site 0 | site 1 | ... ]     site: plan, counters, magnitudes, Philox word, step

Values are the int64 bits of float64 (see numerics.kernels.cuda.cuda_bits). HOW is what is compiled in: the width of
the random fields, whether rounding is downwards, and a bit for each site that has a call.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.norms.fused.layer_table import FIELDS
from normstab.numerics.kernels.cuda.cuda_bits import (
    INF64,
    MAGNITUDE64,
    as_float64,
    count_events,
    drawn_at,
    narrowed,
    rounded,
)
from normstab.numerics.kernels.cuda.cuda_kernels import CODES, classes, computed, read
from normstab.numerics.kernels.format_table import PLAN
from normstab.numerics.ledger import COUNTERS

__all__ = [
    "CONSTANTS_AT",
    "COUNTS_AT",
    "DRAW_AT",
    "FIRST_SITE",
    "HAS_AT",
    "IS_DOWN",
    "IS_RECIPROCAL",
    "RECIPROCAL_FORM",
    "SITES_AT",
    "STRIDE",
    "add_to_lanes",
    "add_where_summed",
    "cast",
    "centred",
    "constant",
    "count_of",
    "field",
    "index_of",
    "joined",
    "operate",
    "parameter_of",
    "settled",
    "share",
    "tile",
    "tiling",
    "write",
]

# The layer: fields, the bits of C and eps, then per site its plan, ten counters, two magnitudes, word and step.
CONSTANTS_AT = len(FIELDS)
SITES_AT = CONSTANTS_AT + 2
COUNTS_AT = len(PLAN)
DRAW_AT = COUNTS_AT + len(COUNTERS) + 2
STRIDE = DRAW_AT + 2
# HOW: the field width (0, 8, 16 or 32), whether rounding is downwards and y is d (1 / s), from bit HAS_AT on the sites.
IS_DOWN, IS_RECIPROCAL, HAS_AT = 64, 128, 8

CONSTANTS, SITES, SITE_STRIDE = tl.constexpr(CONSTANTS_AT), tl.constexpr(SITES_AT), tl.constexpr(STRIDE)
COUNTS_FROM, WORD, STEP = tl.constexpr(COUNTS_AT), tl.constexpr(DRAW_AT), tl.constexpr(DRAW_AT + 1)
WIDTH_MASK, DOWN = tl.constexpr(63), tl.constexpr(IS_DOWN)
# The same for the kernels.
RECIPROCAL_FORM, FIRST_SITE = tl.constexpr(IS_RECIPROCAL), tl.constexpr(HAS_AT)
WIDTH, N, RUN_STRIDE, LENGTH, GROUP_STRIDE, PERIOD, PARAMETER_STEP, REPEAT = (
    tl.constexpr(FIELDS.index(name))
    for name in ("width", "n", "run_stride", "length", "group_stride", "period", "step", "repeat")
)
LOAD, CAST_SUM = tl.constexpr(1), tl.constexpr(3)  # after the additions of a sum: in the order of layer_table
ADD, SUB, DIV = (tl.constexpr(CODES[name]) for name in ("add", "sub", "div"))


@triton.jit
def field(layer, WHICH: tl.constexpr):
    """Return a field of the layer."""
    return tl.load(layer + WHICH)


@triton.jit
def constant(layer, WHICH: tl.constexpr):
    """Return the bits of C (0) or eps (1)."""
    return tl.load(layer + CONSTANTS + WHICH)


@triton.jit
def count_of(layer):
    """Return the bits of n, how many values share a mean, as a float64."""
    return tl.load(layer + N).to(tl.float64).to(tl.int64, bitcast=True)


@triton.jit
def index_of(group, position, layer, COLUMNS: tl.constexpr):
    """Return the row-major index, in the whole tensor, of the values at `position` of a group.

    COLUMNS: the group is a row of a matrix of so many columns; 0: it lies as the layer says.
    """
    if COLUMNS > 0:
        index = group * COLUMNS + position
    else:
        length = field(layer, LENGTH)
        run = position // length
        index = group * field(layer, GROUP_STRIDE) + run * field(layer, RUN_STRIDE) + (position - run * length)
    return index


@triton.jit
def parameter_of(source, group, position, inside, layer):
    """Return the bits of gamma or beta at `position` of a group."""
    first = (group % field(layer, PERIOD)) * field(layer, PARAMETER_STEP)
    return read(source, first + position // field(layer, REPEAT), inside)


@triton.jit
def write(target, index, bits, inside):
    """Store float64 bits, which float32 represents, as float32."""
    tl.store(target + index, narrowed(bits, 23, 127).to(tl.int32), mask=inside)


@triton.jit
def settled(
    x, index, has_nan, has_inf, by_zero, inside, layer,
    SITE: tl.constexpr, HOW: tl.constexpr, COUNTS: tl.constexpr,
):  # fmt: skip
    """Return the bits of x rounded as a site says; counted where COUNTS."""
    y, is_beyond = rounded_at(x, index, layer, SITE, HOW)
    if COUNTS:
        count_at(x, y, is_beyond, has_nan, has_inf, by_zero, inside, layer, SITE)
    return y


@triton.jit
def rounded_at(x, index, layer, SITE: tl.constexpr, HOW: tl.constexpr):
    """Return the bits of x rounded as a site says, and whether a finite x overflows."""
    table = layer + SITES + SITE * SITE_STRIDE
    drawn = x * 0
    if (HOW & WIDTH_MASK) > 0:
        drawn = drawn_at(tl.load(table + WORD), tl.load(table + STEP), index, HOW & WIDTH_MASK)
    return rounded(x, drawn, table)


@triton.jit
def count_at(x, y, is_beyond, has_nan, has_inf, by_zero, inside, layer, SITE: tl.constexpr):
    """Count at a site what rounding x to y did, where `inside`."""
    table = layer + SITES + SITE * SITE_STRIDE
    counts = table + COUNTS_FROM
    tl.atomic_add(counts, tl.sum(inside.to(tl.int64), axis=0), sem="relaxed")
    count_events(counts, x, y, is_beyond, has_nan, has_inf, by_zero, inside, table)


@triton.jit
def cast(x, index, inside, layer, SITE: tl.constexpr, HOW: tl.constexpr, COUNTS: tl.constexpr):
    """Return x rounded as a site says."""
    a = x & MAGNITUDE64
    return settled(x, index, a > INF64, a == INF64, a < 0, inside, layer, SITE, HOW, COUNTS)


@triton.jit
def operate(
    a, b, index, inside, layer,
    OPERATION: tl.constexpr, SITE: tl.constexpr, HOW: tl.constexpr, COUNTS: tl.constexpr,
):  # fmt: skip
    """Return the rounded results of an operation of cuda_kernels.CODES; a root takes `a` twice."""
    x = computed(a, b, b, OPERATION, True, (HOW & DOWN) > 0)
    magnitude = b & MAGNITUDE64
    has_nan, has_inf, by_zero = classes(a & MAGNITUDE64, magnitude, magnitude, OPERATION)
    return settled(x, index, has_nan, has_inf, by_zero, inside, layer, SITE, HOW, COUNTS)


@triton.jit
def centred(
    x, mu, index, inside, layer,
    INPUT: tl.constexpr, CENTRE: tl.constexpr, HOW: tl.constexpr, COUNTS: tl.constexpr,
):  # fmt: skip
    """Return d = x - mu, or x where nothing is centred; the cast of x is not counted, the centring where COUNTS."""
    d = cast(read(x, index, inside), index, inside, layer, INPUT, HOW, False)
    if (HOW >> (FIRST_SITE + CENTRE)) & 1:
        d = operate(d, mu, index, inside, layer, SUB, CENTRE, HOW, COUNTS)
    return d


@triton.jit
def tiling(n, layer, LANES: tl.constexpr, BLOCKED: tl.constexpr):
    """Return how many addends a lane takes one after another, and how many all lanes take before they are joined."""
    width = field(layer, WIDTH)
    if BLOCKED:
        steps, span = tl.minimum(width, n), width * LANES
    else:
        steps, span = (n + width - 1) // width, n
    return steps, span


@triton.jit
def tile(base, t, n, layer, LANES: tl.constexpr, BLOCKED: tl.constexpr):
    """Return the positions of addends number `t` of the lanes that begin at `base`, and which of them there are."""
    width, lane = field(layer, WIDTH), tl.arange(0, LANES).to(tl.int64)
    if BLOCKED:
        # A lane is a block of neighbours.
        position = base + lane * width + t
        inside = position < n
    else:
        # A lane takes every width-th value: LANES is the power of two that holds them.
        position = base + lane + t * width
        inside = (position < n) & (lane < width)
    return position, inside


@triton.jit
def add_to_lanes(lanes, x, t, index, inside, layer, SITE: tl.constexpr, HOW: tl.constexpr):
    """Return the lanes with their addends number `t` added; the first ones are taken as they are."""
    if (HOW >> (FIRST_SITE + SITE + LOAD)) & 1:
        x = loaded(x, index, inside, layer, SITE + LOAD, HOW)
    total = operate(lanes, x, index, inside & (t > 0), layer, ADD, SITE, HOW, True)
    return tl.where(inside, tl.where(t > 0, total, x), lanes)


@triton.jit
def loaded(x, index, inside, layer, SITE: tl.constexpr, HOW: tl.constexpr):
    """Return addends cast to the accumulator's format; one that fits is no event."""
    y, is_beyond = rounded_at(x, index, layer, SITE, HOW)
    a = x & MAGNITUDE64
    # As numbers, for which the zeros are one; a NaN is none.
    changes = inside & (as_float64(y) != as_float64(x)) & (a <= INF64)
    count_at(x, y, is_beyond, a > INF64, a == INF64, a < 0, changes, layer, SITE)
    return y


@triton.jit
def add_where_summed(lanes, x, t, index, inside, layer, SITE: tl.constexpr, HOW: tl.constexpr):
    """Return `add_to_lanes` where the sum has a call, else the lanes."""
    if (HOW >> (FIRST_SITE + SITE)) & 1:
        lanes = add_to_lanes(lanes, x, t, index, inside, layer, SITE, HOW)
    return lanes


@triton.jit
def joined(
    total, lanes, base, group, n, layer,
    SITE: tl.constexpr, HOW: tl.constexpr, LANES: tl.constexpr, BLOCKED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Return the sum of the lanes that began at `base`: blocks one after another behind `total`, else pairwise.

    Where the sum has no call it is `total`.
    """
    if (HOW >> (FIRST_SITE + SITE)) & 1:
        position, inside = tile(base, 0, n, layer, LANES, BLOCKED)
        first, live = index_of(group, position, layer, COLUMNS), tl.sum(inside.to(tl.int64), axis=0)
        if BLOCKED:
            # One block after another, for that is the order; a number of a vector is taken out by a sum with zeros.
            for i in range(live):
                is_chosen = tl.arange(0, LANES) == i
                addend = total * 0 + tl.sum(tl.where(is_chosen, lanes, 0), axis=0)
                leaf = total * 0 + tl.sum(tl.where(is_chosen, first, 0), axis=0)
                # leaf == leaf is true everywhere, and has the shape that is wanted.
                follows = (leaf == leaf) & ((base > 0) | (i > 0))
                added = operate(total, addend, leaf, follows, layer, ADD, SITE, HOW, True)
                total = tl.where(follows, added, addend)
        else:
            total = total * 0 + folded(lanes, first, live, layer, SITE, HOW, LANES)
    return total


@triton.jit
def folded(lanes, first, live, layer, SITE: tl.constexpr, HOW: tl.constexpr, LANES: tl.constexpr):
    """Return the pairwise sum of the first `live` lanes; an odd last one moves up unchanged.

    `first` are the indices of the lanes' first addends.
    """
    pair = tl.arange(0, LANES)
    left_lane, right_lane = tl.minimum(2 * pair, LANES - 1), tl.minimum(2 * pair + 1, LANES - 1)
    while live > 1:
        left, right = tl.gather(lanes, left_lane, 0), tl.gather(lanes, right_lane, 0)
        leaf = tl.gather(first, right_lane, 0)
        is_pair = 2 * pair + 1 < live
        lanes = tl.where(is_pair, operate(left, right, leaf, is_pair, layer, ADD, SITE, HOW, True), left)
        first, live = tl.gather(first, left_lane, 0), (live + 1) // 2
    return tl.sum(tl.where(pair == 0, lanes, 0), axis=0)


@triton.jit
def share(total, n, index, layer, SUM: tl.constexpr, DIVISION: tl.constexpr, HOW: tl.constexpr):
    """Return the mean from a sum: its cast where the role `sum` has a format, then the division by the float64 `n`."""
    always = index >= 0
    if (HOW >> (FIRST_SITE + SUM + CAST_SUM)) & 1:
        total = cast(total, index, always, layer, SUM + CAST_SUM, HOW, True)
    return operate(total, n, index, always, layer, DIV, DIVISION, HOW, True)
