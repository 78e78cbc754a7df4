"""The CUDA kernels of scaled formats: largest magnitudes, scales, numbers with their codes; all of them count.

    rows           [ x x x x | x x x x | x x ]     granules of K neighbours, the last of a row may be shorter
    a tile         several short granules: scale and numbers in one pass
                   or a stretch of a long one, whose scale two kernels have found before

A quotient is float32's own division rounded to odd, and once more to the element: see `float32_exact`. What programs
count they keep in registers and add to memory when they end.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.float32_bits import INF32, MAGNITUDE32, as_float32, as_int32, rule32, unsigned
from normstab.numerics.kernels.cuda.float32_events import TOGETHER, added, settled_cells
from normstab.numerics.kernels.cuda.granules.granule_scales import (
    CANONICAL,
    divided,
    events_of,
    scale_of,
    settled_granules,
)

__all__ = ["GIVEN", "OWN", "largest_kernel", "quantize_kernel", "scales_kernel"]

CELL, ONE = tl.constexpr(TOGETHER), tl.constexpr(127 << 23)
# Where the scales of a tile come from: from its own numbers, or from memory, one for each row.
OWN, GIVEN = 0, 1
IS_OWN = tl.constexpr(OWN)


@triton.jit
def tile_of(tile, granules, length, width, per_row, GRANULES: tl.constexpr, WIDTH: tl.constexpr):
    """Return (granule, row, offsets, inside) of a tile: GRANULES of WIDTH places each, `width` of them used."""
    granule = tile * GRANULES + tl.arange(0, GRANULES)
    row, place = granule // per_row, granule % per_row
    column = place * width
    m = tl.where(granule < granules, tl.minimum(width, length - column), 0)
    lanes = tl.arange(0, WIDTH)
    offsets = (row.to(tl.int64) * length + column)[:, None] + lanes[None, :]
    return granule, row, offsets, lanes[None, :] < m[:, None]


@triton.jit
def largest_kernel(
    source, tops, granules, length, width, per_row,
    WHOLE: tl.constexpr, SKIPS_BROKEN: tl.constexpr, GRANULES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Leave the bits of the largest magnitude of each row (WHOLE: of all) in `tops`, NaN the greatest; zeros at first.

    SKIPS_BROKEN: a granule with an infinity or a NaN is left out.
    """
    running = tl.zeros([GRANULES], tl.int32)
    for tile in range(tl.program_id(0), tl.cdiv(granules, GRANULES), tl.num_programs(0)):
        granule, row, offsets, inside = tile_of(tile, granules, length, width, per_row, GRANULES, WIDTH)
        top = tl.max(tl.load(source + offsets, mask=inside, other=0) & MAGNITUDE32, axis=1)
        if SKIPS_BROKEN:
            top = tl.where(top < INF32, top, 0)
        if WHOLE:
            running = tl.maximum(running, top)
        else:
            tl.atomic_max(tops + row, top, mask=granule < granules, sem="relaxed")
    if WHOLE:
        tl.atomic_max(tops, tl.max(running), sem="relaxed")


