"""One call of one site: how its results are rounded, where they are counted, which bits they draw.

The value that the reference and every kernel take; it computes nothing.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from normstab.numerics.formats import AnyFormat
from normstab.numerics.ledger import Row
from normstab.numerics.philox import Draw
from normstab.numerics.precision import NEAREST, Precision, Rounding

__all__ = ["Call", "OperationRules"]


class Call(NamedTuple):
    """How one operation's results become values of `format`.

    `row` counts them (None: nobody does), marking first offences with `stamp` (order of events) and `step`;
    `draw` names the random bits of stochastic rounding; `inexact` asks for that counter too.
    """

    format: AnyFormat
    rounding: Rounding = NEAREST
    row: Row | None = None
    stamp: int = 0
    step: int = 0
    draw: Draw | None = None
    inexact: bool = False


class OperationRules(Protocol):
    """Which precision one operation of a site has, where a rule gives it one of its own."""

    def precision_of(self, site: str, operation: str) -> Precision | None:
        """Return the operation's own precision, or None."""
