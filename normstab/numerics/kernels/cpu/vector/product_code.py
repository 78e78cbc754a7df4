"""The vector operations of lanes that multiply, written as LLVM instructions, one per way of rounding.

A factor is the same for a whole line. Its product is rounded by itself, before it is added.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from normstab.numerics.kernels.cpu.vector.vectors import (
    I64,
    LINE,
    PARTS,
    VF,
    Code,
    Held,
    operation,
    repeated,
    scaled,
)
from normstab.numerics.kernels.nearest import HALF, MAGIC, PLAIN

__all__ = [
    "multiply_chain_half",
    "multiply_chain_half_counted",
    "multiply_chain_magic",
    "multiply_chain_magic_counted",
    "multiply_chain_plain",
    "multiply_chain_plain_counted",
    "multiply_half",
    "multiply_half_counted",
    "multiply_magic",
    "multiply_magic_counted",
    "multiply_plain",
    "multiply_plain_counted",
]


def _multiply_chain(style: int, counts: bool) -> Any:
    """Return the operation of `multiply_chain` for one way of rounding."""

    def emit(builder, total, a, x, n, exact, table, seen, seen_of_products):
        code = Code(builder, table)
        notes, of_products, sums = Held(code, seen), Held(code, seen_of_products, 4), Held(code, total, 4, VF)

        def body(i, is_exact):
            now, products, lines = notes.get(), of_products.get(), sums.get()
            factor = code.everywhere(builder.load(code.at(a, builder.mul(i, ir.Constant(I64, 4)), ir.FloatType())))
            for part, v in enumerate(PARTS):
                right = code.load(x, scaled(code, i, ir.Constant(I64, LINE), v))
                product = code.multiplied(factor, right, style, counts, products, is_exact=is_exact)
                lines[part] = code.added(lines[part], product, style, counts, now)
            notes.set(now)
            of_products.set(products)
            sums.set(lines)

        _repeated_products(code, n, exact, style == PLAIN and not counts, body)
        for held in (notes, of_products, sums):
            held.finish()

    return operation(8, emit)


def _repeated_products(code: Code, n: Any, exact: Any, is_one: bool, body: Callable[[Any, bool], None]) -> None:
    """Emit a loop of n rounds twice, for products that float32 holds and for others; a flag at run time chooses.

    `is_one`: both would be the same.
    """
    if is_one:
        repeated(code, n, lambda i: body(i, True))
        return
    with code.b.if_else(code.b.icmp_signed("!=", exact, ir.Constant(I64, 0))) as (then, otherwise):
        with then:
            repeated(code, n, lambda i: body(i, True))
        with otherwise:
            repeated(code, n, lambda i: body(i, False))


def _multiply(style: int, counts: bool) -> Any:
    """Return the operation of `multiply` for one way of rounding."""

    def emit(builder, a, x, y, n, exact, table, seen):
        code = Code(builder, table)
        notes = Held(code, seen, 4)

        def body(i, is_exact):
            now = notes.get()
            factor = code.everywhere(builder.load(code.at(a, builder.mul(i, ir.Constant(I64, 4)), ir.FloatType())))
            for v in PARTS:
                at = scaled(code, i, ir.Constant(I64, LINE), v)
                right = code.load(x, at)
                code.store(code.multiplied(factor, right, style, counts, now, is_exact=is_exact), y, at)
            notes.set(now)

        _repeated_products(code, n, exact, style == PLAIN and not counts, body)
        notes.finish()

    return operation(7, emit)


# The operations: the endings say how each rounds and whether it counts.
multiply_plain, multiply_plain_counted = _multiply(PLAIN, False), _multiply(PLAIN, True)
multiply_half, multiply_half_counted = _multiply(HALF, False), _multiply(HALF, True)
multiply_magic, multiply_magic_counted = _multiply(MAGIC, False), _multiply(MAGIC, True)
multiply_chain_plain, multiply_chain_plain_counted = _multiply_chain(PLAIN, False), _multiply_chain(PLAIN, True)
multiply_chain_half, multiply_chain_half_counted = _multiply_chain(HALF, False), _multiply_chain(HALF, True)
multiply_chain_magic, multiply_chain_magic_counted = _multiply_chain(MAGIC, False), _multiply_chain(MAGIC, True)
