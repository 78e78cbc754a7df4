"""Who hears what `assert_stable` finds, and may judge it: a test runner, while a test runs. Needs no torch.

Nobody listens unless a listener was set, and only in the context in which it was.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from normstab.testing.assertions import Stability

__all__ = ["LISTENER", "Listener"]


class Listener(Protocol):
    """A test runner: it hears every comparison, and says whether an asserted one fails."""

    def hear(self, found: Stability) -> None:
        """Note what was found."""

    def complaint(self, found: Stability) -> str | None:
        """Return why the comparison heard last fails, or None."""


# Set for the time of one test.
LISTENER: ContextVar[Listener | None] = ContextVar("normstab_listener", default=None)
