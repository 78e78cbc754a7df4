"""The rounding kernels of the CPU: one pass over a chunk of memory, block by block.

    source   [ block ][ block ][ block ] ...
                |  copied or widened into x, which stays in the first-level cache
                v
             x --round and count--> target, which may be the source: x still knows what was there

Each takes raw addresses, the table of a plan and the address of a scratch for counters. Lanes are uint32 for
float32 and what widens to it, int64 for float64. They split no work and know no tensors.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import INF32, INF64, MAGNITUDE32, MAGNITUDE64, U0, U1, U23, rule32, rule64
from normstab.numerics.kernels.cpu.blocks import (
    BLOCK,
    nearest_block64,
    nearest_uncounted64,
    round_block32,
    round_block64,
    widened32,
)
from normstab.numerics.kernels.cpu.casts.cast_blocks import counted_block32, uncounted_block32
from normstab.numerics.kernels.cpu.compile import device, kernel, outside, right32, view
from normstab.numerics.kernels.cpu.counting import (
    COUNT,
    HISTOGRAM_BINS,
    INF_BIN,
    LARGEST,
    SCRATCH,
    SMALLEST,
    SUBNORMAL,
    ZERO_BIN,
    clear,
    count_special,
    histogram_bin,
)
from normstab.numerics.kernels.cpu.layout import FLOAT32, FLOAT64, copy_block, narrow_block, widen_block
from normstab.numerics.kernels.cpu.philox_cpu import draw_fields
from normstab.numerics.kernels.cpu.shortcuts import integer_block32, magic_block32, nearest_bits32
from normstab.numerics.kernels.shortcut_table import INTEGER, MAGIC

__all__ = [
    "copied32_counted",
    "histogram",
    "nearest32",
    "nearest32_counted",
    "nearest64",
    "quick32_chunk",
    "quick32_uncounted",
    "round32_chunk",
    "round64_chunk",
]

u32 = np.uint32
# Length of the scratch of one block of random bits.
WORDS = BLOCK + 8
# Counters of float32's biased exponents, four each; the bin of biased exponent 0, were it one of normal numbers.
EXPONENTS, FIRST_NORMAL_BIN = 4 * 256, 1074 - 127
MIN_NORMAL32 = u32(1 << 23)


@kernel
def nearest32(source, target, n, table):  # pragma: no cover - compiled
    """Round float32 at `source` into `target` (which may be `source`), ties to even, uncounted, by a shortcut."""
    rule = rule32(table)
    x, out = view(source, n, u32), view(target, n, u32)
    if rule.style == MAGIC:
        # One view in place: with two, the loop would find that
        # they overlap and give up its lanes (nine times slower).
        if source == target:
            for i in range(n):
                out[i] = nearest_bits32(out[i], MAGIC, rule)
        else:
            for i in range(n):
                out[i] = nearest_bits32(x[i], MAGIC, rule)
    else:
        for i in range(n):
            out[i] = nearest_bits32(x[i], INTEGER, rule)


@kernel
def nearest32_counted(source, target, n, table, scratch):  # pragma: no cover - compiled
    """Round float32 as nearest32 does, counting."""
    rule = rule32(table)
    counts = view(scratch, SCRATCH, np.int64)
    clear(counts)
    x = np.empty(BLOCK, u32)
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        # Infinite and NaN values are looked at after the block was written, perhaps over them.
        copy_block(view(source + 4 * start, m, u32), x, m)
        out = view(target + 4 * start, m, u32)
        if rule.style == MAGIC:
            magic_block32(x, out, m, rule, counts)
        else:
            integer_block32(x, out, m, rule, counts)


@device
def buffers32():
    """Return a block of what comes in, one of results, their random fields (0 where none are drawn), and words."""
    return np.empty(BLOCK, u32), np.empty(BLOCK, u32), np.zeros(BLOCK, u32), np.empty(WORDS, u32)


@kernel
def quick32_chunk(source, target, dtype, n, table, scratch, word, step, first):  # pragma: no cover - compiled
    """Round `n` numbers of a dtype up to float32 by the shortcut of casts, counting."""
    rule = rule32(table)
    counts = view(scratch, SCRATCH, np.int64)
    clear(counts)
    x, y, fields, words = buffers32()
    width = np.int64(rule.field_width)
    size = 4 if dtype == FLOAT32 else 2
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        widen_block(source + start * size, dtype, x, m)
        draw_fields(fields, words, word, step, first + start, m, width)
        counted_block32(x, fields, y, m, rule, counts)
        narrow_block(y, target + start * size, dtype, m)


@kernel
def quick32_uncounted(source, target, dtype, n, table, word, step, first):  # pragma: no cover - compiled
    """Round as quick32_chunk does, counting nothing."""
    rule = rule32(table)
    x, y, fields, words = buffers32()
    width = np.int64(rule.field_width)
    size = 4 if dtype == FLOAT32 else 2
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        draw_fields(fields, words, word, step, first + start, m, width)
        if dtype == FLOAT32 and source != target:
            given, out = view(source + 4 * start, m, u32), view(target + 4 * start, m, u32)
        else:
            given, out = x, y
            widen_block(source + start * size, dtype, x, m)
        uncounted_block32(given, fields, out, m, rule)
        if dtype != FLOAT32 or source == target:
            narrow_block(y, target + start * size, dtype, m)


@kernel
def round32_chunk(source, target, dtype, n, table, scratch, word, step, first):  # pragma: no cover - compiled
    """Round `n` numbers of a dtype up to float32 at `source` into `target` (0: count only), counting."""
    rule = rule32(table)
    counts = view(scratch, SCRATCH, np.int64)
    clear(counts)
    x, y, fields, words = buffers32()
    width = np.int64(rule.field_width)
    size = 4 if dtype == FLOAT32 else 2
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        widen_block(source + start * size, dtype, x, m)
        draw_fields(fields, words, word, step, first + start, m, width)
        round_block32(x, fields, y, m, rule, counts)
        if target != 0:
            narrow_block(y, target + start * size, dtype, m)


@kernel
def round64_chunk(source, target, n, table, scratch, word, step, first):  # pragma: no cover - compiled
    """Round `n` float64 at `source` into `target` (0: count only), counting."""
    rule = rule64(table)
    counts = view(scratch, SCRATCH, np.int64)
    clear(counts)
    x, y = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    fields, words = np.zeros(BLOCK, u32), np.empty(WORDS, u32)
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        copy_block(view(source + 8 * start, m, np.int64), x, m)
        draw_fields(fields, words, word, step, first + start, m, rule.field_width)
        if rule.style == MAGIC:
            has_special = nearest_block64(x, y, m, rule, counts)
        else:
            has_special = round_block64(x, fields, y, m, rule, counts)
        if has_special:
            for i in range(m):
                a, result = x[i] & MAGNITUDE64, y[i] & MAGNITUDE64
                if a >= INF64:
                    is_nan = a > INF64
                    y_nan, y_inf = result > INF64, result == INF64
                    count_special(counts, is_nan, y_nan, y_inf, is_nan, not is_nan, False, rule.saturates)
        if target != 0:
            copy_block(y, view(target + 8 * start, m, np.int64), m)


@kernel
def nearest64(source, target, n, table):  # pragma: no cover - compiled
    """Round float64 to nearest-even by the shortcut MAGIC, uncounted."""
    rule, x = rule64(table), np.empty(BLOCK, np.int64)
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        copy_block(view(source + 8 * start, m, np.int64), x, m)
        nearest_uncounted64(x, view(target + 8 * start, m, np.int64), m, rule)


@kernel
def copied32_counted(source, n, table, scratch, bins):  # pragma: no cover - compiled
    """Count `n` float32 that a format holds as they are; with `bins` (else 0), add them to a histogram too."""
    rule, counts = rule32(table), view(scratch, SCRATCH, np.int64)
    clear(counts)
    exponents, y, fields = np.zeros(EXPONENTS, np.int64), np.empty(BLOCK, u32), np.zeros(BLOCK, u32)
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        x = view(source + 4 * start, m, u32)
        top, bottom, small = survey(x, m, rule.least_normal)
        # Rounding changes nothing here, but what infinities and NaN count as is known there.
        if top >= INF32:
            round_block32(x, fields, y, m, rule, counts)
        else:
            counts[COUNT] += m
            counts[SUBNORMAL] += small
            add_extremes(top, bottom, counts)
        if bins != 0:
            count_exponents(x, m, top, exponents, view(bins, HISTOGRAM_BINS, np.int64))
    if bins != 0:
        add_exponents(exponents, view(bins, HISTOGRAM_BINS, np.int64))


@outside
def survey(x, n, least_normal):  # pragma: no cover - compiled
    """Return the largest magnitude, the smallest less 1 (a zero counts as the greatest), how many are subnormal."""
    top, bottom, small = U0, ~U0, U0
    for i in range(n):
        a = u32(x[i] & MAGNITUDE32)
        top, bottom = max(top, a), min(bottom, u32(a - U1))
        # 0 < a < least_normal in one comparison: zero wraps to the greatest.
        # In fixed point, 0, nothing is below.
        small = u32(small + u32(u32(a - U1) < u32(max(least_normal, U1) - U1)))
    return top, bottom, small


@outside
def add_extremes(top, bottom, counts):  # pragma: no cover - compiled
    """Raise and lower the extremes of a scratch to those of finite float32."""
    if top != U0:
        counts[LARGEST] = max(counts[LARGEST], widened32(top))
        counts[SMALLEST] = min(counts[SMALLEST], widened32(u32(bottom + U1)))


@outside
def count_exponents(x, n, top, exponents, bins):  # pragma: no cover - compiled
    """Count a block of float32 by their biased exponent; where some are special or subnormal, by their bin."""
    # The rare kinds are only noticed here: a block without any,
    # as nearly all are, counts exponents and nothing else.
    odd = u32(top >= INF32)
    for i in range(n):
        a = u32(x[i] & MAGNITUDE32)
        odd = u32(odd + u32(u32(a - U1) < u32(MIN_NORMAL32 - U1)))
    if odd != U0:
        for i in range(n):
            a = u32(x[i] & MAGNITUDE32)
            bins[histogram_bin(widened32(a)) if a < INF32 else INF_BIN + (a > INF32)] += 1
        return
    for i in range(n):  # four counters an exponent: consecutive increments of one would wait for each other
        exponents[4 * np.int64(right32(u32(x[i] & MAGNITUDE32), U23)) + (i & 3)] += 1


@outside
def add_exponents(exponents, bins):  # pragma: no cover - compiled
    """Add what count_exponents counted: exponent 0 are zeros."""
    for e in range(EXPONENTS // 4):
        found = exponents[4 * e] + exponents[4 * e + 1] + exponents[4 * e + 2] + exponents[4 * e + 3]
        if found != 0:
            bins[ZERO_BIN if e == 0 else e + FIRST_NORMAL_BIN] += found


@kernel
def histogram(source, dtype, n, bins):  # pragma: no cover - compiled
    """Add `n` numbers to the histogram of a ledger row: one bin per binade, then zero, infinity, NaN."""
    counts = view(bins, HISTOGRAM_BINS, np.int64)
    x, exponents = np.empty(BLOCK, u32), np.zeros(EXPONENTS, np.int64)
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        if dtype == FLOAT64:
            wide = view(source + 8 * start, m, np.int64)
            for i in range(m):
                counts[histogram_bin(wide[i])] += 1
        else:
            widen_block(source + start * (4 if dtype == FLOAT32 else 2), dtype, x, m)
            count_exponents(x, m, survey(x, m, U0)[0], exponents, counts)
    add_exponents(exponents, counts)
