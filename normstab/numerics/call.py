"""One call of one site: how its results are rounded, where they are counted, which bits they draw.

The value that the reference and every kernel take; it computes nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from normstab.numerics.formats import AnyFormat
from normstab.numerics.ledger import Row
from normstab.numerics.philox import Draw
from normstab.numerics.precision import NEAREST, Precision, Rounding

__all__ = ["MOST_KEPT", "Call", "Kept", "Operands", "OperationRules"]


class Operands(NamedTuple):
    """What a result of torch's was computed from: a NaN that none of them has was produced, an infinity overflowed.

    `are_elementwise`: each element depends on theirs at its place; else each may depend on all. `has_poles`: an
    infinity of finite operands is a division by zero.
    """

    tensors: tuple[Tensor, ...]
    are_elementwise: bool = False
    has_poles: bool = False


class Call(NamedTuple):
    """How one operation's results become values of `format`.

    `row` counts them (None: nobody does), marking first offences with `stamp` (order of events) and `step`;
    `draw` names the random bits of stochastic rounding; `inexact` asks for that counter too. `operands` are given to
    kernels that say themselves whose a NaN is (see `dispatch.later_for`); others take a cast for a cast.
    """

    format: AnyFormat
    rounding: Rounding = NEAREST
    row: Row | None = None
    stamp: int = 0
    step: int = 0
    draw: Draw | None = None
    inexact: bool = False
    operands: Operands | None = None


class OperationRules(Protocol):
    """Which precision one operation of a site has, where a rule gives it one of its own."""

    def precision_of(self, site: str, operation: str) -> Precision | None:
        """Return the operation's own precision, or None."""


MOST_KEPT = 64
"""How many things a Kept holds."""


class Kept(dict[Any, Any]):
    """What is looked up again and again in one process, MOST_KEPT things at most; a pickled one is empty.

    One more, and all are forgotten: texts of a thousand lengths would keep a thousand programs at every norm.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        if len(self) >= MOST_KEPT and key not in self:
            self.clear()
        super().__setitem__(key, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()