@triton.jit
def scales_kernel(
    tops, history, scales, table, numbers, found, n,
    RULE: tl.constexpr, STYLE: tl.constexpr, COUNTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Leave the scales of `n` granules whose largest magnitudes are in `tops`, and count the granules.

    Where there is a `history` the scales follow from the magnitudes there.
    """
    rule = rule32(table)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    top = tl.load(tops + index, mask=index < n, other=0)
    leading = top
    if history is not None:
        leading = tl.load(history + index, mask=index < n, other=0) & MAGNITUDE32
    scale, clipped = scale_of(leading, tops, numbers, RULE)
    tl.store(scales + index, scale, mask=index < n)
    if COUNTS:
        word, largest, below_inf = events_of(top, scale, clipped, index < n, rule, STYLE)
        settled_granules(word, largest, below_inf, found)


@triton.jit
def code_of(y, form, IS_FLOAT: tl.constexpr):
    """Return the pattern of a number of the element: `form` points at what `cuda_quantize.FORM` lists."""
    magnitude = y & MAGNITUDE32
    if IS_FLOAT:
        drop, base, normal, least = tl.load(form), tl.load(form + 1), tl.load(form + 2), tl.load(form + 3)
        # Adding the least normal number makes the bits below it those of a subnormal pattern.
        is_small = magnitude < least
        lifted = as_int32(as_float32(magnitude) + as_float32(least))
        code = (tl.where(is_small, lifted, magnitude) >> drop) - base + tl.where(is_small, 0, normal)
        code |= as_int32(unsigned(y) >> 31) << tl.load(form + 4)
        code = tl.where(magnitude > INF32, tl.load(form + 5), code)
    else:
        whole = as_float32(tl.where(magnitude > INF32, 0, y)) * as_float32(tl.load(form))
        code = whole.to(tl.int32)
    return code


@triton.jit
def quantize_kernel(
    source, values, scales, codes, of_tensor, table, numbers, form, counts, found,
    granules, length, width, per_row,
    FROM: tl.constexpr, ROW_STEP: tl.constexpr, RULE: tl.constexpr, STYLE: tl.constexpr, IS_FLOAT: tl.constexpr,
    COUNTS: tl.constexpr, GRANULES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write values, codes, and scales where they are a tile's OWN; ROW_STEP is 0 where all rows have one scale."""
    BLOCK: tl.constexpr = GRANULES * WIDTH
    rule = rule32(table)
    nothing, none = tl.zeros([BLOCK // CELL], tl.int32), tl.zeros([GRANULES], tl.int32)
    first, second, third, largest, below_inf = nothing, nothing, nothing, nothing, nothing
    word, most, least = none, none, none
    for tile in range(tl.program_id(0), tl.cdiv(granules, GRANULES), tl.num_programs(0)):
        granule, row, offsets, inside = tile_of(tile, granules, length, width, per_row, GRANULES, WIDTH)
        bits = tl.load(source + offsets, mask=inside, other=0)
        if FROM == IS_OWN:
            top = tl.max(bits & MAGNITUDE32, axis=1)
            scale, clipped = scale_of(top, of_tensor, numbers, RULE)
            tl.store(scales + granule, scale, mask=granule < granules)
            if COUNTS:
                one, high, low = events_of(top, scale, clipped, granule < granules, rule, STYLE)
                word += one
                most, least = tl.maximum(most, high), tl.maximum(least, low)
        else:
            scale = tl.load(scales + row * ROW_STEP, mask=granule < granules, other=ONE)
        shared = tl.reshape(tl.broadcast_to(scale[:, None], (GRANULES, WIDTH)), (BLOCK,))
        flat, is_inside = tl.reshape(bits, (BLOCK,)), tl.reshape(inside, (BLOCK,))
        y, x, seen, is_beyond = divided(flat, shared, rule, STYLE)
        value = as_int32(as_float32(y) * as_float32(shared))
        value = tl.where((value & MAGNITUDE32) > INF32, CANONICAL, value)
        code = code_of(y, form, IS_FLOAT)
        tl.store(values + offsets, tl.reshape(value, (GRANULES, WIDTH)), mask=inside)
        tl.store(codes + offsets, tl.reshape(code, (GRANULES, WIDTH)).to(tl.int8), mask=inside)
        if COUNTS:
            has_nan = ((flat & MAGNITUDE32) > INF32) | ((shared & MAGNITUDE32) > INF32)
            # An infinity with a number for its scale: there is one only where scales follow from a history.
            has_inf, never = (flat & MAGNITUDE32) == INF32, flat != flat
            first, second, third, largest, below_inf = added(
                (first, second, third, largest, below_inf), x, seen, y, is_beyond, has_nan, has_inf, never, is_inside,
                rule, BLOCK,
            )  # fmt: skip
    if COUNTS:
        settled_cells((first, second, third, largest, below_inf), counts)
        if FROM == IS_OWN:
            settled_granules(word, most, least, found)
