"""When something happened that was noted once and ran several times, as the launches of a captured step do."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["ONCE", "Repeats"]

Numbers = NDArray[np.int64]


class Repeats(NamedTuple):
    """How much later than it was noted something happened, for each time: by as many stamps of events, and steps."""

    stamps: Numbers
    steps: Numbers

    def first(self, happened: NDArray[np.bool_], stamp: int, step: int) -> tuple[Numbers, Numbers]:
        """Return the stamp and the step of the first time, of each column of `happened`, which has a row for each.

        Of a column where it never did, those of the first time of all.
        """
        index = happened.argmax(axis=0)
        return stamp + self.stamps[index], step + self.steps[index]


ONCE = Repeats(np.zeros(1, np.int64), np.zeros(1, np.int64))
"""What was noted when it happened."""
