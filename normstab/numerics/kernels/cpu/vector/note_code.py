"""Notes of what vector code saw: where they lie, and how they are held while an operation runs.

    [ sums | addends | Kahan's ]        a note each, 16 lanes of largest, smallest, subnormal ...
    [ -1 -1 ... 0 0 ]                   which of the 64 lanes are sums
    [ sums | addends | Kahan's ]        for each: magnitudes of exact results, which a histogram is to count

What an infinity or a NaN counts as depends on its operands, at which only careful ways look: by others a group whose
notes show anything special is not counted, but done again. Of all others the notes are what is counted.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from normstab.numerics.kernels.cpu.vector.vectors import (
    I64,
    LINE,
    NOTES,
    SEEN,
    VECTOR,
    VECTORS,
    VI,
    WIDTH,
    Code,
    Held,
    scaled,
    splat,
)

__all__ = [
    "ALIVE",
    "BELOW",
    "INEXACT",
    "INFINITE",
    "LARGEST",
    "MOST_KEPT",
    "NAN_PRODUCED",
    "NAN_PROPAGATED",
    "OF_ADDENDS",
    "OF_KAHAN",
    "OF_SUMS",
    "OVERFLOW",
    "SMALLEST",
    "SUBNORMAL",
    "UNDERFLOW",
    "Note",
    "kept_at",
    "seen_at",
]

# A note has, per lane, the largest magnitude, the smallest less 1 (so that zero is the greatest), and how many results
# are subnormal, underflowed or inexact; where it is computed also how many overflowed, were infinite as an operand was,
# became NaN, or were. Magnitudes are those of exact results, rounded toward zero. Most vectors have none, less 1, below
# BELOW, in all lanes the same: nothing new is to be said of the smallest, nor is any result small.
LARGEST, SMALLEST, SUBNORMAL, UNDERFLOW, INEXACT, OVERFLOW, INFINITE, NAN_PRODUCED, NAN_PROPAGATED, BELOW = range(NOTES)
SMALL = (SMALLEST, SUBNORMAL, UNDERFLOW, BELOW)
# The notes of a group; how many lines of magnitudes are kept before they are counted.
OF_SUMS, OF_ADDENDS, OF_KAHAN, NOTES_OF_GROUP = 0, 1, 2, 3
MOST_KEPT = 64


def seen_at(which: int) -> int:
    """Return the offset (bytes) of a note."""
    return 4 * SEEN * which


ALIVE = seen_at(NOTES_OF_GROUP)  # the offset of a line of masks: all bits where a lane has a sum


def kept_at(which: int) -> int:
    """Return the offset of the magnitudes of a note; of NOTES_OF_GROUP, where all of it ends."""
    return ALIVE + LINE + MOST_KEPT * LINE * which


class Note:
    """One note in registers, while an operation runs its rounds; each round keeps `each` vectors of magnitudes."""

    def __init__(self, code: Code, notes: Any, which: int, each: int) -> None:
        self.code, self.each = code, each
        self.notes = notes
        self.held = Held(code, code.b.add(notes, ir.Constant(I64, seen_at(which))), NOTES, VI)
        self.kept = code.b.add(notes, ir.Constant(I64, kept_at(which)))
        self.now: list[Any] = []
        self.index, self.number, self.results = None, 0, 0

    def begin(self, index: Any) -> None:
        """Begin a round."""
        self.now, self.index, self.number, self.results = self.held.get(), index, 0, 0

    def keep(self, size: Any) -> None:
        """Keep a vector of magnitudes."""
        self.code.store(size, self.kept, scaled(self.code, self.index, VECTOR * self.each, VECTOR * self.number))
        self.number += 1

    def alive(self) -> Any:
        """Return which lanes of the next result are sums; of a line, whose parts have as many results each."""
        part = self.results // (self.each // VECTORS)
        self.results += 1
        return self.code.load(self.notes, ALIVE + VECTOR * part, VI)

    def count(self, what: int, happened: Any) -> None:
        """Count one more in the lanes where something happened."""
        # True is all bits set, -1 as an integer: taken away, it adds one.
        self.now[what] = self.code.b.sub(self.now[what], self.code.b.sext(happened, VI))

    def note_small(self, size: Any, y: Any, least: Any, below: Any, *, underflows: bool) -> None:
        """Note what is small among exact magnitudes and those of results, y; `least` is that of normal numbers.

        What is not less than `below`, in size, is neither subnormal nor zero when rounded.
        """
        b, one = self.code.b, splat(1)
        less = b.sub(size, one)  # zero is the greatest
        with self.changed(SMALL, b.icmp_unsigned("<", less, self.now[BELOW])):
            self.now[SMALLEST] = self.code.less(self.now[SMALLEST], less)
            # 0 < y < least in one comparison, too.
            self.count(SUBNORMAL, b.icmp_unsigned("<", b.sub(y, one), b.sub(least, one)))
            if underflows:
                is_gone = b.and_(b.icmp_unsigned("==", y, splat(0)), b.icmp_unsigned("!=", size, splat(0)))
                self.count(UNDERFLOW, is_gone)
            self.now[BELOW] = self.code.greater(self.code.least_of(self.now[SMALLEST]), b.sub(below, one))

    @contextmanager
    def changed(self, which: tuple[int, ...], happened: Any) -> Iterator[None]:
        """Emit a branch for where something happened in any lane, in which these vectors of the note may change."""
        b = self.code.b
        places = {what: cgutils.alloca_once_value(b, self.now[what]) for what in which}
        lanes = ir.IntType(WIDTH)
        with b.if_then(b.icmp_unsigned("!=", b.bitcast(happened, lanes), lanes(0)), likely=False):
            yield
            for what, place in places.items():
                b.store(self.now[what], place)
        for what, place in places.items():
            self.now[what] = b.load(place)

    def end(self) -> None:
        """End a round."""
        self.held.set(self.now)

    def finish(self) -> None:
        """Write the note back."""
        self.held.finish()
