"""The one exception tree of normstab, and the lookup that suggests a near name.

Only the user's mistakes raise. A number that overflowed is a result, never an exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TypeVar

__all__ = [
    "DtypeError",
    "FormatError",
    "NormstabError",
    "PrecisionError",
    "RecordError",
    "ScenarioError",
    "StrayRecord",
    "lookup",
    "near",
]

Value = TypeVar("Value")
LONGEST_NAME = 100
MOST_COMPARED = 400


class NormstabError(ValueError):
    """The user's input was wrong: the message says what, where, what was found and what is allowed."""


class DtypeError(NormstabError, TypeError):
    """A tensor of the wrong dtype: not floating point, or unable to hold the format."""


class FormatError(NormstabError):
    """A number format, or its name, that does not exist."""


class PrecisionError(NormstabError):
    """A precision string, or one of its parts, that does not parse."""


class ScenarioError(NormstabError):
    """A scenario file that does not hold: every problem at once, each with file, line and column."""


class RecordError(NormstabError):
    """A record file that is torn, of another version, or not a record."""


class StrayRecord(RecordError):
    """A record that is no cell's own: a copy in a folder of another name. It is left out, and harms nothing."""


def near(name: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the allowed name nearest to `name`, or an empty string.

    Of long texts, and of names beyond the first hundreds, nothing is suggested: comparing is slow, typing errors short.
    """
    if len(name) > LONGEST_NAME:
        return ""
    matches = difflib.get_close_matches(name, [*islice(allowed, MOST_COMPARED)], n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def lookup(table: Mapping[str, Value], name: str, *, what: str) -> Value:
    """Return `table[name]`, or raise a NormstabError that names what is allowed and the nearest name.

    `what` is the noun in the message: "unknown norm 'linff'; did you mean 'linf'? (l1, l2, linf)".
    """
    if not isinstance(name, str):
        raise NormstabError(f"a {what} is given by its name, found {type(name).__name__}: {name!r:.60}")
    if name in table:
        return table[name]
    allowed = ", ".join(table)
    raise NormstabError(f"unknown {what} {name!r}{near(name, table)} ({allowed})")
