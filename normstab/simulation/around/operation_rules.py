"""Rules about single operations: `MODULE::OPERATION` and `op:OPERATION`, of torch's operations and of norms' sites.

A rule about an operation of torch casts its operands on entry, computes there, and casts the results back to what
surrounds it. A rule about a site inside a norm gives that site's results a precision of their own; the next site
takes them as they are, as it does those of a role.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normstab.errors import NormstabError, near
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.execute import round_tensor
from normstab.numerics.precision import Precision
from normstab.numerics.rules import Rules, plain_operation
from normstab.simulation.around.places import Place
from normstab.simulation.aten.operation_table import EXACT, HANDLERS

__all__ = ["GRADIENT_SUM", "NORM_SITES", "OperationRules", "cast_back", "loaded"]

# The operations inside a norm; the parts of a mean's other forms (blockwise, Welford) have names of their own.
SITES = """beta centre constant dbeta dbeta.sum dgamma dgamma.product dgamma.sum dispersion dispersion.div
    dispersion.sum divide eps gamma grad input max mean mean.div mean.sum power product product.div product.sum
    project reciprocal root running_mean running_var scale shift slope slope.count slope.div slope.sum sqrt
    square subtract variance output input.grad gamma.grad beta.grad"""
NORM_SITES = frozenset(SITES.split())
GRADIENT_SUM = "accumulate_grad"
"""What a rule calls the sums in `.grad`, by the name of torch's autograd node; in the ledger they are `add`."""
FLOAT32 = Precision.parse("fp32")
WIDEST = 24  # bits of a significand of float32: every operand is a number of such a format


class OperationRules:
    """The rules of one simulation that are about operations, and which of them were met."""

    def __init__(self, rules: Rules[Precision], arithmetic_of: Callable[[Precision], Arithmetic]) -> None:
        self._rules = rules
        self._arithmetic_of = arithmetic_of
        self._places: dict[tuple[Place, str], Place] = {}
        self._unmet = set(rules.operations())
        self._seen: set[str] = set()
        for key, operation in rules.operations().items():
            check_operation(key, operation)

    @property
    def concern_norms(self) -> bool:
        """Whether a rule may be about a site inside a norm."""
        return any(operation in NORM_SITES for operation in self._rules.operations().values())

    @property
    def concern_gradient_sums(self) -> bool:
        """Whether a rule is about the sums in `.grad`."""
        return GRADIENT_SUM in self._rules.operations().values()

    def precision_of(self, site: str, operation: str) -> Precision | None:
        """Return the precision of an operation inside a norm, or None; a native one is float32."""
        found = self._rules.of_operation(site, operation)
        self._note(site, operation)
        if found is not None:  # its parts are computed in it: `mean` decides for `mean.div` too
            for part in (part for part in NORM_SITES if part.startswith(f"{plain_operation(operation)}.")):
                self._note(site, part)
        return FLOAT32 if found is not None and found.is_native else found

    def place(self, place: Place, operation: str) -> Place:
        """Return where an operation of torch is computed: at its place, or in the precision of its own rule."""
        known = self._places.get((place, operation))
        if known is None:
            precision = self.precision_of(place.name, operation)
            known = place if precision is None else place.in_arithmetic(self._arithmetic_of(precision))
            self._places[place, operation] = known
        return known

    def check_met(self) -> None:
        """Raise NormstabError for a rule that no operation of the run met; say which operations there were."""
        if self._unmet and self._seen:
            listed = ", ".join(sorted(self._seen))
            raise NormstabError(f"rules: {sorted(self._unmet)[0]!r}: no operation met it ({listed})")

    def _note(self, site: str, operation: str) -> None:
        """Note that an operation was there, and the rules that it met."""
        self._seen.add(plain_operation(operation))
        self._unmet.difference_update(self._rules.meeting(site, operation))


def check_operation(key: str, operation: str) -> None:
    """Raise NormstabError for an operation that is neither torch's nor a norm's."""
    known = NORM_SITES | {GRADIENT_SUM} | {plain_operation(name) for name in (*HANDLERS, *EXACT)}
    if operation not in known:
        raise NormstabError(f"rules: {key!r}: unknown operation {operation!r}{near(operation, sorted(known))}")


def loaded(operands: Any, place: Place, operation: str) -> Any:
    """Return the operands of an operation with a rule of its own in its format, cast at `OPERATION.load`."""
    if place.around is None or place.arithmetic.format.precision >= WIDEST:
        return operands
    return _rounded(operands, place, f"{operation}.load")


def cast_back(result: Any, place: Place) -> Any:
    """Return the results of an operation with a rule of its own in the format around it, cast at the site `to`."""
    return result if place.around is None or place.around.passes else _rounded(result, place.around, "to")


def _rounded(tree: Any, place: Place, operation: str) -> Any:
    """Return `tree` with every wide tensor in it cast."""
    if isinstance(tree, Tensor):
        is_wide = tree.dtype in (torch.float32, torch.float64)
        return round_tensor(tree, place.arithmetic.call(operation)) if is_wide else tree
    if isinstance(tree, list | tuple):
        return [_rounded(x, place, operation) for x in tree]
    return tree
