"""What a precision says that its author may not have meant: sentences for people, never an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from normstab.numerics.formats import parse_format
from normstab.numerics.precision import FORMAT_ROLES, OPERANDS, Precision

__all__ = ["cautions"]

# The IEEE-like e4m3 spends a binade on infinities; every 8-bit unit in hardware has the other one (OCP OFP8 1.0).
_LOOKALIKE = parse_format("e4m3")
_USUAL = "e4m3 has max 240 and inf; did you mean e4m3fn, max 448?"


def cautions(precisions: Iterable[Precision]) -> list[str]:
    """Return a sentence for each format of the precisions that is easily taken for another; often none."""
    return [_USUAL] if any(_LOOKALIKE in _formats(precision) for precision in precisions) else []


def _formats(precision: Precision) -> Iterator[object]:
    """Yield every format that the precision names, None where it names none."""
    yield from (precision.compute, precision.accumulation.format, precision.matmul.format)
    yield from (getattr(precision, role) for role in FORMAT_ROLES)
    for key in OPERANDS:
        operand = getattr(precision, key.replace(".", "_"))
        yield from (operand.element, operand.scale) if operand is not None else ()
    yield precision.collective.format if precision.collective is not None else None
