"""What may follow a format's name after a colon: its overflow policy, then what no name of the grammar says."""

from __future__ import annotations

import re

__all__ = ["FIXED_POLICIES", "FLOAT_POLICIES", "is_field", "is_suffix"]

# What becomes of a result beyond the largest value; the first is what eXmY, qI.F and uI.F do.
FLOAT_POLICIES = ("inf", "nan", "saturate")
FIXED_POLICIES = ("saturate", "saturate-symmetric", "saturate-zero", "wrap")
# What no name of the grammar says of a Format: `:flush`, then its fields one by one.
_FIELD = re.compile(r"(?:(flush|unsigned-zero)|(p|emin|max)=(-?[0-9][0-9.e+-]{0,39}))\Z")


def is_field(text: str) -> bool:
    """Whether `text` is a suffix of a format's name, other than its overflow policy."""
    return _FIELD.match(text) is not None


def is_suffix(text: str) -> bool:
    """Whether `text` may follow a format's name after a colon."""
    return text in FLOAT_POLICIES or text in FIXED_POLICIES or is_field(text)
