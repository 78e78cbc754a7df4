"""The ways to round and to count in float32 lanes, as types: a kernel is compiled for one of them, at its first use.

Way(table, bins, away): the address of a table of `nearest`; whether magnitudes are kept for a histogram (0 or 1); of
stochastic rounding, how many bytes after a line of addends the random bits of their additions lie, and as far after
those the ones of their products. What a type says is known when the kernel is compiled, so that no kernel holds the
code of another way.
"""

from __future__ import annotations

from collections import namedtuple
from itertools import product
from typing import Any, NamedTuple

from normstab.numerics.kernels.nearest import DRAWN, HALF, MAGIC, PLAIN, STEPPED

__all__ = ["COUNTED", "FULL", "FUSED", "KAHAN", "ONE_BY_ONE", "UNCOUNTED", "WAYS", "WAY_OF", "Way"]

# What is counted: nothing; all but inexact results; all, and magnitudes for a histogram.
UNCOUNTED, COUNTED, FULL = 0, 1, 2
# How a chain adds: each addend as it is rounded, compensated, or a product that was not rounded.
ONE_BY_ONE, KAHAN, FUSED = 0, 1, 2

STYLES = {"Plain": PLAIN, "Half": HALF, "Magic": MAGIC, "Stepped": STEPPED, "Drawn": DRAWN}
COUNTS = {"": UNCOUNTED, "Counted": COUNTED, "Full": FULL}
CHAINS = {"": ONE_BY_ONE, "Kahan": KAHAN, "Fused": FUSED}
ENDS = {"": False, "Saturating": True}


class Way(NamedTuple):
    """What a type of way says."""

    style: int
    counts: int
    chain: int
    saturates: bool  # what overflows becomes the greatest number; else a group of sums that sees it has failed


# What is said -> the type that says it; and back.
WAY_OF: dict[Way, Any] = {}
for names in product(STYLES, COUNTS, CHAINS, ENDS):
    _way = Way(STYLES[names[0]], COUNTS[names[1]], CHAINS[names[2]], ENDS[names[3]])
    WAY_OF[_way] = namedtuple("".join(names), ("table", "bins", "away"), module=__name__)  # type: ignore[misc]
WAYS: dict[Any, Way] = {kind: way for way, kind in WAY_OF.items()}  # type -> what it says
globals().update({kind.__name__: kind for kind in WAYS})  # numba's cache finds types again by their names
