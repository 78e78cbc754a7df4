"""Operations that a simulation does not understand: how often each ran, and how many results they made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["LARGEST_SHARE", "Unsimulated", "has_numbers"]

LARGEST_SHARE = 0.01
"""Of results that were not simulated: beyond it no verdict is given."""


class Unsimulated(Counter[str]):
    """Counts operations by name; `results` is the number of elements that they returned."""

    results: int = 0
    is_repeating: Callable[[], bool] | None = None

    def note(self, name: str, result: Any) -> None:
        """Count one operation, and the elements of its floating and complex results, unless it ran before."""
        if self.is_repeating is not None and self.is_repeating():
            return
        self[name] += 1
        self.results += _elements(result)

    def add(self, counted: Mapping[str, int], results: int) -> None:
        """Count what another process counted."""
        self.update(counted)
        self.results += results

    def share_beside(self, simulated: int) -> float:
        """Return which share of all results these are, beside as many that were simulated."""
        return self.results / (self.results + simulated) if self.results else 0.0


def has_numbers(result: Any) -> bool:
    """Return whether there is a floating or complex tensor among the results."""
    if isinstance(result, Tensor):
        return result.is_floating_point() or result.is_complex()
    return isinstance(result, list | tuple) and any(map(has_numbers, result))


def _elements(result: Any) -> int:
    """Return how many numbers a result holds."""
    if isinstance(result, Tensor):
        return result.numel() if has_numbers(result) else 0
    return sum(map(_elements, result)) if isinstance(result, list | tuple) else 0
