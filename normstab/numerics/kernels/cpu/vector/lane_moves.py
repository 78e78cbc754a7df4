"""Vector operations that bring addends to their lanes, rounded on the way where nothing counts what moves.

    row 0    [ x00 x01 x02 ... ]                  line 0   [ x00 x10 x20 ... ]
    row 1    [ x10 x11 x12 ... ]   transposed     line 1   [ x01 x11 x21 ... ]
    row 2    [ x20 x21 x22 ... ]                  line 2   [ x02 x12 x22 ... ]

A row is a sum, and lies along memory; a line has one addend of every sum. Arguments are as in lanes.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from normstab.numerics.kernels.cpu.vector.note_code import OF_ADDENDS, Note
from normstab.numerics.kernels.cpu.vector.rounding_code import Rounder
from normstab.numerics.kernels.cpu.vector.vectors import (
    I64,
    PARTS,
    VECTOR,
    VECTORS,
    VI,
    WIDTH,
    Code,
    repeated,
    scaled,
)
from normstab.numerics.kernels.cpu.vector.ways import UNCOUNTED

__all__ = ["taken", "write_copy_line", "write_transpose", "write_turn"]


def taken(rounder: Rounder, x, note: Note):
    """Return addends as they are read: rounded at once, or as they are where what moves has to be counted."""
    return rounder.fitted(x, note) if rounder.counts == UNCOUNTED else x


def turn_block(code: Code, rows, offset, target, target_step, take: Callable[[Any], Any]) -> None:
    """Write 16 floats of each of 16 rows to 16 lanes, as `take` gives them.

    Source: Eklundh 1972, blocks exchanged off the diagonal.
    """
    b, lines = code.b, []
    for i in range(WIDTH):
        address = b.load(code.at(rows, 8 * i, I64))
        lines.append(take(code.load(address, offset)))
        code.prefetch(b.add(address, offset), 2 * VECTOR)
    # Pairs of lines s apart exchange blocks of s numbers:
    # after four rounds row and column have changed places.
    for s in (1, 2, 4, 8):
        low = ir.Constant(VI, [j if not j & s else WIDTH + j - s for j in range(WIDTH)])
        high = ir.Constant(VI, [j + s if not j & s else WIDTH + j for j in range(WIDTH)])
        for i in range(WIDTH):
            if not i & s:
                left, right = lines[i], lines[i + s]
                lines[i], lines[i + s] = b.shuffle_vector(left, right, low), b.shuffle_vector(left, right, high)
    for i in range(WIDTH):
        code.store(lines[i], target, scaled(code, ir.Constant(I64, i), target_step, 0))


def blocks_of(code: Code, rows, columns, target, target_step, block: Callable[..., None]) -> None:
    """Emit block(rows, offset, target) for each block of 16 x 16 of 64 rows of `columns` (a multiple of 16)."""
    b, width = code.b, ir.Constant(I64, WIDTH)

    def strip(r):
        own, lanes = b.add(rows, scaled(code, r, 8 * WIDTH, 0)), b.add(target, scaled(code, r, VECTOR, 0))

        def at(c):
            line = b.mul(b.mul(c, width), target_step)
            block(own, scaled(code, c, VECTOR, 0), b.add(lanes, line))

        repeated(code, b.sdiv(columns, width), at)

    repeated(code, ir.Constant(I64, VECTORS), strip)


def write_turn(code: Code, rows, columns, target, target_step):
    """Write `columns` (a multiple of 16) floats of each of 64 rows, by address, to 64 lanes at target, as they are."""

    def block(rows, offset, target):
        turn_block(code, rows, offset, target, target_step, lambda x: x)

    blocks_of(code, rows, columns, target, target_step, block)


def write_transpose(rounder: Rounder, rows, columns, target, target_step, notes):
    """Write them rounded as addends are."""
    addends = Note(rounder.code, notes, OF_ADDENDS, 0)

    def block(rows, offset, target):
        addends.begin(None)
        turn_block(rounder.code, rows, offset, target, target_step, lambda x: taken(rounder, x, addends))
        addends.end()

    blocks_of(rounder.code, rows, columns, target, target_step, block)
    addends.finish()


def write_copy_line(rounder: Rounder, source, target, ahead, notes):
    """Copy a line from source to target, rounded as addends are, and ask for the memory `ahead` of it."""
    code, addends = rounder.code, Note(rounder.code, notes, OF_ADDENDS, 0)
    addends.begin(None)
    for v in PARTS:
        code.store(taken(rounder, code.load(source, v), addends), target, v)
        code.prefetch(rounder.b.add(source, ahead), v)
    addends.end()
    addends.finish()
