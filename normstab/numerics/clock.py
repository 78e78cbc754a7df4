"""The step counter that keys random bits and dates first offences; knows nothing of arithmetic."""

from __future__ import annotations

__all__ = ["Clock"]


class Clock:
    """The step that all Arithmetics made from one share, and how often each site was called within it.

    `is_set`: someone outside says which step begins, so a simulation does not count forwards of its own.
    """

    def __init__(self, step: int = 0) -> None:
        self.step = step
        self.is_set = False
        self._calls: dict[str, int] = {}

    def advance(self) -> None:
        """Begin the next step: the numbers of calls start again."""
        self.step += 1
        self._calls.clear()

    def set(self, step: int) -> None:
        """Begin `step`, as a training loop that counts its steps does, also after a resume."""
        self.step = step
        self.is_set = True
        self._calls.clear()

    def number(self, site: str) -> int:
        """Return how often `site` was called before in this step, and count this call."""
        n = self._calls.get(site, 0)
        self._calls[site] = n + 1
        return n
