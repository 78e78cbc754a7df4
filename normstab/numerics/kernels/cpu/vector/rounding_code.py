"""How vector code rounds a sum or a product of float32, and notes what happened: LLVM instructions.

A result is formed so that one more rounding is the only one: as it is where twice its digits fit float32, else
rounded to odd. Then c, 1.5 times the power of two whose float32 quantum is that of the format, is added and taken
away again. Directed modes step from the nearest number toward their side before c is taken away:

    exact     = a + x, rounded to odd        TwoSum: s = a + x; what s lost says which side of s the sum lies
    t         = exact + c                    t counts quanta in its last bits
    t         = t + 1 or t - 1               where `exact` lies beyond t - c on the side of the mode
    y         = t - c

Stochastic rounding is in drawn_code.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir

from normstab.numerics.kernels.cpu.vector.drawn_code import SIGNIFICAND, ZEROS, drawn
from normstab.numerics.kernels.cpu.vector.end_code import Ends
from normstab.numerics.kernels.cpu.vector.note_code import INEXACT, LARGEST, Note
from normstab.numerics.kernels.cpu.vector.vectors import (
    I64,
    INFINITY,
    MAGNITUDE,
    SIGN,
    VD,
    VF,
    VH,
    VI,
    WIDTH,
    Code,
    splat,
)
from normstab.numerics.kernels.cpu.vector.ways import BINNED, CAREFUL, FULL, FULL_BINNED, SATURATING, UNCOUNTED, Way
from normstab.numerics.kernels.nearest import (
    BITS,
    DOWN_MINUS,
    DOWN_PLUS,
    DRAWN,
    HALF,
    LEAST_NORMAL,
    LIFT,
    LOW,
    MAGIC,
    PLAIN,
    SPECIAL,
    STEPPED,
    UP_MINUS,
    UP_PLUS,
    ZERO_OF_SUM,
    ZERO_SIGN,
    converts_to_half,
)

__all__ = ["Rounder"]

TIE = 0x400000


class Exact(NamedTuple):
    """The exact result of an operation, as float32 lanes have it."""

    operands: tuple[Any, Any]
    s: Any  # float32's result
    value: Any  # what is rounded: s, or the exact result rounded to odd
    size: Any  # its magnitude, rounded toward zero
    is_off: Any | None = None  # whether s lost something, if it may


class Rounder:
    """Rounding in one way: its style, what it counts, and the constants of its format."""

    def __init__(self, code: Code, way: Way, table: Any, away: Any) -> None:
        self.code, self.b, self.away = code, code.b, away
        self.style, self.counts, self.chain, self.ends = way
        self.special, self.least = code.word(table, SPECIAL), code.word(table, LEAST_NORMAL)
        self.low, lift = code.word(table, LOW), code.word(table, LIFT)
        self.dropped = code.b.lshr(lift, splat(SIGNIFICAND))  # digits of a normal float32 below the quantum
        # Numbers below the least normal one may have subnormal results, those below the quantum none.
        quantum = code.b.sub(code.b.add(self.low, lift), splat(SIGNIFICAND << SIGNIFICAND))
        self.below = code.b.select(code.b.icmp_signed(">", quantum, self.least), quantum, self.least)
        self.lift = code.b.add(lift, splat(TIE))  # 1.5 2^(e + 24 - p): a negative addend stays in the binade
        if self.style in (STEPPED, DRAWN):
            self.ups = [code.word(table, i) for i in (UP_PLUS, UP_MINUS)]
            self.downs = [code.word(table, i) for i in (DOWN_PLUS, DOWN_MINUS)]
            self.zero_sign, self.zero_of_sum = code.word(table, ZERO_SIGN), code.word(table, ZERO_OF_SUM)
            self.random_bits = code.word(table, BITS)
        self.range = Ends(code, table, self.counts)

    def rounded(self, s: Any, note: Note) -> Any:
        """Return floats rounded to the format, and note what saturates; magnitudes that are special give anything."""
        b, code = self.b, self.code
        if self.style == PLAIN:
            return s
        if self.style == HALF and converts_to_half():  # else never run, and without an instruction it would not link
            return b.fpext(b.fptrunc(s, VH), VF)
        x = code.bits(s)
        # The exponent of x, of emin at least, lifted: below emin the quantum stays.
        c = code.floats(b.add(code.greater(b.and_(x, splat(INFINITY)), self.low), self.lift))
        t, sign = b.fadd(s, c), b.and_(x, splat(SIGN))
        if self.style == STEPPED:
            t = self.stepped(s, t, b.fsub(t, c))
        return self.signed(code.size(b.fsub(t, c)), sign, note)

    def signed(self, y: Any, sign: Any, note: Note) -> Any:
        """Return magnitudes with their signs, within the range if it saturates; zero has no sign in some formats."""
        b = self.b
        if self.ends == SATURATING:
            y = self.range.within(y, b.icmp_unsigned("!=", sign, splat(0)), note)
        if self.style in (STEPPED, DRAWN):
            sign = b.and_(sign, b.select(b.icmp_unsigned("==", y, splat(0)), self.zero_sign, splat(SIGN)))
        return self.code.floats(b.or_(y, sign))

    def stepped(self, s: Any, t: Any, nearest: Any) -> Any:
        """Return t moved by one in its last place where s lies beyond `nearest` and the mode says so."""
        b, code = self.b, self.code
        rest, is_minus = b.fsub(s, nearest), b.icmp_signed("<", code.bits(s), splat(0))
        up = code.where(b.fcmp_ordered(">", rest, ZEROS), b.select(is_minus, self.ups[1], self.ups[0]))
        down = code.where(b.fcmp_ordered("<", rest, ZEROS), b.select(is_minus, self.downs[1], self.downs[0]))
        return code.floats(b.sub(b.add(code.bits(t), up), down))

    def added(self, a: Any, x: Any, note: Note, field: Any = None) -> Any:
        """Return a + x rounded, and note it: all of it when counting, else what could be special.

        `field`: the random bits of stochastic rounding.
        """
        s = self.b.fadd(a, x)
        if self.style not in (STEPPED, DRAWN) and self.counts == UNCOUNTED:
            return self.uncounted(Exact((a, x), s, s, self.code.size(s)), note)
        # Counted is the exact sum: its magnitude toward zero, and whether s lost something of it.
        error, is_off, size = self.lost_of_sum(a, x, s)
        value = self.sum_to_odd(a, x, s, is_off, size) if self.style == STEPPED else s
        exact = Exact((a, x), s, value, size, is_off)
        if self.counts == UNCOUNTED and self.style != DRAWN:
            return self.uncounted(exact, note)
        y = drawn(self, s, error, size, field, note, is_off) if self.style == DRAWN else self.rounded(value, note)
        # An addend of a fused product may be less than any number of the format.
        return self.counted(exact, y, note, underflows=self.style == STEPPED)

    def uncounted(self, exact: Exact, note: Note) -> Any:
        """Return an exact result rounded, noting only what the group may fail by."""
        if self.ends == CAREFUL:
            return self.counted(exact, self.rounded(exact.value, note), note)
        return self.noted_special(exact.value, note)

    def counted(self, exact: Exact, y: Any, note: Note, *, underflows: bool = False) -> Any:
        """Return y, what `exact` is rounded to as long as it is in range, and note both."""
        b, size = self.b, exact.size
        if self.ends == CAREFUL:
            y, size = self.range.carried(exact.operands, exact.s, size, y, note)
        self.note(size, y, note, underflows=underflows)
        if self.counts in (FULL, FULL_BINNED):
            is_moved = b.fcmp_unordered("!=", exact.value, y)
            is_moved = is_moved if exact.is_off is None else b.or_(exact.is_off, is_moved)
            if self.ends == CAREFUL:  # of what is infinite or NaN nothing is inexact
                is_moved = b.and_(is_moved, b.icmp_unsigned("!=", size, splat(0)))
            note.count(INEXACT, is_moved)
        return y

    def fitted(self, x: Any, note: Note) -> Any:
        """Return an addend rounded, noting what could be special: stochastically all that moves, lacking its bits."""
        y = self.noted_special(x, note)
        if self.style == DRAWN:
            self.note_moved(self.b.fcmp_unordered("!=", x, y), note)
        return y

    def note_moved(self, is_moved: Any, note: Note) -> None:
        """Note as special what moves."""
        note.now[LARGEST] = self.code.greater(note.now[LARGEST], self.code.where(is_moved, splat(MAGNITUDE)))

    def multiplied(self, a: Any, x: Any, note: Note, field: Any = None, *, is_exact: bool) -> Any:
        """Return a x rounded, and note it; `field` as in `added`, of products that are exact.

        `is_exact`: float32 holds the product. Else it is rounded to odd on the way (Boldo and Melquiond 2008), from
        which a format of fewer digits gets what it would from the exact one; to float32 itself the processor rounds.
        """
        b, code = self.b, self.code
        s = b.fmul(a, x)
        exact = Exact((a, x), s, s, code.size(s))
        if not is_exact:
            odd, size, is_off = self.product_to_odd(a, x)
            exact = Exact((a, x), s, s if self.style == PLAIN else odd, size, is_off)
        if self.counts == UNCOUNTED and self.style != DRAWN:
            return self.uncounted(exact, note)
        is_drawn = self.style == DRAWN
        y = drawn(self, s, ZEROS, exact.size, field, note) if is_drawn else self.rounded(exact.value, note)
        return self.counted(exact, y, note, underflows=True)

    def lost_of_sum(self, a: Any, x: Any, s: Any) -> tuple[Any, Any, Any]:
        """Return what s lost of a + x, whether it did, the magnitude rounded toward zero. Source: Knuth's TwoSum."""
        b, code = self.b, self.code
        x_seen = b.fsub(s, a)
        error = b.fadd(b.fsub(a, b.fsub(s, x_seen)), b.fsub(x, x_seen))
        is_off = b.fcmp_unordered("!=", error, ZEROS)
        is_apart = b.icmp_signed("<", b.xor(code.bits(error), code.bits(s)), splat(0))
        # Where the error points back to zero, the exact sum lies below s, and above its neighbour.
        return error, is_off, b.add(code.size(s), b.sext(b.and_(is_off, is_apart), VI))

    def sum_to_odd(self, a: Any, x: Any, s: Any, is_off: Any, size: Any) -> Any:
        """Return a + x rounded to odd; a zero of unlike signs has the sign of the mode."""
        b, code = self.b, self.code
        signs = b.and_(b.or_(code.bits(a), code.bits(x)), self.zero_of_sum)
        sign = b.or_(code.sign(s), code.where(b.icmp_unsigned("==", code.size(s), splat(0)), signs))
        return code.floats(b.or_(b.or_(size, b.zext(is_off, VI)), sign))

    def product_to_odd(self, a: Any, x: Any) -> tuple[Any, Any, Any]:
        """Return a x rounded to odd, its magnitude rounded toward zero, and whether it lost something.

        Of any float32: float64 holds their product.
        """
        b, code = self.b, self.code
        wide = b.fmul(b.fpext(a, VD), b.fpext(x, VD))
        near = b.fptrunc(wide, VF)
        back = b.fpext(near, VD)
        is_off = b.fcmp_unordered("!=", wide, back)
        size = b.add(code.size(near), b.sext(b.fcmp_ordered("<", self.wide_size(wide), self.wide_size(back)), VI))
        # Truncated, with the last bit set where anything was lost: rounded to odd.
        odd = b.or_(size, b.zext(is_off, VI))
        return code.floats(b.or_(odd, code.sign(near))), size, is_off

    def wide_size(self, x: Any) -> Any:
        """Return the magnitudes of float64 numbers."""
        kind = ir.VectorType(I64, WIDTH)
        return self.b.bitcast(self.b.and_(self.b.bitcast(x, kind), ir.Constant(kind, [2**63 - 1] * WIDTH)), VD)

    def noted_special(self, exact: Any, note: Note) -> Any:
        """Return floats rounded, noting only what could be special; PLAIN and HALF show it in their results."""
        if self.style in (MAGIC, STEPPED, DRAWN):
            note.now[LARGEST] = self.code.greater(note.now[LARGEST], self.code.size(exact))
        return self.rounded(exact, note)

    def note(self, size: Any, y: Any, note: Note, *, underflows: bool = False) -> None:
        """Note exact magnitudes `size`, which are kept where all is counted, and results y, which may be too small."""
        note.now[LARGEST] = self.code.greater(note.now[LARGEST], size)
        if self.counts == UNCOUNTED:
            return
        if self.counts in (BINNED, FULL_BINNED):
            note.keep(size)
        note.note_small(size, self.code.size(y), self.least, self.below, underflows=underflows)
