"""Stochastic rounding of float32 that lie in another order than they are counted: transposed, or channels_last.

Such a tensor is N matrices of B rows of A numbers in memory, and element (n, b, a) has the index (n A + a) B + b. So
the elements that share a block of random bits lie below each other, in 128 / width rows; one walk along those rows
draws every block once:

    memory, width 16      a     a+1   ...          index of (b, a): a B + b
    row b              [ i     i+B   ... ]         block of a column: (a B + b) / 8, the same for rows b .. b+7
    row b+1            [ i+1   i+B+1 ... ]
    ...                                            B divides by 8, so no column's elements lie in two blocks
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.numerics.kernels.cpu.bits import rule32
from normstab.numerics.kernels.cpu.casts.cast_blocks import counted_block32, uncounted_block32
from normstab.numerics.kernels.cpu.compile import kernel, left32, outside, right32, view
from normstab.numerics.kernels.cpu.counting import SCRATCH, clear
from normstab.numerics.kernels.cpu.layout import copy_block
from normstab.numerics.kernels.cpu.philox_cpu import philox_block

__all__ = ["BLOCK_BITS", "turned32"]

u32 = np.uint32
BLOCK_BITS = 128  # of one block of Philox
STRIP = 512  # elements of a row at a time, so that what is drawn for its columns stays in the first-level cache


@kernel
def turned32(source, target, sizes, groups, table, scratch, draw):  # pragma: no cover - compiled
    """Round groups `groups[0]` to `groups[1]` of rows that share random bits, counting where `scratch` is not 0.

    `sizes` are A and B, `draw` the words of the key and the step, and the first index.
    """
    rule = rule32(table)
    width = np.int64(rule.field_width)
    rows = BLOCK_BITS // width
    a_size, b_size = sizes
    word, step, first = draw
    x, y, fields, words = np.empty(STRIP, u32), np.empty(STRIP, u32), np.empty(STRIP, u32), np.empty(4 * STRIP, u32)
    counts = np.empty(SCRATCH, np.int64) if scratch == 0 else view(scratch, SCRATCH, np.int64)
    clear(counts)
    for group in range(groups[0], groups[1]):
        matrix, b = group // (b_size // rows), group % (b_size // rows) * rows
        for a in range(0, a_size, STRIP):
            m = min(STRIP, a_size - a)
            index = first + (matrix * a_size + a) * b_size + b
            draw_columns(words, word, step, index // rows, b_size // rows, m)
            for row in range(rows):
                field_row(words, fields, row, width, m)
                place = 4 * ((matrix * b_size + b + row) * a_size + a)
                copy_block(view(source + place, m, u32), x, m)
                if scratch == 0:
                    uncounted_block32(x, fields, y, m, rule)
                else:
                    counted_block32(x, fields, y, m, rule, counts)
                copy_block(y, view(target + place, m, u32), m)


@outside
def draw_columns(words, key, step, block, apart, n):
    """Draw blocks block, block + apart, ...: word w of column i is words[w * STRIP + i]."""
    for i in range(n):
        c0, c1, c2, c3 = philox_block(key, step, block + i * apart)
        words[i], words[STRIP + i] = u32(c0), u32(c1)
        words[2 * STRIP + i], words[3 * STRIP + i] = u32(c2), u32(c3)


@outside
def field_row(words, fields, row, width, n):
    """Set fields[:n] to the fields of the elements in a row of the group, in the topmost bits."""
    per_word = 32 // width
    own = words[row // per_word * STRIP :]
    low, spare = u32(row % per_word * width), u32(32 - width)
    for i in range(n):
        fields[i] = left32(right32(own[i], low), spare)
