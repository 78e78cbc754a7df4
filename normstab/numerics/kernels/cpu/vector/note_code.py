"""Notes of what vector code saw: where they lie, and how they are held while an operation runs.

    [ sums | addends | Kahan's ]        a note each: largest, smallest, subnormal, ... overflow, in 16 lanes each
    [ sums | addends | Kahan's ]        for each: magnitudes of exact results, which a histogram is to count

What an infinity or a NaN counts as depends on its operands, which a note does not know: a group whose notes show
anything special is done again by the general kernels. Of all others the notes are what is counted.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from typing import Any

from llvmlite import ir

from normstab.numerics.kernels.cpu.vector.vectors import I64, LINE, NOTES, SEEN, VECTOR, VI, Code, Held, scaled

__all__ = [
    "INEXACT",
    "LARGEST",
    "MOST_KEPT",
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
# are subnormal, underflowed, inexact, or overflowed where they saturate. Magnitudes are those of exact results, rounded
# toward zero.
LARGEST, SMALLEST, SUBNORMAL, UNDERFLOW, INEXACT, OVERFLOW = range(NOTES)
# The notes of a group; how many lines of magnitudes are kept before they are counted.
OF_SUMS, OF_ADDENDS, OF_KAHAN, NOTES_OF_GROUP = 0, 1, 2, 3
MOST_KEPT = 64


def seen_at(which: int) -> int:
    """Return the offset (bytes) of a note."""
    return 4 * SEEN * which


def kept_at(which: int) -> int:
    """Return the offset of the magnitudes of a note; of NOTES_OF_GROUP, where all of it ends."""
    return seen_at(NOTES_OF_GROUP) + MOST_KEPT * LINE * which


class Note:
    """One note in registers, while an operation runs its rounds; each round keeps `each` vectors of magnitudes."""

    def __init__(self, code: Code, notes: Any, which: int, each: int) -> None:
        self.code, self.each = code, each
        self.held = Held(code, code.b.add(notes, ir.Constant(I64, seen_at(which))), NOTES, VI)
        self.kept = code.b.add(notes, ir.Constant(I64, kept_at(which)))
        self.now: list[Any] = []
        self.index, self.number = None, 0

    def begin(self, index: Any) -> None:
        """Begin a round."""
        self.now, self.index, self.number = self.held.get(), index, 0

    def keep(self, size: Any) -> None:
        """Keep a vector of magnitudes."""
        self.code.store(size, self.kept, scaled(self.code, self.index, VECTOR * self.each, VECTOR * self.number))
        self.number += 1

    def count(self, what: int, happened: Any) -> None:
        """Count one more in the lanes where something happened."""
        # True is all bits set, -1 as an integer: taken away, it adds one.
        self.now[what] = self.code.b.sub(self.now[what], self.code.b.sext(happened, VI))

    def end(self) -> None:
        """End a round."""
        self.held.set(self.now)

    def finish(self) -> None:
        """Write the note back."""
        self.held.finish()
