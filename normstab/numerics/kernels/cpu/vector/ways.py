"""The ways to round and to count in float32 lanes: vector code is written for one of them, at its first use.

    Way         what vector code knows of its way when it is written: how to round, what to count, how chains add
    Lanes       what a kernel is given of it when it runs: that, where the vector code is, and where its constants are

Kernels of sums and of products are compiled once: they call the vector code of whichever way they are given.
"""

from __future__ import annotations

from collections import namedtuple
from itertools import product
from typing import Any, NamedTuple

from normstab.numerics.kernels.nearest import DRAWN, HALF, MAGIC, PLAIN, STEPPED

__all__ = [
    "BINNED",
    "CAREFUL",
    "COUNTED",
    "FAILING",
    "FULL",
    "FULL_BINNED",
    "FUSED",
    "KAHAN",
    "ONE_BY_ONE",
    "SATURATING",
    "TAG_OF",
    "UNCOUNTED",
    "WAYS",
    "Lanes",
    "Way",
]

# What is counted: nothing; all but inexact results; these too; all magnitudes for a histogram, but inexact; all.
UNCOUNTED, COUNTED, FULL, BINNED, FULL_BINNED = 0, 1, 2, 3, 4
# How a chain adds: each addend as it is rounded, compensated, or a product that was not rounded.
ONE_BY_ONE, KAHAN, FUSED = 0, 1, 2
# What leaves the range: a group of sums that sees it has failed; an overflow becomes the greatest number, and only what
# is infinite or NaN fails; all of it is computed and counted, at the price of a look at every result.
FAILING, SATURATING, CAREFUL = 0, 1, 2

STYLES = {"Plain": PLAIN, "Half": HALF, "Magic": MAGIC, "Stepped": STEPPED, "Drawn": DRAWN}
COUNTS = {"": UNCOUNTED, "Counted": COUNTED, "Full": FULL, "Binned": BINNED, "FullBinned": FULL_BINNED}
CHAINS = {"": ONE_BY_ONE, "Kahan": KAHAN, "Fused": FUSED}
ENDS = {"": FAILING, "Saturating": SATURATING, "Careful": CAREFUL}


class Way(NamedTuple):
    """How to round and count."""

    style: int
    counts: int
    chain: int
    ends: int


# A way -> a type that says it, of what vector code is compiled for; and back.
TAG_OF: dict[Way, Any] = {}
for names in product(STYLES, COUNTS, CHAINS, ENDS):
    _way = Way(STYLES[names[0]], COUNTS[names[1]], CHAINS[names[2]], ENDS[names[3]])
    TAG_OF[_way] = namedtuple("".join(names), ("nothing",), module=__name__)  # type: ignore[misc]
WAYS: dict[Any, Way] = {tag: way for way, tag in TAG_OF.items()}
globals().update({tag.__name__: tag for tag in WAYS})  # numba's cache finds types again by their names


class Lanes(NamedTuple):
    """A way at run time.

    `code`: the address of a table of addresses of its vector code. `table`: that of a table of `nearest`. `away`: of
    stochastic rounding, how many bytes after a line of addends the random bits of their additions lie, and as far after
    those the ones of their products.
    """

    code: int
    table: int
    style: int
    counts: int
    chain: int
    ends: int
    away: int

    @property
    def is_drawn(self) -> bool:
        """Whether it rounds stochastically."""
        return self.style == DRAWN
