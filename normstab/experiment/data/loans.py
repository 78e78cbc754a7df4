"""Data sets that another process has read for this one: arrays in shared memory, which are no copies.

Ray's workers on a node read one copy in its object store. Knows nothing of Ray, nor of what a set is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Loan", "lend", "lent"]

Key = tuple[str, str | None, int | None]  # name, root, side or length
MOST_LENT = 2


@dataclass(frozen=True)
class Loan:
    """A whole data set, and what it is known by."""

    key: Key
    source: Any


_LENT: dict[Key, Any] = {}  # the last sets alone, as a process keeps those that it read


def lend(loan: Loan | None) -> None:
    """Let this process use a set that another has read, in the place of reading it."""
    if loan is None or loan.key in _LENT:
        return
    _LENT[loan.key] = loan.source
    if len(_LENT) > MOST_LENT:
        del _LENT[next(iter(_LENT))]


def lent(key: Key) -> Any:
    """Return the set of this name, root and size where it was lent, else None."""
    return _LENT.get(key)
