"""`cast`: the one function that rounds, as users call it: checked, under autograd, vmap and torch.compile.

It does not compute: `execute` runs the Call that it makes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from normstab.errors import DtypeError, NormstabError
from normstab.numerics.call import Call
from normstab.numerics.dispatch import is_traced
from normstab.numerics.execute import round_tensor
from normstab.numerics.formats import AnyFormat, parse_format
from normstab.numerics.ledger import Ledger, Site
from normstab.numerics.philox import Key, signed_step
from normstab.numerics.precision import Rounding
from normstab.numerics.readable.reference import LAYOUTS, contains, holds
from normstab.numerics.spelling.arguments import check_optional
from normstab.numerics.spelling.names import check_name
from normstab.torch_private import break_graph, is_transforming

__all__ = ["cast", "check_operand"]


def cast(
    x: Tensor,
    format: str | AnyFormat,
    *,
    rounding: str | Rounding = "nearest",
    key: Key | None = None,
    out: Tensor | None = None,
    ledger: Ledger | None = None,
    site: str = "",
    gradient: str | AnyFormat | None = None,
) -> Tensor:
    """Round `x` to `format`, ties and directions as `rounding` says.

    `x` is a float16, bfloat16, float32 or float64 tensor of any shape and strides; the result has its shape,
    dtype, strides and device, or is `out`, which may be `x`. `key` names the random bits of stochastic
    rounding; the same key gives the same bits. What rounding destroyed is added to `ledger` at
    `site.cast[forward]`. Under autograd the gradient passes unchanged, or rounded to `gradient`, nearest-even,
    at `site.cast.grad[backward]`.

    NaN stays NaN, in every format; infinity and overflow obey the format's policy, overflow also the
    direction (IEEE 754-2019, 7.4); zero keeps its sign, except in fixed point and fnuz formats.

    Raises DtypeError (a TypeError) when `x` is not floating point or its dtype cannot hold the format, and
    NormstabError for an unknown format, a missing key or a wrong `out`; then nothing was written.
    """
    is_bare = out is None and ledger is None and gradient is None
    if torch.compiler.is_compiling() or is_traced(x):
        if is_bare:
            return _as_one_operation(x, format, rounding, key)
        if not torch.compiler.is_dynamo_compiling():
            raise NormstabError(
                "a traced cast takes neither out=, ledger= nor gradient=: its graph could not keep them"
            )
        break_graph("normstab: a cast that counts is called as it is")
    how = _How(parse_format(format), Rounding.parse(rounding), key, ledger, site, gradient)
    return _cast(x, how, out)


def _cast(x: Tensor, how: _How, out: Tensor | None) -> Tensor:
    """Round `x` now."""
    if torch.compiler.is_dynamo_compiling():
        return torch.compiler.disable(_cast)(x, how, out)  # type: ignore[no-any-return]
    key = how.key
    check_operand(x, how.format)
    check_optional(key, Key, "cast: key", "a normstab.Key, as Key(seed=0)")
    check_optional(how.ledger, Ledger, "cast: ledger", "a normstab.Ledger")
    check_name(how.site, "cast: site")
    if how.rounding.is_stochastic and key is None:
        raise NormstabError(
            f"rounding {how.rounding} needs a key: cast(..., key=normstab.Key(seed=0, site='bn1', step=0))"
        )
    needs_gradient = torch.is_grad_enabled() and x.requires_grad
    if out is not None:
        check_out(out, x)
        if needs_gradient:
            raise NormstabError("cast(..., out=) does not record gradients; use torch.no_grad() or leave out= away")
    elif needs_gradient or is_transforming():
        result: Tensor = _StraightThrough.apply(x, how)  # type: ignore[no-untyped-call]
        return result
    return round_tensor(x, how.call(), out=out)


def _as_one_operation(x: Tensor, format: str | AnyFormat, rounding: str | Rounding, key: Key | None) -> Tensor:
    """Record the cast as the registered operation, whose step may change without another compilation."""
    if key is None:
        return compiled_cast(x, str(format), str(rounding), "", "", 0)  # type: ignore[no-any-return]
    # An operation's whole numbers are signed: the upper half of 0 .. 2^64 - 1 becomes negative.
    return compiled_cast(x, str(format), str(rounding), str(key.seed), key.site, signed_step(key.step))  # type: ignore[no-any-return]


class _How(NamedTuple):
    """The checked options of one cast."""

    format: AnyFormat
    rounding: Rounding
    key: Key | None
    ledger: Ledger | None
    site: str
    gradient: str | AnyFormat | None
    suffix: str = ""
    direction: str = "forward"

    def of_gradient(self) -> _How:
        """Return how the gradient is rounded; the gradient of that, in a second derivative, likewise."""
        assert self.gradient is not None, "asked for only where it is rounded"
        return self._replace(format=parse_format(self.gradient), suffix=self.suffix + ".grad", direction="backward")

    def call(self) -> Call:
        """Return the Call of this cast, or of its gradient's at the site with `suffix`."""
        draw = None
        if self.key is not None and self.rounding.is_stochastic:
            draw = self.key.at(self.key.site + self.suffix).draw
        if self.ledger is None:
            return Call(self.format, self.rounding, draw=draw)
        row = self.ledger.row(Site(self.site, "cast" + self.suffix, self.direction))
        step = signed_step(self.key.step) if self.key is not None else 0
        return Call(self.format, self.rounding, row, self.ledger.stamp(), step, draw, self.ledger.counts_inexact)


