"""What leaves the range of a format, in vector code: overflows, infinities and NaN, their results and their counts.

    a result      [ finite | finite | too large | infinite | NaN ]     asked of all lanes of a vector at once
    becomes       [        |        |   over    |    inf   | NaN ]     and only where one is, in a branch

What an infinity or a NaN counts as depends on the operands: who breaks a number counts it.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from typing import Any

from numba.core import cgutils

from normstab.numerics.kernels.cpu.vector.note_code import INFINITE, NAN_PRODUCED, NAN_PROPAGATED, OVERFLOW, Note
from normstab.numerics.kernels.cpu.vector.vectors import INFINITY, Code, splat
from normstab.numerics.kernels.cpu.vector.ways import UNCOUNTED
from normstab.numerics.kernels.nearest import INF_MINUS, INF_PLUS, LIMIT_MINUS, LIMIT_PLUS, OVER_MINUS, OVER_PLUS

__all__ = ["Ends"]

NAN = 0x7FC00000


class Ends:
    """The greatest magnitudes of a format, and what becomes of what is greater: of either sign, plus first."""

    def __init__(self, code: Code, table: Any, counts: int) -> None:
        self.code, self.counts = code, counts
        self.limits, self.overs, self.infinities = (
            [code.word(table, i) for i in both]
            for both in ((LIMIT_PLUS, LIMIT_MINUS), (OVER_PLUS, OVER_MINUS), (INF_PLUS, INF_MINUS))
        )

    def within(self, y: Any, is_minus: Any, note: Note) -> Any:
        """Return magnitudes of which those beyond the range, which are counted, are the greatest."""
        limit = self.of_sign(self.limits, is_minus)
        if self.counts != UNCOUNTED:
            note.count(OVERFLOW, self.code.b.icmp_unsigned(">", y, limit))
        return self.code.less(y, limit)

    def of_sign(self, both: list[Any], is_minus: Any) -> Any:
        """Return the word of each lane's sign."""
        return self.code.b.select(is_minus, both[1], both[0])

    def carried(self, operands: tuple[Any, Any], s: Any, size: Any, y: Any, note: Note) -> tuple[Any, Any]:
        """Return y, and the magnitudes `size` of exact results, as far as these are finite, else 0; count what is not.

        s: the float32 operation on the operands. Where that is NaN or infinite, `size` and y may be anything above.
        """
        b, code = self.code.b, self.code
        results, sizes = cgutils.alloca_once_value(b, y), cgutils.alloca_once_value(b, size)
        is_large = b.icmp_unsigned(">=", size, self.limits[0])
        with note.changed((OVERFLOW, INFINITE, NAN_PRODUCED, NAN_PROPAGATED), is_large):
            has_nan = b.fcmp_unordered("uno", *operands)
            is_nan = b.fcmp_unordered("uno", s, s)
            has_inf = b.or_(*(b.icmp_unsigned("==", code.size(x), splat(INFINITY)) for x in operands))
            is_infinite, is_finite = b.and_(has_inf, b.not_(is_nan)), b.not_(b.or_(has_inf, is_nan))
            is_minus = b.icmp_signed("<", code.bits(s), splat(0))
            is_over = b.and_(is_finite, b.icmp_unsigned(">", code.size(y), self.of_sign(self.limits, is_minus)))
            became = b.select(is_over, self.of_sign(self.overs, is_minus), code.bits(y))
            became = b.select(is_infinite, self.of_sign(self.infinities, is_minus), became)
            became = code.floats(b.select(is_nan, splat(NAN), became))
            b.store(became, results)
            # A finite result that float32 holds not is seen as its largest number.
            b.store(code.where(is_finite, code.less(size, splat(INFINITY - 1))), sizes)
            if self.counts != UNCOUNTED:
                is_alive = b.icmp_signed("!=", note.alive(), splat(0))
                is_produced = b.and_(b.fcmp_unordered("uno", became, became), b.not_(has_nan))
                note.count(OVERFLOW, is_over)
                note.count(INFINITE, is_infinite)
                # Idle lanes hold zeros, which times an infinity are NaN.
                note.count(NAN_PRODUCED, b.and_(is_produced, is_alive))
                note.count(NAN_PROPAGATED, b.and_(has_nan, is_alive))
        return b.load(results), b.load(sizes)
