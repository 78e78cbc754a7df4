"""The step counter that keys random bits and dates first offences, and is set back where a forward is recomputed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from normstab.numerics.steps.replay import Moment, Replay

__all__ = ["SHARE_SHIFT", "Clock"]

SHARE_SHIFT = 48
"""Where a share's number stands in the 64 bits of the step that Philox counts by: steps are below 2^48 there."""


class Clock:
    """The step that all Arithmetics made from one share, and how often each site was called within it.

    `is_set`: someone outside says which step begins, so a simulation does not count forwards of its own. `share` is
    the number of this process's part of a batch, `splits_parameters` whether it has a part of each parameter too.
    """

    def __init__(self, step: int = 0) -> None:
        self.step = step
        self.is_set = False
        self.share = 0
        self.splits_parameters = False
        self._calls: Counter[str] = Counter()
        self.replay = Replay(self)

    def advance(self) -> None:
        """Begin the next step: the numbers of calls start again."""
        self._begin(self.step + 1)

    def set(self, step: int) -> None:
        """Begin `step`, as a training loop that counts its steps does, also after a resume."""
        self._begin(step)
        self.is_set = True

    def counted_step(self, direction: str, role: str | None) -> int:
        """Return by what random bits are counted beside the element: the step, and above it the share of the batch.

        No two samples of a step draw the same bits, whichever process has them; parameters and their updates, which are
        alike in every process, have share 0.
        """
        is_update = direction == "optimizer"
        is_alike = not self.splits_parameters if is_update else role == "parameter"
        return self.step if is_alike else self.step + (self.share << SHARE_SHIFT)

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Draw the same bits in every process: for results that are the same in each."""
        share, self.share = self.share, 0
        try:
            yield
        finally:
            self.share = share

    def number(self, site: str) -> int:
        """Return how often `site` was called before in this step, and count this call."""
        n = self._calls[site]
        self._calls[site] = n + 1
        return n

    def moment(self) -> Moment:
        """Return what `turn_to` goes back to."""
        return Moment(self.step, Counter(self._calls))

    def turn_to(self, moment: Moment) -> None:
        """Go on as from `moment`."""
        self.step, self._calls = moment.step, Counter(moment.calls)

    def _begin(self, step: int) -> None:
        self.step = step
        self._calls = Counter()
