"""The version of the numerics: it enters the id of every cell, so that records made under other bits are not reused."""

from __future__ import annotations

__all__ = ["NUMERICS_VERSION"]

# Raised by one whenever a change of code changes a single bit or counter of a result.
NUMERICS_VERSION = 1
