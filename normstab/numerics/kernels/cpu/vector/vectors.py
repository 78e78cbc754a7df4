"""The words that vector code is written in: LLVM instructions on 16 float32 at a time.

    a line     [ vector 0 | vector 1 | vector 2 | vector 3 ]     64 lanes, 256 bytes; lane i belongs to sum i
    a vector   [ 0 1 2 ... 15 ]                                  LLVM cuts it to what the processor has

Nothing is contracted or reassociated. How results are rounded and noted is in rounding_code, the operations are in
lanes.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

__all__ = [
    "I64",
    "INFINITY",
    "LANES",
    "LINE",
    "MAGNITUDE",
    "NOTES",
    "PARTS",
    "SEEN",
    "SIGN",
    "VD",
    "VECTOR",
    "VECTORS",
    "VF",
    "VH",
    "VI",
    "WIDTH",
    "Code",
    "Held",
    "repeated",
    "scaled",
    "splat",
]

# Elements of a vector, lanes of a row; vectors of a note, and its elements; then the LLVM types of what they hold.
WIDTH, LANES, NOTES = 16, 64, 10
SEEN = NOTES * WIDTH
F32, F64, I32, I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
VF, VI, VH = ir.VectorType(F32, WIDTH), ir.VectorType(I32, WIDTH), ir.VectorType(ir.HalfType(), WIDTH)
VD = ir.VectorType(F64, WIDTH)
# Bytes of a vector and of a row of lanes; the offsets of its vectors.
VECTOR, LINE = 4 * WIDTH, 4 * LANES
PARTS = range(0, LINE, VECTOR)
VECTORS = LANES // WIDTH  # of a row of lanes
MAGNITUDE, SIGN, INFINITY = 0x7FFFFFFF, 0x80000000, 0x7F800000


def splat(value: int) -> Any:
    """Return a constant vector of an integer."""
    return ir.Constant(VI, [value] * WIDTH)


class Code:
    """An LLVM builder with the words of this file."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def at(self, address: Any, offset: Any, kind: Any) -> Any:
        """Return address + offset bytes as a pointer to `kind`."""
        moved = self.b.add(address, ir.Constant(I64, offset) if isinstance(offset, int) else offset)
        return self.b.inttoptr(moved, kind.as_pointer())

    def load(self, address: Any, offset: Any, kind: Any = VF) -> Any:
        """Return the vector at an address, which need not be aligned."""
        # 4: what float32 is aligned to.
        # An instruction for aligned vectors would fail elsewhere.
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

    def word(self, table: Any, i: int) -> Any:
        """Return entry i of a table of int64 as a vector of int32."""
        return self.everywhere(self.b.trunc(self.b.load(self.at(table, 8 * i, I64)), I32))

    def bits(self, x: Any) -> Any:
        """Return the bits of floats."""
        return self.b.bitcast(x, VI)

    def floats(self, x: Any) -> Any:
        """Return the floats of bits."""
        return self.b.bitcast(x, VF)

    def size(self, x: Any) -> Any:
        """Return the magnitude bits of floats."""
        return self.b.and_(self.bits(x), splat(MAGNITUDE))

    def sign(self, x: Any) -> Any:
        """Return the sign bits of floats."""
        return self.b.and_(self.bits(x), splat(SIGN))

    def negative(self, x: Any) -> Any:
        """Return floats with their signs changed."""
        return self.floats(self.b.xor(self.bits(x), splat(SIGN)))

    def where(self, condition: Any, x: Any) -> Any:
        """Return integers where a condition holds, else 0."""
        return self.b.and_(self.b.sext(condition, VI), x)

    def greater(self, x: Any, y: Any) -> Any:
        """Return the maximum of unsigned integers."""
        return self.b.select(self.b.icmp_unsigned(">", x, y), x, y)

    def less(self, x: Any, y: Any) -> Any:
        """Return the minimum of unsigned integers."""
        return self.b.select(self.b.icmp_unsigned("<", x, y), x, y)

    def least_of(self, x: Any) -> Any:
        """Return the least of unsigned integers, in every lane."""
        nothing = ir.Constant(VI, ir.Undefined)
        for away in (8, 4, 2, 1):
            moved = ir.Constant(VI, [(i + away) % WIDTH for i in range(WIDTH)])
            x = self.less(x, self.b.shuffle_vector(x, nothing, moved))
        return x


class Held:
    """Some vectors in memory, one after the other, in registers while an operation runs."""

    def __init__(self, code: Code, address: Any, n: int = NOTES, kind: Any = VI) -> None:
        self.code, self.address = code, address
        # Variables on the stack, which LLVM keeps in registers: a loop may change them, other than LLVM's values.
        self.places = [cgutils.alloca_once_value(code.b, code.load(address, VECTOR * i, kind)) for i in range(n)]

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
            self.code.store(value, self.address, VECTOR * i)


def repeated(code: Code, count: Any, body: Callable[[Any], None]) -> None:
    """Emit a loop of `count` rounds, given the number of the round."""
    with cgutils.for_range(code.b, count) as loop:
        body(loop.index)


def scaled(code: Code, index: Any, stride: Any, offset: int) -> Any:
    """Return index stride + offset; a stride of this code may be an int."""
    stride = ir.Constant(I64, stride) if isinstance(stride, int) else stride
    return code.b.add(code.b.mul(index, stride), ir.Constant(I64, offset))