class _StraightThrough(torch.autograd.Function):
    """Round forward; pass the gradient unchanged, or rounded to `how.gradient`."""

    @staticmethod
    def forward(x: Tensor, how: _How) -> Tensor:
        return round_tensor(x, how.call())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _How], output: Tensor) -> None:
        ctx.how = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        how: _How = ctx.how
        if how.gradient is None:
            return grad, None
        of_gradient = how.of_gradient()
        check_operand(grad, of_gradient.format)
        rounded: Tensor = _StraightThrough.apply(grad, of_gradient)  # type: ignore[no-untyped-call]
        return rounded, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0].clone()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], x: Tensor, how: _How) -> tuple[Tensor, int]:
        # The batch becomes the leading axis of one whole tensor, and so of the index of the random bits.
        assert in_dims[0] is not None
        batched: Tensor = _StraightThrough.apply(x.movedim(in_dims[0], 0), how)  # type: ignore[no-untyped-call]
        return batched, 0


@torch.library.custom_op("normstab::cast", mutates_args=())
def compiled_cast(x: Tensor, format: str, rounding: str, seed: str, site: str, step: int) -> Tensor:
    """Round `x` as one opaque operation of a compiled graph; an empty `seed` says that there is no key."""
    key = Key(int(seed), site, step % 2**64) if seed else None
    return _cast(x, _How(parse_format(format), Rounding.parse(rounding), key, None, "", None), None)


@compiled_cast.register_fake
def _(x: Tensor, format: str, rounding: str, seed: str, site: str, step: int) -> Tensor:
    return torch.empty_like(x)


def _pass_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
    return grad, None, None, None, None, None


compiled_cast.register_autograd(_pass_gradient)


def check_operand(x: Tensor, format: AnyFormat) -> None:
    """Raise DtypeError unless `x` is a floating tensor whose dtype can hold, or is contained in, `format`."""
    if not isinstance(x, Tensor):
        raise DtypeError(f"cast takes a tensor, found {type(x).__name__}: {x!r:.60}")
    if x.dtype not in LAYOUTS:
        raise DtypeError(f"cast takes {ALLOWED_DTYPES}, found {_name(x.dtype)}")
    if not (holds(x.dtype, format) or contains(format, x.dtype)):
        able = [_name(dtype) for dtype in LAYOUTS if holds(dtype, format)]
        raise DtypeError(f"a {_name(x.dtype)} tensor cannot hold {format}; allowed: {', '.join(able)}")


def check_out(out: Tensor, x: Tensor) -> None:
    """Raise unless `out` has the shape, dtype and device of `x`, and no two elements in one place."""
    if not isinstance(out, Tensor):
        raise DtypeError(f"out= takes a tensor, found {type(out).__name__}")
    for what, found, wanted in (
        ("shape", tuple(out.shape), tuple(x.shape)),
        ("dtype", _name(out.dtype), _name(x.dtype)),
        ("device", str(out.device), str(x.device)),
    ):
        if found != wanted:
            kind = DtypeError if what == "dtype" else NormstabError
            raise kind(f"out= has {what} {found}; allowed: the {what} of x, {wanted}")
    if any(stride == 0 and size > 1 for stride, size in zip(out.stride(), out.shape, strict=True)):
        raise NormstabError(f"out= has strides {out.stride()}: several elements share one place; use a dense tensor")


ALLOWED_DTYPES = "float16, bfloat16, float32 or float64"


def _name(dtype: torch.dtype) -> str:
    """Return "float16" for torch.float16."""
    return str(dtype).removeprefix("torch.")
