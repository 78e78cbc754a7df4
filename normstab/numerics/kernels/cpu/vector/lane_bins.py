"""Counting magnitudes by their exponents in vector code, for a histogram: bits of one weight are added at once.

    a magnitude      1 << how many binades it lies below the greatest      at most 30; zeros, bit 31, are not counted
    planes           [ bits of weight 1 ][ of 2 ] ... [ of 256 ]           a counter of each lane and binade, in columns

Two words join a plane by a full adder, of five logical operations, which carries to the next plane. Source: Harley and
Seal's way to count bits (Warren, Hacker's Delight, 5-1), of each place apart.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from normstab.numerics.kernels.cpu.vector.vectors import I64, VECTOR, VI, WIDTH, Code, repeated, scaled, splat

__all__ = ["BINADES", "VECTORS_AT_ONCE", "write_count_binades"]

BINADES = 31  # that are counted at once
VECTORS_AT_ONCE = 16  # that are added to the planes in one round
PLANES, LEVELS = 9, 4  # of counts up to 256, as many vectors as are kept; how often 16 are halved
SIGNIFICAND, I32 = 23, ir.IntType(32)


def write_count_binades(code: Code, sizes, blocks, top, binades, counters):
    """Count magnitudes, `blocks` times 16 vectors at `sizes`, into 4 uint32 for each biased exponent at `counters`.

    None exceeds the exponent `top`, and nonzero ones span that many binades, at most 31.
    """
    b = code.b
    planes = [cgutils.alloca_once_value(b, splat(0)) for _ in range(PLANES)]
    # The greatest number of the topmost binade: what it exceeds a number by has the distance as its exponent field.
    greatest = code.everywhere(b.trunc(b.sub(b.shl(b.add(top, I64(1)), I64(SIGNIFICAND)), I64(1)), I32))

    def add(i):
        def word(v):
            size = code.load(sizes, scaled(code, i, VECTORS_AT_ONCE * VECTOR, VECTOR * v), VI)
            return b.shl(splat(1), code.less(b.lshr(b.sub(greatest, size), splat(SIGNIFICAND)), splat(BINADES)))

        carry = carried(code, planes, word, LEVELS, 0)
        for plane in planes[LEVELS:]:
            total = b.load(plane)
            b.store(b.xor(total, carry), plane)
            carry = b.and_(total, carry)

    repeated(code, blocks, add)
    weights = over_lanes(code, [b.load(plane) for plane in planes])

    def settle(i):
        bits = b.and_(b.lshr(weights, code.everywhere(b.trunc(i, I32))), splat(1))
        number = sum_of_lanes(code, b.shl(bits, ir.Constant(VI, list(range(WIDTH)))))
        counter = code.at(counters, b.mul(b.sub(top, i), I64(16)), I32)
        b.store(b.add(b.load(counter), number), counter)

    repeated(code, binades, settle)


def carried(code: Code, planes: list[Any], word: Callable[[int], Any], level: int, first: int) -> Any:
    """Add 2^level words from number `first` on to the planes below that level; return what is carried to its own."""
    if level == 0:
        return word(first)
    # Depth first, so that few words wait for others in registers.
    x = carried(code, planes, word, level - 1, first)
    y = carried(code, planes, word, level - 1, first + 2 ** (level - 1))
    total, carry = full_sum(code, code.b.load(planes[level - 1]), x, y)
    code.b.store(total, planes[level - 1])
    return carry


def full_sum(code: Code, total: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Return the sums of three bits in each place, and the carries."""
    b = code.b
    half = b.xor(total, x)
    return b.xor(half, y), b.or_(b.and_(total, x), b.and_(half, y))


def over_lanes(code: Code, planes: list[Any]) -> Any:
    """Return the planes of the sums over all lanes: the words of weight 1, 2, 4 ... in the lanes of a vector."""
    b, width = code.b, WIDTH
    while width > 1:
        width //= 2
        halves = [ir.Constant(ir.VectorType(I32, width), [start + i for i in range(width)]) for start in (0, width)]
        carry, sums = ir.Constant(ir.VectorType(I32, width), [0] * width), []
        for plane in planes:
            total, carry = full_sum(code, carry, *(b.shuffle_vector(plane, plane, half) for half in halves))
            sums.append(total)
        planes = [*sums, carry]
    weights = splat(0)
    for i, plane in enumerate(planes):
        weights = b.insert_element(weights, b.extract_element(plane, ir.Constant(I32, 0)), ir.Constant(I32, i))
    return weights


def sum_of_lanes(code: Code, x: Any) -> Any:
    """Return the sum of the integers of a vector."""
    for away in (8, 4, 2, 1):
        moved = ir.Constant(VI, [(i + away) % WIDTH for i in range(WIDTH)])
        x = code.b.add(x, code.b.shuffle_vector(x, ir.Constant(VI, ir.Undefined), moved))
    return code.b.extract_element(x, ir.Constant(I32, 0))
