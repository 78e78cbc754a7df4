"""The verdicts by name: what a scenario may expect, and how one is shown. When each holds is in `assess.verdicts`.

A new verdict is a row here and a rule there.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Literal

__all__ = ["Verdict", "VerdictName"]


class Verdict(Enum):
    """What became of a cell; the value is its gravity, and INCONCLUSIVE stands outside the order.

    `mark` stands beside its name in every report, `colour` is that of the name in HTML; `fails` says whether the
    format did the network harm.
    """

    mark: str
    colour: str
    fails: bool

    STABLE = (0, "✔", "#1a7f37", False)
    DEGRADED = (1, "▼", "#9a6700", True)
    DIVERGED = (2, "▲", "#bc4c00", True)
    COLLAPSED = (3, "✘", "#cf222e", True)
    NONFINITE = (4, "∞", "#cf222e", True)
    INCONCLUSIVE = (-1, "?", "#59636e", False)

    def __new__(cls, gravity: int, mark: str, colour: str, fails: bool) -> Verdict:
        """Make a row; its gravity alone is its value."""
        made = object.__new__(cls)
        made._value_ = gravity
        made.mark, made.colour, made.fails = mark, colour, fails
        return made

    def __str__(self) -> str:
        return self.name

    @property
    def marked(self) -> str:
        """The name with its mark before it."""
        return f"{self.mark} {self.name}"


# The names as a type that a scenario's fields are checked against.
if TYPE_CHECKING:
    VerdictName = str
else:
    VerdictName = Literal[tuple(verdict.name for verdict in Verdict)]
