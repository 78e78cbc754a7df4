"""Vector operations on lines of 64 float32 that add, round and multiply. Each is written for one way.

    join     [ a0 .. a63 ] + [ x0 .. x63 ]  ->  [ y0 .. y63 ]                     a rounding for each lane
    chain    [ s0 .. s63 ] + line, + line, + line ...                             sums stay in registers
    halve    256 neighbours of a row  ->  128 -> 64 -> 32 -> 16                   along a row, as a tree

Each takes addresses, counts, and steps in bytes, last the address of the notes of a group (see note_code), which it
adds to what it saw. Kernels call them by `lane_operations`.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from normstab.numerics.kernels.cpu.vector.lane_moves import taken
from normstab.numerics.kernels.cpu.vector.note_code import INEXACT, OF_ADDENDS, OF_KAHAN, OF_SUMS, Note
from normstab.numerics.kernels.cpu.vector.rounding_code import Rounder
from normstab.numerics.kernels.cpu.vector.vectors import (
    I64,
    LINE,
    PARTS,
    VECTOR,
    VECTORS,
    VF,
    VI,
    WIDTH,
    Code,
    Held,
    repeated,
    scaled,
)
from normstab.numerics.kernels.cpu.vector.ways import FUSED, KAHAN, UNCOUNTED
from normstab.numerics.kernels.nearest import DRAWN, PLAIN

__all__ = [
    "KEPT_OF_HALVES",
    "KEPT_OF_KAHAN",
    "write_chain",
    "write_halve",
    "write_join",
    "write_multiply",
    "write_multiply_chain",
    "write_round_in_place",
]

# Vectors of magnitudes that are kept of one round of `halve`, and of the corrections of one line of a chain.
KEPT_OF_HALVES, KEPT_OF_KAHAN = WIDTH - 1, 3 * VECTORS


def rounds(rounder: Rounder, n: Any, held: list[Note | Held], body: Callable[[Any], None]) -> None:
    """Emit a loop of n rounds, each within its turn of the notes; then write back all that is held."""

    def turn(i: Any) -> None:
        notes = [note for note in held if isinstance(note, Note)]
        for note in notes:
            note.begin(i)
        body(i)
        for note in notes:
            note.end()

    repeated(rounder.code, n, turn)
    for one in held:
        one.finish()


def write_join(rounder: Rounder, a, a_step, x, x_step, y, y_step, n, notes):
    """Set a line at y to that at a plus that at x, n times, each address then moving by its step."""
    code, sums = rounder.code, Note(rounder.code, notes, OF_SUMS, VECTORS)

    def body(i):
        for v in PARTS:
            at_a, at_x, at_y = (scaled(code, i, step, v) for step in (a_step, x_step, y_step))
            left, right, field = code.load(a, at_a), code.load(x, at_x), field_of(rounder, x, at_x)
            if rounder.style == DRAWN:  # a sum draws, as a right operand, the bits of its first addend
                code.store(field_of(rounder, a, at_a), code.b.add(y, rounder.away), at_y)
            code.store(rounder.added(left, right, sums, field), y, at_y)

    rounds(rounder, n, [sums], body)


def field_of(rounder: Rounder, x: Any, offset: Any, times: int = 1) -> Any:
    """Return the random bits beside the addends, or (twice as far) the products at x + offset, if any are drawn."""
    if rounder.style != DRAWN:
        return None
    away = rounder.b.mul(rounder.away, ir.Constant(I64, times))
    return rounder.code.load(rounder.b.add(x, away), offset, VI)


class Chains:
    """The sums of a line of chains while addends join them: with their notes, and what each has lost."""

    def __init__(self, rounder: Rounder, total: Any, lost: Any, notes: Any) -> None:
        code = rounder.code
        self.rounder, self.sums = rounder, Note(code, notes, OF_SUMS, VECTORS)
        self.totals = Held(code, total, VECTORS, VF)
        self.held: list[Note | Held] = [self.sums, self.totals]
        if rounder.chain == KAHAN:
            self.corrections, self.lost = Note(code, notes, OF_KAHAN, KEPT_OF_KAHAN), Held(code, lost, VECTORS, VF)
            self.held += [self.corrections, self.lost]

    def join(self, addend_of: Callable[[int], Any], field_of_part: Callable[[int], Any] = lambda _: None) -> None:
        """Add to each part of the line the addend of that part, by its random bits."""
        totals = self.totals.get()
        lost = self.lost.get() if self.rounder.chain == KAHAN else []
        for part in range(VECTORS):
            x = addend_of(part)
            if self.rounder.chain == KAHAN:
                totals[part], lost[part] = self.compensated(totals[part], lost[part], x)
            else:
                totals[part] = self.rounder.added(totals[part], x, self.sums, field_of_part(part))
        self.totals.set(totals)
        if self.rounder.chain == KAHAN:
            self.lost.set(lost)

    def compensated(self, total: Any, lost: Any, x: Any) -> tuple[Any, Any]:
        """Return t = total + y of y = x - lost, and the next lost, (t - total) - y. Source: Kahan 1965."""
        rounder, negative = self.rounder, self.rounder.code.negative
        y = rounder.added(x, negative(lost), self.corrections)
        t = rounder.added(total, y, self.sums)
        gained = rounder.added(t, negative(total), self.corrections)
        return t, rounder.added(gained, negative(y), self.corrections)


def write_chain(rounder: Rounder, total, lost, x, n, fits, notes):
    """Add n dense lines at x, one after the other, to the line at `total`, whose lost parts are in that at `lost`.

    Unless it counts or `fits` says that they are numbers of the format, each addend is rounded first.
    """
    code = rounder.code

    def emit(is_fitted):
        chains = Chains(rounder, total, lost, notes)

        def body(i):
            def addend(part):
                loaded = code.load(x, scaled(code, i, LINE, VECTOR * part))
                return rounder.fitted(loaded, chains.sums) if is_fitted else loaded

            chains.join(addend, lambda part: field_of(rounder, x, scaled(code, i, LINE, VECTOR * part)))

        rounds(rounder, n, chains.held, body)

    if rounder.style == PLAIN or rounder.counts != UNCOUNTED:
        emit(False)
    else:
        either(rounder, fits, lambda: emit(False), lambda: emit(True))


def either(rounder: Rounder, flag: Any, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """Emit code for both cases of a flag that is known at run time."""
    with rounder.b.if_else(rounder.b.icmp_signed("!=", flag, ir.Constant(I64, 0))) as (is_set, is_clear):
        with is_set:
            then()
        with is_clear:
            otherwise()


def write_halve(rounder: Rounder, x, y, n, notes):
    """Set each of 16 n floats at y to the tree sum of 16 at x; with nothing counted, addends are rounded first.

    Not for drawn sums, which go through tiles.
    """
    if rounder.style == DRAWN:
        return
    code, b, sums = rounder.code, rounder.b, Note(rounder.code, notes, OF_SUMS, KEPT_OF_HALVES)
    even = ir.Constant(VI, list(range(0, 2 * WIDTH, 2)))
    odd = ir.Constant(VI, list(range(1, 2 * WIDTH, 2)))

    def body(i):
        row = [taken(rounder, code.load(x, scaled(code, i, VECTOR * WIDTH, VECTOR * v)), sums) for v in range(WIDTH)]
        while len(row) > 1:
            pairs = list(zip(row[::2], row[1::2], strict=True))
            # Neighbours are added: those of even and of odd place side by side, over both vectors.
            split = [[b.shuffle_vector(left, right, places) for places in (even, odd)] for left, right in pairs]
            row = [rounder.added(first, second, sums) for first, second in split]
        code.store(row[0], y, scaled(code, i, VECTOR, 0))

    rounds(rounder, n, [sums], body)


def write_round_in_place(rounder: Rounder, x, n, notes):
    """Round n times 16 addends at x; of those that moved, which are inexact, note what they became."""
    code, b, addends = rounder.code, rounder.b, Note(rounder.code, notes, OF_ADDENDS, 1)

    def body(i):
        at = scaled(code, i, VECTOR, 0)
        value = code.load(x, at)
        if rounder.counts == UNCOUNTED:
            code.store(rounder.fitted(value, addends), x, at)
            return
        result = rounder.rounded(value, addends)
        code.store(result, x, at)
        size, after = code.size(value), code.size(result)
        # A special addend is noted though it may not move, so that the group is done again.
        is_special = b.icmp_unsigned(">=", size, rounder.special)
        is_moved = b.or_(b.icmp_unsigned("!=", size, after), is_special)
        if rounder.style == DRAWN:
            rounder.note_moved(is_moved, addends)
        became = code.floats(code.where(is_moved, after))
        rounder.note(code.where(is_moved, size), became, addends, underflows=True)
        addends.count(INEXACT, is_moved)

    rounds(rounder, n, [addends], body)


def write_multiply(rounder: Rounder, a, x, y, n, is_exact, notes):
    """Set n lines at y to those at x times one float each at a; `is_exact`: float32 holds these products."""
    code, products = rounder.code, Note(rounder.code, notes, OF_ADDENDS, VECTORS)

    def body(i, exact):
        factor = factor_of(code, a, i)
        for v in PARTS:
            at = scaled(code, i, LINE, v)
            field = field_of(rounder, y, at, 2)
            code.store(rounder.multiplied(factor, code.load(x, at), products, field, is_exact=exact), y, at)

    repeated_products(rounder, n, is_exact, [products], body)


def write_multiply_chain(rounder: Rounder, total, lost, a, x, n, is_exact, notes):
    """Add n lines at x, each times one float at a, one after the other to the line at `total`; `lost` as in chain.

    Not for drawn sums, whose products are lines with random bits beside them.
    """
    code = rounder.code
    if rounder.style == DRAWN:
        return
    chains, products = Chains(rounder, total, lost, notes), Note(rounder.code, notes, OF_ADDENDS, VECTORS)

    def body(i, exact):
        factor = factor_of(code, a, i)

        def product(part):
            right = code.load(x, scaled(code, i, LINE, VECTOR * part))
            if rounder.chain == FUSED:  # of products that float32 holds, and which nothing rounds
                return rounder.b.fmul(factor, right)
            return rounder.multiplied(factor, right, products, is_exact=exact)

        chains.join(product)

    repeated_products(rounder, n, is_exact, [products, *chains.held], body)


def factor_of(code: Code, a: Any, i: Any) -> Any:
    """Return float i at a, in every lane: a product has one factor for a whole line."""
    return code.everywhere(code.b.load(code.at(a, scaled(code, i, 4, 0), ir.FloatType())))


def repeated_products(rounder: Rounder, n, is_exact, held: list[Note | Held], body: Any) -> None:
    """Emit a loop of n rounds for products that float32 holds and one for others, of which one runs.

    Drawn and fused ones are exact: others are not computed so.
    """
    if rounder.style == DRAWN or rounder.chain == FUSED or (rounder.style == PLAIN and rounder.counts == UNCOUNTED):
        rounds(rounder, n, held, lambda i: body(i, True))
        return
    either(
        rounder, is_exact,
        lambda: rounds(rounder, n, held, lambda i: body(i, True)),
        lambda: rounds(rounder, n, held, lambda i: body(i, False)),
    )  # fmt: skip
