"""The vector operations of lanes, written as LLVM instructions: one per way of rounding, with or without counting."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from normstab.numerics.kernels.cpu.vector.vectors import (
    I64,
    PARTS,
    VECTOR,
    VF,
    VI,
    WIDTH,
    Code,
    Held,
    operation,
    repeated,
    scaled,
    splat,
)
from normstab.numerics.kernels.nearest import HALF, MAGIC, PLAIN

__all__ = [
    "chain_half",
    "chain_half_counted",
    "chain_half_fitting",
    "chain_magic",
    "chain_magic_counted",
    "chain_magic_fitting",
    "chain_plain",
    "chain_plain_counted",
    "copy_half",
    "copy_magic",
    "copy_plain",
    "halve_half",
    "halve_half_counted",
    "halve_magic",
    "halve_magic_counted",
    "halve_plain",
    "halve_plain_counted",
    "join_half",
    "join_half_counted",
    "join_magic",
    "join_magic_counted",
    "join_plain",
    "join_plain_counted",
    "round_half",
    "round_half_counted",
    "round_magic",
    "round_magic_counted",
    "transpose_half",
    "transpose_magic",
    "transpose_plain",
    "word",
]


def _join(style: int, counts: bool) -> Any:
    """Return the operation of `join` for one way of rounding."""

    def emit(builder, a, a_step, x, x_step, y, y_step, n, table, seen):
        code = Code(builder, table)
        notes = Held(code, seen)

        def body(i):
            now = notes.get()
            for v in PARTS:
                left, right = code.load(a, scaled(code, i, a_step, v)), code.load(x, scaled(code, i, x_step, v))
                code.store(code.added(left, right, style, counts, now), y, scaled(code, i, y_step, v))
            notes.set(now)

        repeated(code, n, body)
        notes.finish()

    return operation(9, emit)


def _chain(style: int, counts: bool, fits: bool) -> Any:
    """Return the operation of `chain` for one way of rounding, of addends that fit or are rounded first."""

    def emit(builder, total, x, x_step, n, table, seen):
        code = Code(builder, table)
        notes, sums = Held(code, seen), Held(code, total, 4, VF)

        def body(i):
            now, lines = notes.get(), sums.get()
            for part, v in enumerate(PARTS):
                addend = code.load(x, scaled(code, i, x_step, v))
                addend = addend if fits else code.fitted(addend, style, now)
                lines[part] = code.added(lines[part], addend, style, counts, now)
            notes.set(now)
            sums.set(lines)

        repeated(code, n, body)
        notes.finish()
        sums.finish()

    return operation(6, emit)


def _halve(style: int, counts: bool) -> Any:
    """Return the operation of `halve` for one way of rounding; without counting it rounds the addends too."""
    even = ir.Constant(VI, list(range(0, 2 * WIDTH, 2)))
    odd = ir.Constant(VI, list(range(1, 2 * WIDTH, 2)))

    def emit(builder, x, y, n, table, seen):
        code = Code(builder, table)
        notes = Held(code, seen)

        def body(i):
            now = notes.get()
            row = [code.load(x, scaled(code, i, ir.Constant(I64, VECTOR * WIDTH), VECTOR * v)) for v in range(WIDTH)]
            row = row if counts else [code.fitted(value, style, now) for value in row]
            while len(row) > 1:
                pairs = list(zip(row[::2], row[1::2], strict=True))
                split = [[builder.shuffle_vector(a, b, places) for places in (even, odd)] for a, b in pairs]
                row = [code.added(a, b, style, counts, now) for a, b in split]
            code.store(row[0], y, scaled(code, i, ir.Constant(I64, VECTOR), 0))
            notes.set(now)

        repeated(code, n, body)
        notes.finish()

    return operation(5, emit)


def _round(style: int, counts: bool) -> Any:
    """Return the operation of `round_in_place` for one way of rounding."""

    def emit(builder, x, n, moved, table, seen):
        code = Code(builder, table)
        notes, counted = Held(code, seen, 4), Held(code, moved, 1)

        def body(i):
            at, now = builder.mul(i, ir.Constant(I64, VECTOR)), notes.get()
            value = code.load(x, at)
            result = code.nearest(value, style) if counts else code.fitted(value, style, now)
            code.store(result, x, at)
            if counts:
                size, after = code.size(value), code.size(result)
                is_special = builder.icmp_unsigned(">=", size, code.special)
                is_moved = builder.or_(builder.icmp_unsigned("!=", size, after), is_special)
                mask = builder.sext(is_moved, VI)
                code.note(builder.and_(size, mask), builder.bitcast(builder.and_(after, mask), VF), now)
                is_gone = builder.and_(is_moved, builder.icmp_unsigned("==", after, splat(0)))
                now[3] = builder.sub(now[3], builder.sext(is_gone, VI))
                counted.set([builder.sub(counted.get()[0], mask)])
            notes.set(now)

        repeated(code, n, body)
        notes.finish()
        counted.finish()

    return operation(5, emit)


def _transpose(style: int) -> Any:
    """Return the operation of one block of `transpose`, 16 x 16 floats, rounded as addends are.

    Source: Eklundh 1972, blocks exchanged off the diagonal.
    """

    def emit(builder, rows, offset, target, target_step, table, seen):
        code, lines = Code(builder, table), []
        notes = Held(code, seen)
        now = notes.get()
        for i in range(WIDTH):
            address = builder.load(code.at(rows, 8 * i, I64))
            lines.append(code.fitted(code.load(address, offset), style, now))
            code.prefetch(builder.add(address, offset), 2 * VECTOR)
        for s in (1, 2, 4, 8):
            low = ir.Constant(VI, [j if not j & s else WIDTH + j - s for j in range(WIDTH)])
            high = ir.Constant(VI, [j + s if not j & s else WIDTH + j for j in range(WIDTH)])
            for i in range(WIDTH):
                if not i & s:
                    a, b = lines[i], lines[i + s]
                    lines[i], lines[i + s] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
        for i in range(WIDTH):
            code.store(lines[i], target, scaled(code, ir.Constant(I64, i), target_step, 0))
        notes.set(now)
        notes.finish()

    return operation(6, emit)


def _copy(style: int) -> Any:
    """Return the operation of `copy_line`, rounded as addends are."""

    def emit(builder, source, target, ahead, table, seen):
        code = Code(builder, table)
        notes = Held(code, seen)
        now = notes.get()
        for v in PARTS:
            code.store(code.fitted(code.load(source, v), style, now), target, v)
            code.prefetch(builder.add(source, ahead), v)
        notes.set(now)
        notes.finish()

    return operation(5, emit)


def _word(typing_context, address):
    """Return the int64 at an address."""

    def generate(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], I64.as_pointer()))

    return types.int64(types.int64), generate


word: Any = intrinsic(_word)  # typed, numba's intrinsic would want the typing context from its callers


# The operations: what each does is in the docstring of its maker; the endings say how it rounds and whether it counts.
transpose_plain, transpose_half, transpose_magic = _transpose(PLAIN), _transpose(HALF), _transpose(MAGIC)
copy_plain, copy_half, copy_magic = _copy(PLAIN), _copy(HALF), _copy(MAGIC)
join_plain, join_plain_counted = _join(PLAIN, False), _join(PLAIN, True)
join_half, join_half_counted = _join(HALF, False), _join(HALF, True)
join_magic, join_magic_counted = _join(MAGIC, False), _join(MAGIC, True)
halve_plain, halve_plain_counted = _halve(PLAIN, False), _halve(PLAIN, True)
halve_half, halve_half_counted = _halve(HALF, False), _halve(HALF, True)
halve_magic, halve_magic_counted = _halve(MAGIC, False), _halve(MAGIC, True)
round_half, round_half_counted = _round(HALF, False), _round(HALF, True)
round_magic, round_magic_counted = _round(MAGIC, False), _round(MAGIC, True)
chain_plain, chain_plain_counted = _chain(PLAIN, False, True), _chain(PLAIN, True, True)
chain_half, chain_half_counted = _chain(HALF, False, True), _chain(HALF, True, True)
chain_magic, chain_magic_counted = _chain(MAGIC, False, True), _chain(MAGIC, True, True)
chain_half_fitting, chain_magic_fitting = _chain(HALF, False, False), _chain(MAGIC, False, False)
