"""Names of modules, sites and operations that callers pass: text, or refused in a sentence. Needs no torch."""

from __future__ import annotations

from typing import Any

from normstab.errors import DtypeError

__all__ = ["check_name"]


def check_name(x: Any, what: str) -> str:
    """Return a name; raise for what is not text."""
    if not isinstance(x, str):
        raise DtypeError(f"{what} is a name, found {type(x).__name__}: {x!r:.60}")
    return x
