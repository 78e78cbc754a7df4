"""Points of a grid in words: short precisions, values and coordinates as a reader writes them.

Formats what others computed; judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from normstab.errors import NormstabError
from normstab.numerics.precision import Precision

__all__ = ["point_words", "short_precision", "value_words", "varying_axes"]


@cache
def short_precision(text: str) -> str:
    """Return the shortest spelling of a precision that still means the same: `fp16` for `fp16/nearest/fp32:lanes64`."""
    try:
        precision = Precision.parse(text)
    except NormstabError:
        return text
    head, *options = text.split(";")
    parts = head.replace(":lanes64", "").split("/")
    for kept in range(1, len(parts) + 1):
        shorter = ";".join(["/".join(parts[:kept]), *options])
        try:
            if Precision.parse(shorter) == precision:
                return shorter
        except NormstabError:
            continue
    return text


def value_words(axis: str, value: Any) -> str:
    """Return one value of an axis as a reader writes it."""
    if axis.endswith("precision"):
        return "fp32 (native)" if value == "native" else short_precision(str(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def point_words(point: Mapping[str, Any], *, without: Iterable[str] = ()) -> str:
    """Return a grid point as `norm l2, precision fp16, input_scale 256`."""
    left_out = set(without)
    shown = [f"{axis} {value_words(axis, value)}" for axis, value in point.items() if axis not in left_out]
    return ", ".join(shown) or "all cells"


def varying_axes(points: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the axes, seed apart, on which the points differ, in their order."""
    values: dict[str, set[str]] = {}
    for point in points:
        for axis, value in point.items():
            values.setdefault(axis, set()).add(repr(value))
    return [axis for axis, found in values.items() if len(found) > 1 and axis not in ("seed", "train.seed")]
