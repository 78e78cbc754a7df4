"""Pairs of parameters of which each member is met by day, and all pairs at night."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def thinned(first: Iterable[Any], second: Iterable[Any], *, every: int) -> list[Any]:
    """All pairs in order, those of two tuples joined; but for one in `every` they are marked as nightly."""
    found = []
    seconds = list(second)
    for i, a in enumerate(first):
        for j, b in enumerate(seconds):
            values = (*(a if isinstance(a, tuple) else (a,)), b)
            found.append(pytest.param(*values, marks=() if (i + j) % every == 0 else pytest.mark.nightly))
    return found
