"""Vector operations that bring addends to their lanes, rounded on the way where nothing counts what moves.

    row 0    [ x00 x01 x02 ... ]                  line 0   [ x00 x10 x20 ... ]
    row 1    [ x10 x11 x12 ... ]   transposed     line 1   [ x01 x11 x21 ... ]
    row 2    [ x20 x21 x22 ... ]                  line 2   [ x02 x12 x22 ... ]

A row is a sum, and lies along memory; a line has one addend of every sum. Arguments are as in lanes.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from normstab.numerics.kernels.cpu.compile import outside
from normstab.numerics.kernels.cpu.vector.note_code import OF_ADDENDS, Note
from normstab.numerics.kernels.cpu.vector.rounding_code import Rounder, operation
from normstab.numerics.kernels.cpu.vector.vectors import I64, LANES, PARTS, VECTOR, VI, WIDTH, scaled
from normstab.numerics.kernels.cpu.vector.ways import UNCOUNTED

__all__ = ["copy_line", "taken", "transpose", "word"]


def taken(rounder: Rounder, x, note: Note):
    """Return addends as they are read: rounded at once, or as they are where what moves has to be counted."""
    return rounder.fitted(x, note) if rounder.counts == UNCOUNTED else x


def _transpose(rounder: Rounder, rows, offset, target, target_step, notes):
    """Write a block of 16 floats of each of 16 rows, by address, to 16 lanes at target, rounded as addends are.

    Source: Eklundh 1972, blocks exchanged off the diagonal.
    """
    code, b, lines, addends = rounder.code, rounder.b, [], Note(rounder.code, notes, OF_ADDENDS, 0)
    addends.begin(None)
    for i in range(WIDTH):
        address = b.load(code.at(rows, 8 * i, I64))
        lines.append(taken(rounder, code.load(address, offset), addends))
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
    addends.end()
    addends.finish()


def _copy_line(rounder: Rounder, source, target, ahead, notes):
    """Copy a line from source to target, rounded as addends are, and ask for the memory `ahead` of it."""
    code, addends = rounder.code, Note(rounder.code, notes, OF_ADDENDS, 0)
    addends.begin(None)
    for v in PARTS:
        code.store(taken(rounder, code.load(source, v), addends), target, v)
        code.prefetch(rounder.b.add(source, ahead), v)
    addends.end()
    addends.finish()


def _word(typing_context, address):
    """Return the int64 at an address."""

    def generate(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], I64.as_pointer()))

    return types.int64(types.int64), generate


word: Any = intrinsic(_word)  # typed, numba's intrinsic would want the typing context from its callers

# Operations of a way, as in lanes.
copy_line, transpose_block = operation(4, _copy_line), operation(5, _transpose)


@outside
def transpose(way, rows, columns, target, target_step, notes):  # pragma: no cover - compiled
    """Write `columns` (a multiple of 16) floats of each of 64 rows, by address, to 64 lanes at target."""
    for r in range(0, LANES, WIDTH):
        for c in range(0, columns, WIDTH):
            transpose_block(way, (rows + 8 * r, 4 * c, target + c * target_step + 4 * r, target_step, notes))
