"""One rounded operation on a block in float64, for every format of p <= 24 and every mode: what block_steps cannot do.

    a, b   float32  --widened-->  p, q  --float64-->  exact  --round_ordinary, else round_finite,-->  rounded  -->  y
                                                               else round_block64

Three ways to round, each tried before the next: where all numbers lose the same bits and are in range, where all are
finite and in range, and anything at all. Bits and counters are the same. The same block, the same buffers; random
bits are drawn by the index of an element in the whole tensor.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.norms.cpu.block_steps import ADD, CAST, DIV, MUL, SQRT, SUB
from normstab.norms.cpu.environment import SLOTS, field, index_of, slot
from normstab.norms.fused.layer_table import BLOCK, FIELDS
from normstab.numerics.kernels.cpu.bits import ALIGN64, INF64, MAGNITUDE64, SIGN64, magnitude64, rule64
from normstab.numerics.kernels.cpu.blocks import round_block64
from normstab.numerics.kernels.cpu.compile import as_float32, as_float64, as_int64, device, outside, view
from normstab.numerics.kernels.cpu.counting import COUNT, LARGEST, SMALLEST, SUBNORMAL, UNDERFLOW, count_special
from normstab.numerics.kernels.cpu.cpu_pointwise import widen
from normstab.numerics.kernels.cpu.layout import narrow_exact
from normstab.numerics.kernels.cpu.philox_cpu import draw_fields, draw_runs
from normstab.numerics.kernels.cpu.sums.steps import CONTEXT, DOWN, FOLDS, KEY, SCRATCH_AT, STEP
from normstab.numerics.kernels.cpu.to_odd import sum_to_odd

__all__ = ["draw_block", "narrow", "round_values", "wide_block", "widen_both"]

u32 = np.uint32
LENGTH, RUN_STRIDE, COUNTS_INEXACT, FLUSHES = (
    FIELDS.index(name) for name in ("length", "run_stride", "counts_inexact", "flushes")
)
SHORT = 32  # runs up to here are drawn side by side
ALL = u32(0xFFFFFFFF)
AT_DRAWN, AT_WORDS, AT_P, AT_Q, AT_EXACT, AT_ROUNDED = (
    SLOTS.index(name) for name in ("drawn", "words", "p", "q", "exact", "rounded")
)


@outside
def draw_block(env, group, first, n, context):  # pragma: no cover - compiled
    """Draw the random bits of values number first .. of a group: many short runs at once, or run by run."""
    numbers = view(context, CONTEXT, np.int64)
    width = rule64(numbers).field_width
    if width == 0:
        return
    length, stride, done = field(env, LENGTH), field(env, RUN_STRIDE), 0
    are_alike = length <= SHORT and stride % (128 // width) == 0
    words = view(slot(env, AT_WORDS), BLOCK + 16, u32)
    # Within a run indices follow one another, and Philox blocks are shared.
    while done < n:
        begun, index = (first + done) % length, index_of(env, group, first + done)
        runs = (n - done) // length if are_alike and begun == 0 else 0
        m = runs * length if runs > 1 else min(length - begun, n - done)
        drawn = view(slot(env, AT_DRAWN) + 4 * done, m, u32)
        if runs > 1:
            draw_runs(drawn, words, numbers[KEY], numbers[STEP], index, runs, length, stride, width)
        else:
            draw_fields(drawn, words, numbers[KEY], numbers[STEP], index, m, width)
        done += m


@outside
def wide_block(kind, a, b, y, group, first, n, context, env):  # pragma: no cover - compiled
    """Set y to the rounded results of an operation, and count them; a cast and a root have their operand twice."""
    p, q = view(slot(env, AT_P), n, np.float64), view(slot(env, AT_Q), n, np.float64)
    c, numbers = view(slot(env, AT_EXACT), n, np.float64), view(context, CONTEXT, np.int64)
    folds, down = numbers[FOLDS] != 0, numbers[DOWN] != 0
    flushes = field(env, FLUSHES) != 0
    widen_both(a, b, ALL, n, flushes, env)
    if kind == CAST:
        for i in range(n):
            c[i] = p[i]
    elif kind == ADD:
        for i in range(n):
            c[i] = sum_to_odd(p[i], q[i], folds, down)
    elif kind == SUB:
        for i in range(n):
            c[i] = sum_to_odd(p[i], -q[i], folds, down)
    elif kind == MUL:
        for i in range(n):
            c[i] = p[i] * q[i]
    elif kind == SQRT:
        for i in range(n):
            c[i] = np.sqrt(p[i])
    else:
        for i in range(n):
            c[i] = p[i] / q[i]
    draw_block(env, group, first, n, context)
    round_values(kind, n, 0, context, env)
    narrow(y, n, flushes, env)


@outside
def widen_both(a, b, mask, n, flushes, env):  # pragma: no cover - compiled
    """Widen the operands at a and b into their buffers; `mask` keeps all bits of b or the magnitude's.

    Only where the processor flushes subnormals are integers needed for it.
    """
    p, q = view(slot(env, AT_P), n, np.float64), view(slot(env, AT_Q), n, np.float64)
    left, right = view(a, n, u32), view(b, n, u32)
    if flushes:
        for i in range(n):
            p[i], q[i] = widen(left[i]), widen(u32(right[i] & mask))
    else:
        for i in range(n):
            p[i], q[i] = np.float64(as_float32(left[i])), np.float64(as_float32(u32(right[i] & mask)))


@outside
def narrow(at, n, flushes, env):  # pragma: no cover - compiled
    """Write the rounded results, which float32 represents, to the block at `at`."""
    narrow_exact(view(slot(env, AT_ROUNDED), n, np.int64), at, n, flushes)


@outside
def round_values(kind, n, drawn_from, context, env):  # pragma: no cover - compiled
    """Round the n exact results in the wide buffers, and count them, given their operands there."""
    exact_at, drawn_at, rounded_at = slot(env, AT_EXACT), slot(env, AT_DRAWN) + 4 * drawn_from, slot(env, AT_ROUNDED)
    # The quick ways do not look whether a result is inexact.
    if field(env, COUNTS_INEXACT) == 0 and (
        round_ordinary(exact_at, drawn_at, rounded_at, n, context)
        or round_finite(exact_at, drawn_at, rounded_at, n, context)
    ):
        return
    x, rounded, drawn = view(exact_at, n, np.int64), view(rounded_at, n, np.int64), view(drawn_at, n, u32)
    numbers = view(context, CONTEXT, np.int64)
    rule, scratch = rule64(numbers), numbers[SCRATCH_AT:]
    if not round_block64(x, drawn, rounded, n, rule, scratch):
        return
    p, q = view(slot(env, AT_P), n, np.float64), view(slot(env, AT_Q), n, np.float64)
    for i in range(n):
        exact, result = x[i] & MAGNITUDE64, rounded[i] & MAGNITUDE64
        if exact < INF64:
            continue
        has_nan, has_inf = (p[i] != p[i]) | (q[i] != q[i]), (abs(p[i]) == np.inf) | (abs(q[i]) == np.inf)
        zero_divided = (kind == DIV) & (q[i] == 0) & (p[i] != 0) & (abs(p[i]) < np.inf)
        y_nan, y_inf = result > INF64, result == INF64
        count_special(scratch, exact > INF64, y_nan, y_inf, has_nan, has_inf, zero_divided, rule.saturates)


@outside
def round_ordinary(exact, drawn, rounded, n, context):  # pragma: no cover - compiled
    """Round a block and count it, if all values are finite and in range; else return False.

    Normal numbers lose the same number of bits, and nothing but the extremes has to be counted. Where some are
    subnormal they are rounded again. The block and its random bits are given by address, as is the context.
    """
    numbers = view(context, CONTEXT, np.int64)
    rule = rule64(numbers)
    # Fixed point, formats without -0, and those that lose no bits have no such place to cut at.
    # Of one digit the last bit that stays is the exponent's, which does not say whether the digit is odd.
    if rule.least_normal == 0 or rule.zero_sign == 0 or rule.shift == 0 or rule.shift == 52:
        return False
    x, y, fields = view(exact, n, np.int64), view(rounded, n, np.int64), view(drawn, n, u32)
    top, bottom, s = 0, MAGNITUDE64, rule.shift
    # The s last bits go.
    # What a mode adds is aligned at 2^62, and comes down to them.
    kept, down = -1 << s, ALIGN64 - s
    # What is added carries into the bits that stay where the rounding is away from zero; random bits come alone.
    if rule.drawn != 0:
        for i in range(n):
            a = x[i] & MAGNITUDE64
            y[i] = ((a + (((np.int64(fields[i]) << 30) & rule.drawn) >> down)) & kept) | (x[i] & SIGN64)
            top, bottom = max(top, a), min(bottom, (a - 1) & MAGNITUDE64)
    else:
        for i in range(n):
            a = x[i] & MAGNITUDE64
            addend = rule.add + (rule.add_odd & -((a >> s) & 1)) + (rule.add_negative & (x[i] >> 63))
            y[i] = ((a + (addend >> down)) & kept) | (x[i] & SIGN64)
            top, bottom = max(top, a), min(bottom, (a - 1) & MAGNITUDE64)
    if top > rule.limit_positive:
        return False
    if bottom < rule.least_normal - 1:
        if rule.flushed_below != 0:
            return False
        # Two calls, in each of which it is a constant whether bits are drawn.
        if rule.drawn != 0:
            round_subnormals(x, fields, y, n, True, rule, numbers[SCRATCH_AT:])
        else:
            round_subnormals(x, fields, y, n, False, rule, numbers[SCRATCH_AT:])
    add_ordinary(numbers[SCRATCH_AT:], n, top, bottom)
    return True


@device
def round_subnormals(x, fields, y, n, is_drawn, rule, scratch):
    """Round the values below the least normal number, and count those that are subnormal or become zero.

    Added to that number they are in its binade, whose quantum is theirs: they lose as many bits as normal numbers.
    The sum is rounded to odd, so that no rounding after it can tell.
    """
    zeros, zeros_in, small = np.int64(0), np.int64(0), np.int64(0)
    s, least = rule.shift, as_float64(rule.least_normal)
    kept, down = -1 << s, ALIGN64 - s
    for i in range(n):
        a = x[i] & MAGNITUDE64
        lifted = as_float64(a) + least
        error = as_float64(a) - (lifted - least)
        m = (as_int64(lifted) - np.int64(error < 0.0)) | np.int64(error != 0.0)
        if is_drawn:
            addend = (np.int64(fields[i]) << 30) & rule.drawn
        else:
            addend = rule.add + (rule.add_odd & -((m >> s) & 1)) + (rule.add_negative & (x[i] >> 63))
        r = as_int64(as_float64((m + (addend >> down)) & kept) - least)
        is_small = a < rule.least_normal
        y[i] = r | (x[i] & SIGN64) if is_small else y[i]
        zeros += np.int64(is_small & (r == 0))
        zeros_in += np.int64(a == 0)
        small += np.int64(is_small & (r < rule.least_normal))
    scratch[UNDERFLOW] += zeros - zeros_in
    scratch[SUBNORMAL] += small - zeros


@outside
def round_finite(exact, drawn, rounded, n, context):  # pragma: no cover - compiled
    """Round a block and count it, if all results are finite and in range; else return False."""
    numbers = view(context, CONTEXT, np.int64)
    rule, scratch = rule64(numbers), numbers[SCRATCH_AT:]
    x, y, fields = view(exact, n, np.int64), view(rounded, n, np.int64), view(drawn, n, u32)
    top, bottom, result = 0, MAGNITUDE64, 0
    zeros, zeros_in, small = np.int64(0), np.int64(0), np.int64(0)
    for i in range(n):
        a, negative = x[i] & MAGNITUDE64, x[i] >> 63
        r = magnitude64(a, negative, np.int64(fields[i]) << 30, rule)
        sign = x[i] & SIGN64
        y[i] = (sign & rule.zero_sign) if r == 0 else (r | sign)
        zeros += np.int64(r == 0)
        zeros_in += np.int64(a == 0)
        small += np.int64(r < rule.least_normal)
        top, bottom, result = max(top, a), min(bottom, (a - 1) & MAGNITUDE64), max(result, r)
    # Nothing was counted yet: another way begins anew.
    if top >= INF64 or result > min(rule.limit_positive, rule.limit_negative):
        return False
    add_ordinary(scratch, n, top, bottom)
    scratch[UNDERFLOW] += zeros - zeros_in
    scratch[SUBNORMAL] += small - zeros if rule.least_normal != 0 else 0
    return True


@device
def add_ordinary(scratch, n, top, bottom):
    """Count n results, none of them an event, and the extremes of their magnitudes."""
    scratch[COUNT] += n
    if top != 0:
        scratch[LARGEST], scratch[SMALLEST] = max(scratch[LARGEST], top), min(scratch[SMALLEST], bottom + 1)
