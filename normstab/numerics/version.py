"""The version of the numerics, and the versions of what computes that it was tested with.

The first enters the id of every cell, so that records made under other bits are not reused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

__all__ = ["NUMERICS_VERSION", "TESTED", "beyond_tested"]

# Raised by one whenever a change of code changes a single bit or counter of a result.
NUMERICS_VERSION = 2

# Library -> the oldest and the newest minor version with which the test suite passed.
TESTED = {"torch": ("2.13", "2.14"), "numba": ("0.68", "0.68"), "triton": ("3.9", "3.9")}


def beyond_tested(installed: Callable[[str], str] = version) -> Iterator[str]:
    """Yield a sentence for each library whose installed minor version is older or newer than those tested."""
    for library, (oldest, newest) in TESTED.items():
        try:
            found = installed(library)
        except PackageNotFoundError:
            continue
        if not _minor(oldest) <= _minor(found) <= _minor(newest):
            tested = oldest if oldest == newest else f"{oldest} to {newest}"
            yield f"{library} {found} is not among the versions tested ({tested})"


def _minor(text: str) -> tuple[int, ...]:
    """Return the first two numbers of a version: (2, 14) of `2.14.1+cpu`."""
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in text.partition("+")[0].split(".")[:2])
