"""The words that vector code is written in: LLVM instructions on 16 float32 at a time.

Nothing is contracted or reassociated; LLVM fits the vectors to the processor. The operations are in lanes.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from normstab.numerics.kernels.nearest import HALF, LEAST_NORMAL, LIFT, LOW, MAGIC, PLAIN, SPECIAL, converts_to_half

__all__ = [
    "I64",
    "LANES",
    "LINE",
    "PARTS",
    "SEEN",
    "VECTOR",
    "VF",
    "VI",
    "WIDTH",
    "Code",
    "Held",
    "operation",
    "repeated",
    "scaled",
    "splat",
]

# Elements of a vector, lanes of a row, bytes of a note; then the LLVM types of what they hold.
WIDTH, LANES, SEEN = 16, 64, 64
F32, F64, I32, I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
VF, VI, VH = ir.VectorType(F32, WIDTH), ir.VectorType(I32, WIDTH), ir.VectorType(ir.HalfType(), WIDTH)
VD = ir.VectorType(F64, WIDTH)
# Bytes of a vector and of a row of lanes; the offsets of its vectors.
VECTOR, LINE = 4 * WIDTH, 4 * LANES
PARTS = range(0, LINE, VECTOR)
MAGNITUDE, SIGN, INFINITY, TIE = 0x7FFFFFFF, 0x80000000, 0x7F800000, 0x400000


def splat(value: int) -> Any:
    """Return a constant vector of an integer."""
    return ir.Constant(VI, [value] * WIDTH)


class Code:
    """An LLVM builder with the words of this file."""

    def __init__(self, builder: Any, table: Any = None) -> None:
        self.b = builder
        if table is None:
            return
        self.low, self.lift, self.special, self.least = (
            self.everywhere(builder.trunc(builder.load(self.at(table, 8 * i, I64)), I32))
            for i in (LOW, LIFT, SPECIAL, LEAST_NORMAL)
        )
        self.lift = builder.add(self.lift, splat(TIE))  # 1.5 2^(e + 24 - p): a negative addend stays in the binade

    def at(self, address: Any, offset: Any, kind: Any) -> Any:
        """Return address + offset bytes as a pointer to `kind`."""
        moved = self.b.add(address, ir.Constant(I64, offset) if isinstance(offset, int) else offset)
        return self.b.inttoptr(moved, kind.as_pointer())

    def load(self, address: Any, offset: Any, kind: Any = VF) -> Any:
        """Return the vector at an address, which need not be aligned."""
        return self.b.load(self.at(address, offset, kind), align=4)

    def store(self, value: Any, address: Any, offset: Any) -> None:
        """Store a vector."""
        self.b.store(value, self.at(address, offset, value.type), align=4)

    def prefetch(self, address: Any, offset: int) -> None:
        """Ask for a line of memory, which may lie beyond the tensor."""
        kinds = (ir.IntType(8).as_pointer(), I32, I32, I32)
        ask = cgutils.get_or_insert_function(self.b.module, ir.FunctionType(ir.VoidType(), kinds), "llvm.prefetch.p0")
        self.b.call(ask, [self.at(address, offset, ir.IntType(8)), *(ir.Constant(I32, i) for i in (0, 3, 1))])

    def everywhere(self, scalar: Any) -> Any:
        """Return a vector of one scalar."""
        kind = ir.VectorType(scalar.type, WIDTH)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(VI, [0] * WIDTH))

    def bits(self, x: Any) -> Any:
        """Return the bits of floats."""
        return self.b.bitcast(x, VI)

    def size(self, x: Any) -> Any:
        """Return the magnitude bits of floats."""
        return self.b.and_(self.bits(x), splat(MAGNITUDE))

    def greater(self, x: Any, y: Any) -> Any:
        """Return the maximum of unsigned integers."""
        return self.b.select(self.b.icmp_unsigned(">", x, y), x, y)

    def less(self, x: Any, y: Any) -> Any:
        """Return the minimum of unsigned integers."""
        return self.b.select(self.b.icmp_unsigned("<", x, y), x, y)

    def nearest(self, s: Any, style: int) -> Any:
        """Return floats rounded to nearest even; magnitudes that are special give anything."""
        b = self.b
        if style == PLAIN:
            return s
        if style == HALF and converts_to_half():  # else never run, and without an instruction it would not link
            return b.fpext(b.fptrunc(s, VH), VF)
        x = self.bits(s)
        c = b.bitcast(b.add(self.greater(b.and_(x, splat(INFINITY)), self.low), self.lift), VF)
        y = self.bits(b.fsub(b.fadd(s, c), c))
        return b.bitcast(b.or_(b.and_(y, splat(MAGNITUDE)), b.and_(x, splat(SIGN))), VF)

    def added(self, a: Any, x: Any, style: int, counts: bool, seen: list[Any]) -> Any:
        """Return a + x rounded, and note it: all of it when counting, else what could be special."""
        s = self.b.fadd(a, x)
        y = self.nearest(s, style)
        if counts:
            self.seen_of_sum(a, x, s, y, seen)
        elif style == MAGIC:
            seen[0] = self.greater(seen[0], self.size(s))
        return y

    def fitted(self, x: Any, style: int, seen: list[Any]) -> Any:
        """Return an addend rounded, noting only what could be special."""
        if style == MAGIC:
            seen[0] = self.greater(seen[0], self.size(x))
        return self.nearest(x, style)

    def multiplied(self, a: Any, x: Any, style: int, counts: bool, seen: list[Any], *, is_exact: bool) -> Any:
        """Return a x rounded, and note it; the fourth of `seen` counts underflows.

        `is_exact`: float32 holds the product. Else it is rounded to odd on the way (Boldo and Melquiond 2008), from
        which a format of p <= 11 gets what it would from the exact one; to float32 itself the processor rounds.
        """
        b = self.b
        p = b.fmul(a, x)
        size = self.size(p)
        if not is_exact:
            odd, size = self.odd_product(a, x)
            p = p if style == PLAIN else odd
        y = self.nearest(p, style)
        if counts:
            self.note(size, y, seen)
            is_gone = b.and_(
                b.icmp_unsigned("==", self.size(y), splat(0)), b.icmp_unsigned("!=", self.size(p), splat(0))
            )
            seen[3] = b.sub(seen[3], b.sext(is_gone, VI))
        elif style == MAGIC:
            seen[0] = self.greater(seen[0], self.size(p))
        return y

    def odd_product(self, a: Any, x: Any) -> tuple[Any, Any]:
        """Return a x rounded to odd, and its magnitude rounded toward zero, of any float32; float64 holds it."""
        b = self.b
        wide = b.fmul(b.fpext(a, VD), b.fpext(x, VD))
        near = b.fptrunc(wide, VF)
        back = b.fpext(near, VD)
        is_off = b.fcmp_unordered("!=", wide, back)
        size = b.add(self.size(near), b.sext(b.fcmp_ordered("<", self.wide_size(wide), self.wide_size(back)), VI))
        odd = b.or_(size, b.zext(is_off, VI))
        return b.bitcast(b.or_(odd, b.and_(self.bits(near), splat(SIGN))), VF), size

    def wide_size(self, x: Any) -> Any:
        """Return the magnitudes of float64 numbers."""
        kind = ir.VectorType(I64, WIDTH)
        return self.b.bitcast(self.b.and_(self.b.bitcast(x, kind), ir.Constant(kind, [2**63 - 1] * WIDTH)), VD)

    def seen_of_sum(self, a: Any, x: Any, s: Any, y: Any, seen: list[Any]) -> None:
        """Note a sum s of a and x that was rounded to y. Source: Knuth's TwoSum for the sign of the error."""
        b = self.b
        x_seen = b.fsub(s, a)
        error = b.fadd(b.fsub(a, b.fsub(s, x_seen)), b.fsub(x, x_seen))
        is_off = b.fcmp_unordered("!=", error, ir.Constant(VF, [0.0] * WIDTH))
        is_apart = b.icmp_signed("<", b.xor(self.bits(error), self.bits(s)), splat(0))
        size = b.add(self.size(s), b.sext(b.and_(is_off, is_apart), VI))
        self.note(size, y, seen)

    def note(self, size: Any, y: Any, seen: list[Any]) -> None:
        """Note exact magnitudes `size` and results y in three vectors of what was seen."""
        b = self.b
        is_small = b.icmp_unsigned("<", b.sub(self.size(y), splat(1)), b.sub(self.least, splat(1)))
        seen[0] = self.greater(seen[0], size)
        seen[1] = self.less(seen[1], b.sub(size, splat(1)))
        seen[2] = b.sub(seen[2], b.sext(is_small, VI))


