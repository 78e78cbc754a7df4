"""One step of many sums at once: an addend cast or a product, an addition rounded once, and what they did counted.

    NARROW      open sums are int32 bits of float32, added exactly (float32_exact), rounded by integers
    otherwise   open sums are int64 bits of float64, added with round-to-odd, rounded by integers; every format and mode

Which of the two serves a sum says sum_launches; both have the bits and the counters of the reference. `told` is what
every step reads: the plan of the format (a tuple in registers, or its address), the words of Philox, and half of the
format's precision, by which losses are told.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.numerics.kernels.cuda.cuda_bits import (
    INF64,
    MAGNITUDE64,
    as_float64,
    as_int64,
    count_histogram,
    drawn_at,
    events,
    rounded,
)
from normstab.numerics.kernels.cuda.cuda_kernels import CODES, classes, computed
from normstab.numerics.kernels.cuda.float32_bits import (
    INF32,
    MAGNITUDE32,
    as_float32,
    as_int32,
    fields_at32,
    finished32,
    rule32,
    unbounded32,
)
from normstab.numerics.kernels.cuda.float32_events import events32
from normstab.numerics.kernels.cuda.float32_exact import classes32, product_and_rest32, rounded32, sum32
from normstab.numerics.kernels.cuda.float32_fused import fused32
from normstab.numerics.kernels.cuda.losses.losses_bits import lost32, lost64
from normstab.numerics.kernels.cuda.sums.ordered_cells import grown, with_losses

__all__ = ["How", "add_step", "computed_step", "fused_step", "is_narrow", "load_step", "product_step", "rule_of"]


class How:
    """What is compiled in, as bits of one whole number: the width of random fields lies below, the style above them."""

    DOWN, NARROW, WHOLE, FOLDS, COUNTS, HISTOGRAM, LOADS, KAHAN, FUSED, LOSES = (1 << i for i in range(6, 16))
    WIDTHS, STYLE_AT = 63, 16


WIDTH = tl.constexpr(How.WIDTHS)
DOWN, NARROW, WHOLE, FOLDS = (tl.constexpr(x) for x in (How.DOWN, How.NARROW, How.WHOLE, How.FOLDS))
COUNTS, HISTOGRAM, LOSES = (tl.constexpr(x) for x in (How.COUNTS, How.HISTOGRAM, How.LOSES))
STYLE_AT = tl.constexpr(How.STYLE_AT)
ADD, MUL, FMA = (tl.constexpr(CODES[name]) for name in ("add", "mul", "fma"))


@triton.jit
def is_narrow(HOW: tl.constexpr):
    """Whether sums are float32."""
    return (HOW & NARROW) > 0


@triton.jit
def rule_of(table, HOW: tl.constexpr):
    """Return the plan as the steps read it: in registers for float32, else where it lies."""
    rule = table
    if (HOW & NARROW) > 0:
        rule = rule32(table)
    return rule


@triton.jit
def counted32(cells, a, b, x, seen, y, is_beyond, inside, rule):
    """Return the cells with what became of one operation on a and b, where `inside`."""
    p, q = a & MAGNITUDE32, b & MAGNITUDE32
    has_nan, has_inf = (p > INF32) | (q > INF32), (p == INF32) | (q == INF32)
    return grown(cells, events32(x, seen, y, is_beyond, has_nan, has_inf, p < 0, inside, rule), True)


@triton.jit
def add_step(a, b, index, inside, cells, told, bins, HOW: tl.constexpr):
    """Return a + b rounded once, and the cells with it counted where `inside`; `index` is that of its random bits."""
    rule = told[0]
    if (HOW & NARROW) > 0:
        found = sum32(a, b, (HOW & DOWN) > 0)
        x, seen, _, _ = found
        # The format has float32's own 24 bits: an odd result
        # cannot be rounded on, but float32's sum is the rounding.
        if (HOW & WHOLE) > 0:
            x, r = whole32(a, b, x, seen)
            y, is_beyond = finished32(x, r, x != x, rule)
        else:
            y, is_beyond = rounded_step32(found, index, told, HOW)
        if (HOW & COUNTS) > 0:
            cells = counted32(cells, a, b, x, seen, y, is_beyond, inside, rule)
        if (HOW & LOSES) > 0:
            cells = with_losses(cells, tl.where(inside, lost32(a, b, y, told[3]), 0), True)
    else:
        y, cells = computed_step(a, b, b, index, inside, cells, told, bins, ADD, (HOW & FOLDS) > 0, HOW)
    return y, cells


@triton.jit
def rounded_step32(found, index, told, HOW: tl.constexpr):
    """Return a sum or a product, as exact32 gives it, rounded once; and whether it is finite and overflows."""
    rule, word, step, _ = told
    drawn = drawn32(found[0], index, word, step, HOW)
    return rounded32(found, drawn, rule, HOW >> STYLE_AT, (HOW & WIDTH) > 0)


@triton.jit
def whole32(a, b, x, seen):
    """Return (x, r) where the format has float32's 24 bits: r is the magnitude of float32's own sum, to nearest."""
    r = as_int32(as_float32(a) + as_float32(b)) & MAGNITUDE32
    p, q = a & MAGNITUDE32, b & MAGNITUDE32
    big, small = as_float32(tl.where(p >= q, a, b)), as_float32(tl.where(p >= q, b, a))
    error = as_int32(small - ((big + small) - big)) & MAGNITUDE32
    return unlike(x, r, error != 0), r


@triton.jit
def unlike(x, r, is_off):
    """Return x with another bit changed where it would equal r, or what an overflow becomes, and is inexact.

    Where the format's last bit is that of x, round-to-odd may have moved x to the result itself; all that is asked of
    x then is to differ from it.
    """
    found = x & MAGNITUDE32
    is_hidden = is_off & (found < INF32) & ((r == found) | (r >= INF32))
    return tl.where(is_hidden, x ^ 2, x)


@triton.jit
def product_step(a, b, index, inside, cells, told, bins, HOW: tl.constexpr):
    """Return a b rounded once, and the cells with it counted where `inside`."""
    rule = told[0]
    if (HOW & NARROW) > 0:
        found, is_off = product_and_rest32(a, b)
        x, seen, _, _ = found
        if (HOW & WHOLE) > 0:
            r = as_int32(as_float32(a) * as_float32(b)) & MAGNITUDE32
            x = unlike(x, r, is_off)
            y, is_beyond = finished32(x, r, x != x, rule)
        else:
            y, is_beyond = rounded_step32(found, index, told, HOW)
        if (HOW & COUNTS) > 0:
            cells = counted32(cells, a, b, x, seen, y, is_beyond, inside, rule)
    else:
        y, cells = computed_step(a, b, b, index, inside, cells, told, bins, MUL, True, HOW)
    return y, cells


@triton.jit
def fused_step(a, b, total, index, inside, cells, told, bins, HOW: tl.constexpr):
    """Return a b + total rounded once, and the cells with it counted where `inside`."""
    if (HOW & NARROW) > 0:
        found = fused32(a, b, total, (HOW & DOWN) > 0)
        y, is_beyond = rounded_step32(found, index, told, HOW)
        if (HOW & COUNTS) > 0:
            x, seen, _, _ = found
            p, q, r = a & MAGNITUDE32, b & MAGNITUDE32, total & MAGNITUDE32
            has_nan, has_inf, by_zero = classes32(p, q, r, FMA)
            cells = grown(cells, events32(x, seen, y, is_beyond, has_nan, has_inf, by_zero, inside, told[0]), True)
        if (HOW & LOSES) > 0:
            # The loss is that of the product rounded to nearest, as here all is.
            product, _ = product_and_rest32(a, b)
            left, _ = rounded_step32(product, index, told, HOW)
            cells = with_losses(cells, tl.where(inside, lost32(left, total, y, told[3]), 0), True)
    else:
        y, cells = computed_step(a, b, total, index, inside, cells, told, bins, FMA, True, HOW)
    return y, cells


@triton.jit
def computed_step(
    a, b, c, index, inside, cells, told, bins, OPERATION: tl.constexpr, FOLDS_: tl.constexpr, HOW: tl.constexpr
):
    """Return an operation on float64 bits rounded once, and the cells with it counted where `inside`."""
    rule, word, step, half = told
    x = computed(a, b, c, OPERATION, FOLDS_, (HOW & DOWN) > 0)
    y, is_beyond = rounded(x, drawn64(x, index, word, step, HOW), rule)
    if (HOW & COUNTS) > 0:
        has_nan, has_inf, by_zero = classes(a & MAGNITUDE64, b & MAGNITUDE64, c & MAGNITUDE64, OPERATION)
        cells = grown(cells, events(x, y, is_beyond, has_nan, has_inf, by_zero, inside, rule), False)
    IS_SUM: tl.constexpr = (OPERATION == ADD) | (OPERATION == FMA)
    if (HOW & LOSES) > 0 and IS_SUM:
        left, right = a, b
        if OPERATION == FMA:
            # The loss is that of the product rounded to nearest, as here all is.
            left, _ = rounded(as_int64(as_float64(a) * as_float64(b)), a * 0, rule)
            right = c
        cells = with_losses(cells, tl.where(inside, lost64(left, right, y, half), 0), False)
    if (HOW & HISTOGRAM) > 0:
        count_histogram(bins, x, inside)
    return y, cells


@triton.jit
def load_step(x, index, inside, cells, told, bins, HOW: tl.constexpr):
    """Return addends cast to the format, and the cells: one that fits is no event, the others count as divided by zero.

    Nothing is divided here, so that this field is free to say how many were counted.
    """
    rule, word, step, _ = told
    if (HOW & NARROW) > 0:
        a = x & MAGNITUDE32
        r = unbounded32(x, drawn32(x, index, word, step, HOW), rule, HOW >> STYLE_AT)
        y, is_beyond = finished32(x, r, x != x, rule)
        if (HOW & COUNTS) > 0:
            # Another number, not a zero of another sign, and no NaN: only these are events.
            changes = inside & (y != x) & (((y | x) & MAGNITUDE32) != 0) & (a <= INF32)
            cells = grown(cells, events32(x, a, y, is_beyond, a < 0, a == INF32, changes, changes, rule), True)
    else:
        a = x & MAGNITUDE64
        y, is_beyond = rounded(x, drawn64(x, index, word, step, HOW), rule)
        changes = inside & (as_float64(y) != as_float64(x)) & (a <= INF64)
        if (HOW & COUNTS) > 0:
            cells = grown(cells, events(x, y, is_beyond, a < 0, a == INF64, changes, changes, rule), False)
        if (HOW & HISTOGRAM) > 0:
            count_histogram(bins, x, changes)
    return y, cells


@triton.jit
def drawn32(x, index, word, step, HOW: tl.constexpr):
    """Return the random bits of the results at `index`, aligned at 2^32; zeros where nothing is drawn."""
    drawn = (x * 0).to(tl.uint32)
    if (HOW & WIDTH) > 0:
        drawn = fields_at32(word, step, index, HOW & WIDTH)
    return drawn


@triton.jit
def drawn64(x, index, word, step, HOW: tl.constexpr):
    """Return the random bits of the results at `index`, aligned at 2^62; zeros where nothing is drawn."""
    drawn = x * 0
    if (HOW & WIDTH) > 0:
        drawn = drawn_at(word, step, index, HOW & WIDTH)
    return drawn
