"""Which format the values of a traced program are known to have, and which sums therefore cast none of their addends.

A result has the format of its call. What plain torch only moves or chooses keeps its format; what it computes has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from normstab.norms.trace import Program, Step, Value
from normstab.numerics.execute import rounded_constant
from normstab.numerics.formats import AnyFormat, FixedFormat, Format

__all__ = ["Known", "fitting_loads", "formats_of", "has_number", "is_within"]

# The values of sign(d): -1, 0 and 1, which the narrowest accumulator may lack.
SIGNS = Format("sign", 1, 0, 0, 1.0, has_subnormals=False)
CHANGED_SIGN = ("abs", "aten::neg")
# Of torch: what leaves every number as it is.
MOVES = (
    "aten::view", "aten::_unsafe_view", "aten::detach", "aten::alias", "aten::clone", "aten::permute", "aten::expand",
    "aten::slice.Tensor", "aten::select.int", "aten::unsqueeze", "aten::squeeze.dim", "aten::transpose.int",
    "aten::gather", "aten::amax", "aten::amin", "aten::max.dim", "aten::min.dim", "aten::sort", "aten::sort.stable",
    "aten::topk",
)  # fmt: skip


class Known(NamedTuple):
    """A format whose values, or whose values with another sign, a value of a program has."""

    format: AnyFormat
    are_signed_anew: bool = False


def formats_of(program: Program, inputs: Mapping[str, Known] | None = None) -> dict[int, Known]:
    """Return what is known of the values of a program by their numbers, given what is known of those that come in."""
    known = {program.inputs[name].number: found for name, found in (inputs or {}).items() if name in program.inputs}
    for step in program.steps:
        found = known_of(step, known)
        if found is not None:
            known |= {result.number: found for result in step.results[:1]}
    return known


def known_of(step: Step, known: Mapping[int, Known]) -> Known | None:
    """Return what is known of the first result of a step."""
    if step.kind == "constant":
        return None
    if step.calls:
        return Known(step.calls[-1].format)
    if step.kind == "sign":
        return Known(SIGNS)
    operands = [known.get(x.number) for x in step.operands if isinstance(x, Value)]
    if step.kind == "aten::scalar_tensor" and step.detail[1][0] in (-1.0, 0.0, 1.0):
        return Known(SIGNS)
    if step.kind == "aten::where.self":
        return wider(*operands[1:])
    if not operands or operands[0] is None:
        return None
    if step.kind in CHANGED_SIGN:
        return operands[0]._replace(are_signed_anew=True)
    return operands[0] if step.kind in MOVES else None


def wider(a: Known | None, b: Known | None) -> Known | None:
    """Return what is known of a value that is one of two; None where neither format has the numbers of the other."""
    if a is None or b is None:
        return None
    for inner, outer in ((a, b), (b, a)):
        if is_within(inner.format, outer.format):
            return Known(outer.format, a.are_signed_anew or b.are_signed_anew)
    return None


def fitting_loads(program: Program, inputs: Mapping[str, Known] | None = None) -> frozenset[str]:
    """Return the loads of a program's sums whose addends are values of the accumulator's format already."""
    known = formats_of(program, inputs)
    found: set[str] = set()
    others: set[str] = set()
    for step in program.steps:
        if step.kind == "accumulate" and len(step.calls) > 1:
            load, addend = step.calls[-1], known.get(step.operands[0].number)  # type: ignore[union-attr]
            does_fit = addend is not None and fits(addend.format, load.format, are_magnitudes=addend.are_signed_anew)
            (found if does_fit else others).add(load.operation)
    return frozenset(found - others)


def fits(addends: AnyFormat, sums: AnyFormat, *, are_magnitudes: bool) -> bool:
    """Whether every value of one format, or its magnitude, is a value of the other, infinities and -0 among them."""
    if addends == sums:
        # The magnitude of the least fixed-point number is no fixed-point number.
        return isinstance(addends, Format) or not are_magnitudes
    if not isinstance(sums, Format) or sums.overflow != "inf" or not sums.has_negative_zero:
        return False
    return is_within(addends, sums)


def is_within(inner: AnyFormat, outer: AnyFormat) -> bool:
    """Whether every finite number of one format is one of another."""
    if inner == outer:
        return True
    if isinstance(inner, FixedFormat) and isinstance(outer, FixedFormat):
        return False
    return (
        outer.precision >= inner.precision
        and outer.min_subnormal <= inner.min_subnormal
        and outer.max >= max(inner.max, abs(getattr(inner, "min", 0.0)))
    )


def has_number(format: AnyFormat, x: float) -> bool:
    """Whether a format has a number."""
    return rounded_constant(x, format)[0] == x
