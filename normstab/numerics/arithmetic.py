"""Arithmetic: a Precision bound to a ledger, a site and a random key. Every result is rounded once and counted.

Layers and networks are written against its methods. None of them is differentiable: a layer has closed-form
gradients. What a method computes before rounding is in operations and accumulate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.numerics.call import Call, Kept, OperationRules
from normstab.numerics.dispatch import opaque, plain
from normstab.numerics.execute import carrier_dtype, compute, compute_function, round_tensor, rounded_constant
from normstab.numerics.formats import AnyFormat
from normstab.numerics.ledger import Ledger, Noted, Row, site_of
from normstab.numerics.philox import Draw, Key, key_word, signed_step
from normstab.numerics.precision import FORMAT_ROLES, Accumulation, Precision, Rounding
from normstab.numerics.readable import native
from normstab.numerics.readable.exact_operations import ExactOperations
from normstab.numerics.readable.operations import Operand
from normstab.numerics.readable.powers import Powers
from normstab.numerics.readable.sums import SUMS
from normstab.numerics.scaled.scale_history import ScaleHistory
from normstab.numerics.spelling.arguments import (
    axes,
    check_optional,
    check_out,
    check_tensors,
    number,
    raise_missing_key,
    shape_of,
)
from normstab.numerics.spelling.names import check_name
from normstab.numerics.steps.clock import Clock

__all__ = ["Arithmetic"]


class Arithmetic(ExactOperations, Powers):
    """Operations whose every result is rounded once, counted and keyed, as a Precision says.

    `accumulate` and `rounding` override the spec's parts. Operands are floating tensors that broadcast, or
    Python scalars, used as they come; results are float32 tensors, float64 where the format or an operand is
    wider. `operation=` names the site; `at`, `towards` and `in_format` return the same arithmetic elsewhere,
    with the same ledger, key and clock. `rules` may give single operations a precision of their own, whose results
    the next operation takes as they are. Under `native` every method is plain torch.
    """

    def __init__(
        self,
        precision: str | Precision | AnyFormat,
        *,
        accumulate: str | Accumulation | None = None,
        rounding: str | Rounding | None = None,
        ledger: Ledger | None = None,
        key: Key | None = None,
    ) -> None:
        spec = Precision.parse(precision)
        if accumulate is not None:
            spec = replace(spec, accumulation=Accumulation.parse(accumulate))
        if rounding is not None:
            spec = replace(spec, rounding=Rounding.parse(rounding))
        check_optional(ledger, Ledger, "Arithmetic: ledger", "a normstab.Ledger")
        check_optional(key, Key, "Arithmetic: key", "a normstab.Key, as Key(seed=0)")
        self.precision = spec
        self.ledger = ledger
        self.key = key
        self.site = key.site if key is not None else ""
        self.direction = "forward"
        self.role: str | None = None
        self.sums = SUMS
        self.clock = Clock(key.step if key is not None else 0)
        self.rules: OperationRules | None = None
        self.scales = ScaleHistory()
        self._variants: dict[tuple[str, str, str | None], Arithmetic] = {}
        self._sites: dict[str, tuple[Row | None, str, AnyFormat]] = {}
        self._ruled: dict[str, Arithmetic] = {}
        self.kept = Kept()  # what others have looked up of this arithmetic once and for all

    def __repr__(self) -> str:
        return f"Arithmetic({str(self.precision)!r}, site={self.site!r}, direction={self.direction!r})"

    @property
    def is_native(self) -> bool:
        """Whether nothing is rounded and plain torch computes."""
        return self.precision.compute is None

    @property
    def step(self) -> int:
        """The current step, shared by all Arithmetics made from this one."""
        return self.clock.step

    def advance(self) -> None:
        """Begin the next step."""
        self.clock.advance()

    @property
    def format(self) -> AnyFormat:
        """The format of results."""
        return self.precision.format(self.role)

    def at(self, name: str) -> Arithmetic:
        """Return this arithmetic at the site `old.name`."""
        check_name(name, "Arithmetic.at")
        return self._variant(f"{self.site}.{name}" if self.site else name, self.direction, self.role)

    def towards(self, direction: str) -> Arithmetic:
        """Return this arithmetic for `forward`, `backward` or `optimizer` results."""
        return self._variant(self.site, direction, self.role)

    def in_format(self, role: str | None) -> Arithmetic:
        """Return this arithmetic with results in the format of `role` (square, sum, variance, ...)."""
        if role is not None and role not in FORMAT_ROLES:
            raise NormstabError(f"unknown role {role!r} ({', '.join(FORMAT_ROLES)})")
        return self._variant(self.site, self.direction, role)

    def _variant(self, site: str, direction: str, role: str | None) -> Arithmetic:
        """Return the same arithmetic elsewhere, made once."""
        where = (site, direction, role)
        if where not in self._variants:
            self._variants[where] = self._with(site=site, direction=direction, role=role)
        return self._variants[where]

    def _with(self, **changes: Any) -> Arithmetic:
        """Return this arithmetic with other attributes, on the same clock; what is known of sites is not passed on."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _sites={}, _ruled={}, kept=Kept(), **changes)
        return other

    def for_operation(self, operation: str) -> Arithmetic:
        """Return the arithmetic of one operation: this one, unless a rule gives it a precision of its own."""
        if self.rules is None:
            return self
        if operation not in self._ruled:
            precision = self.rules.precision_of(self.site, operation)
            self._ruled[operation] = (
                self if precision is None else self._with(precision=precision, rules=None, _variants={})
            )
        return self._ruled[operation]

    def __deepcopy__(self, memo: dict[int, object]) -> Arithmetic:
        # A copied layer goes on counting in the same ledger, on the same clock.
        return self

    def call(self, operation: str, format: AnyFormat | None = None, *, rounding: Rounding | None = None) -> Call:
        """Return how the next result of `operation` is rounded (None: as the Precision says), counted and keyed."""
        if self.rules is not None and (ruled := self.for_operation(operation)) is not self:
            return ruled.call(operation, format, rounding=rounding)
        is_recomputed = self.clock.replay.follow()
        row, site_name, own_format = self._sites.get(operation) or self.place(operation)
        target, ledger = own_format if format is None else format, self.ledger
        rounding = self.precision.rounding if rounding is None else rounding
        draw = self._draw(site_name) if rounding.mode == "stochastic" else None
        if ledger is None:
            return Call(target, rounding, None, 0, 0, draw)
        if is_recomputed:
            row = ledger.recomputed.row(site_of(self.site, operation, self.direction))
        return Call(target, rounding, row, ledger.stamp(), signed_step(self.clock.step), draw, ledger.counts_inexact)

    def place(self, operation: str) -> tuple[Row | None, str, AnyFormat]:
        """Return the row that counts `operation` (None: nobody does), the name of its site, and its format."""
        if operation not in self._sites:
            site = site_of(self.site, check_name(operation, "operation"), self.direction)
            row = self.ledger.row(site) if self.ledger is not None else None
            self._sites[operation] = row, str(site), self.format
        return self._sites[operation]

    def calls(self, operation: str) -> Callable[[str, AnyFormat], Call]:
        """Return the function from a suffix (".load", ".kahan") and a format to the Call that rounds there."""
        return lambda suffix, format: self.call(operation + suffix, format)

    def _draw(self, site: str) -> Draw:
        """Return the random bits of the next call of `site` within the step."""
        if self.key is None:
            raise_missing_key(self.precision)
        n = self.clock.number(site)
        step = self.clock.counted_step(self.direction, self.role)
        return Draw(key_word(self.key.seed, f"{site}#{n}" if n else site), step, 0)

    @opaque
    def cast(self, x: Tensor, operation: str = "cast", *, out: Tensor | None = None) -> Tensor:
        """Round `x`, in the carrier dtype; a tensor that is already in the format is unchanged."""
        if self.is_native:
            return x if out is None else out.copy_(x)
        carrier = plain(x).to(carrier_dtype((x,), self.format))
        if out is not None and not (isinstance(out, Tensor) and out.dtype == carrier.dtype and out.shape == x.shape):
            check_out(out, x.shape, self.format, operation)
            return out.copy_(round_tensor(carrier, self.call(operation)))
        return round_tensor(carrier, self.call(operation), out=out)

    @opaque
    def constant(self, value: float, operation: str) -> float:
        """Return `value` rounded to nearest-even in the compute format, counted at `operation.const`."""
        if self.is_native:
            return value
        value = number(value, operation)
        rounded, counts = rounded_constant(value, self.for_operation(operation).precision.format())
        call = self.call(f"{operation}.const")
        if call.row is not None and self.ledger is not None:
            self.ledger.add(Noted(call.row, *counts[:3], call.stamp, call.step))
        return rounded

    def add(self, a: Operand, b: Operand, *, operation: str = "add", out: Tensor | None = None) -> Tensor:
        """Return a + b."""
        return self._operate("add", (a, b), operation, out)

    def sub(self, a: Operand, b: Operand, *, operation: str = "sub", out: Tensor | None = None) -> Tensor:
        """Return a - b."""
        return self._operate("sub", (a, b), operation, out)

    def mul(self, a: Operand, b: Operand, *, operation: str = "mul", out: Tensor | None = None) -> Tensor:
        """Return a b."""
        return self._operate("mul", (a, b), operation, out)

    def div(self, a: Operand, b: Operand, *, operation: str = "div", out: Tensor | None = None) -> Tensor:
        """Return a / b; a finite nonzero over zero is infinite and counted as divide_by_zero."""
        return self._operate("div", (a, b), operation, out)

    def sqrt(self, a: Tensor, *, operation: str = "sqrt", out: Tensor | None = None) -> Tensor:
        """Return the square root; NaN below zero, and -0 of -0."""
        return self._operate("sqrt", (a,), operation, out)

    def fma(self, a: Operand, b: Operand, c: Operand, *, operation: str = "fma", out: Tensor | None = None) -> Tensor:
        """Return a b + c, rounded once."""
        return self._operate("fma", (a, b, c), operation, out)

    @opaque
    def _operate(self, name: str, operands: tuple[Operand, ...], operation: str, out: Tensor | None) -> Tensor:
        """Compute one of the six operations."""
        if self.is_native:
            return native.operate(name, operands, out)
        if out is not None:
            check_out(out, shape_of(operands), self.for_operation(operation).format, operation)
        return compute(name, operands, self.call(operation), out=out)

    @opaque
    def apply(self, function: Callable[..., Tensor], *operands: Operand, operation: str) -> Tensor:
        """Return `function` (exp, log, tanh, erf, ...) computed in float64 and rounded once.

        The float64 library value is outside the bit contract between devices.
        """
        if self.is_native:
            return function(*operands)
        check_tensors(operation, operands)
        operands = tuple(x if isinstance(x, Tensor) else number(x, operation) for x in operands)
        return compute_function(function, operands, self.call(operation))

    @opaque
    def sum(
        self, x: Tensor, dim: int | tuple[int, ...] | None = None, *, keepdim: bool = False, operation: str = "sum"
    ) -> Tensor:
        """Return the sum over `dim` (None: all) as the Precision's accumulation says, in the accumulator's format.

        An exact or native sum is rounded once, to the format of results. An empty sum is +0.
        """
        dim = axes(dim, operation)
        if (ruled := self.for_operation(operation)) is not self:
            return ruled.sum(x, dim, keepdim=keepdim, operation=operation)
        if self.is_native:
            return x.sum() if dim is None else x.sum(dim, keepdim=keepdim)
        kind = self.precision.accumulation
        total = self.sums.accumulate(
            x, dim, keepdim=keepdim, accumulation=kind, calls=self.calls(operation), format=self.format
        )
        return self.cast(total, operation) if kind.kind == "native" else total

    @opaque
    def mean(
        self, x: Tensor, dim: int | tuple[int, ...] | None = None, *, keepdim: bool = False, operation: str = "mean"
    ) -> Tensor:
        """Return the mean over `dim` (None: all) in the Precision's form: sum, blockwiseK or welford."""
        dim = axes(dim, operation)
        if (ruled := self.for_operation(operation)) is not self:
            return ruled.mean(x, dim, keepdim=keepdim, operation=operation)
        if self.is_native:
            return x.mean() if dim is None else x.mean(dim, keepdim=keepdim)
        from normstab.numerics.sums.means import mean_over

        return mean_over(self, x, dim, keepdim=keepdim, operation=operation)

    @opaque
    def matmul(self, a: Tensor, b: Tensor, *, operation: str = "matmul") -> Tensor:
        """Return the matrix product, shapes as torch.matmul: native and one rounding, or an emulated accumulator."""
        if (ruled := self.for_operation(operation)) is not self:
            return ruled.matmul(a, b, operation=operation)
        if self.is_native:
            return torch.matmul(a, b)
        if self.precision.operand_input is not None or self.precision.operand_weight is not None:
            raise NormstabError(
                f"precision {self.precision}: matmul takes operands as they come; ns.quantize them first"
            )
        from normstab.numerics.sums.matmul import matmul

        return matmul(self, a, b, operation=operation)