class Held:
    """Some vectors in memory, one after the other, in registers while an operation runs."""

    def __init__(self, code: Code, address: Any, n: int = 3, kind: Any = VI) -> None:
        self.code, self.address = code, address
        self.places = [cgutils.alloca_once_value(code.b, code.load(address, 64 * i, kind)) for i in range(n)]

    def get(self) -> list[Any]:
        """Return the vectors."""
        return [self.code.b.load(place) for place in self.places]

    def set(self, values: list[Any]) -> None:
        """Replace the vectors."""
        for place, value in zip(self.places, values, strict=True):
            self.code.b.store(value, place)

    def finish(self) -> None:
        """Write them back."""
        for i, value in enumerate(self.get()):
            self.code.store(value, self.address, 64 * i)


def repeated(code: Code, count: Any, body: Callable[[Any], None]) -> None:
    """Emit a loop of `count` rounds, given the number of the round."""
    with cgutils.for_range(code.b, count) as loop:
        body(loop.index)


def scaled(code: Code, index: Any, stride: Any, offset: int) -> Any:
    """Return index stride + offset."""
    return code.b.add(code.b.mul(index, stride), ir.Constant(I64, offset))


def operation(n: int, emit: Callable[..., None]) -> Any:
    """Return the intrinsic of n int64 arguments that `emit` writes."""

    @intrinsic
    def emitted(typing_context, arguments):
        def generate(context, builder, signature, packed):
            emit(builder, *(builder.extract_value(packed[0], i) for i in range(n)))
            return context.get_dummy_value()

        return types.void(types.UniTuple(types.int64, n)), generate

    return emitted
