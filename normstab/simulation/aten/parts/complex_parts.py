"""Complex numbers, part by part: the real and the imaginary part of a result are each rounded once.

    z (complex64) --view_as_real--> pairs of real numbers --one rounding each, counted--> view_as_complex --> complex64

Functions of one element are computed in complex128; sums follow the stated accumulation, part by part; products and
Fourier transforms are torch's own kernels, as real products are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.execute import round_tensor
from normstab.numerics.readable.reference import holds
from normstab.simulation.aten.operation import Handler, Operation, Result
from normstab.simulation.aten.reductions import mean, total
from normstab.simulation.aten.round_and_attribute import narrow, settle, settle_elements

__all__ = ["COMPLEX", "ONLY_COMPLEX", "as_real", "complex_operand", "part_dtype", "round_complex"]

REAL_OF = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


def part_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the parts of a complex tensor, of any other its own."""
    return REAL_OF.get(x.dtype, x.dtype)


def as_real(x: Tensor) -> Tensor:
    """Return a complex tensor of shape S as the real one of shape (*S, 2) in the same memory, any other as it is."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def complex_operand(operands: Any) -> torch.dtype | None:
    """Return the widest complex dtype among `operands` and in lists among them; None where no tensor is complex."""
    found = [x.dtype for x in _tensors(operands) if x.is_complex()]
    return max(found, key=lambda dtype: dtype.itemsize, default=None)


def round_complex(x: Tensor, call: Call, *, out: Tensor | None = None) -> Tensor:
    """Return a real or complex tensor with every number, or both parts of every number, rounded."""
    if not x.is_complex():
        return round_tensor(x, call, out=out)
    rounded = round_tensor(as_real(x), call, out=None if out is None else torch.view_as_real(out))
    if out is not None:
        return out
    return torch.view_as_complex(rounded if rounded.stride(-1) == 1 else rounded.contiguous())


def elements(op: Operation) -> Result:
    """Compute a function of one element of each operand in complex128 and round both parts once."""
    return _rounded(op, op.function(*_widened(op.args), **op.kwargs), settle_elements)


def kernel(op: Operation) -> Result:
    """Round both parts of what torch's kernel gives, several results at `name.0`, `name.1`, ..."""
    results = op.native()
    if isinstance(results, Tensor):
        return _rounded(op, results, settle)
    return tuple(_rounded(op, x, settle, f".{i}") if isinstance(x, Tensor) else x for i, x in enumerate(results))


def _by_parts(reduce: Handler) -> Handler:
    """Return a handler of complex numbers from that of real ones: the sum of z is the sums of its two parts."""

    def handler(op: Operation) -> Result:
        z = op.args[0].reshape(1) if op.args[0].dim() == 0 else op.args[0]
        dims = op.argument(1, "dim")
        axes = range(z.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        kept = bool(op.argument(2, "keepdim", False)) and op.args[0].dim() > 0
        parts = reduce(op._replace(args=(as_real(z), [axis % max(1, z.dim()) for axis in axes], kept), kwargs={}))
        z = torch.view_as_complex(parts.contiguous())
        wanted = op.kwargs.get("dtype")
        return z if wanted is None else z.to(wanted)

    return handler


def _rounded(op: Operation, value: Tensor, rounding: Callable[..., Tensor], suffix: str = "") -> Tensor:
    """Return a fresh result with its numbers, or the parts of them, rounded, as wide as the operands were."""
    call = op.call(suffix)
    operands = _tensors((*op.args, *op.kwargs.values()))
    shown = [_magnitude(x, value.is_complex()) for x in operands if x.is_floating_point() or x.is_complex()]
    rounded = narrow(rounding(as_real(value).contiguous(), call, shown), _carrier_of(op), call.format)
    if not value.is_complex():
        return rounded
    z = torch.view_as_complex(rounded)
    # complex32 stays so where its parts hold the format; a network that sees 16 bits has it widened before.
    is_half = complex_operand(operands) == torch.complex32 and holds(torch.float16, call.format)
    return z.to(torch.complex32) if is_half else z


def _magnitude(x: Tensor, of_pairs: bool) -> Tensor:
    """Return what is NaN or infinite where `x`, or a part of it, is; with an axis more beside pairs of parts."""
    whole = torch.maximum(x.real.abs(), x.imag.abs()) if x.is_complex() else x
    return whole.unsqueeze(-1) if of_pairs else whole


def _carrier_of(op: Operation) -> torch.dtype:
    """Return float64 where an operand with axes, or a part of it, is of 64 bits; else float32."""
    found = list(_tensors((*op.args, *op.kwargs.values())))
    deciding = [x for x in found if x.dim()] or found
    wide = any(x.dtype in (torch.float64, torch.complex128) for x in deciding)
    return torch.float64 if wide else torch.float32


def _widened(args: Any) -> Any:
    """Return the arguments with floating tensors in float64 and complex ones in complex128."""
    if isinstance(args, Tensor):
        if args.is_complex():
            return args.to(torch.complex128)
        return args.to(torch.float64) if args.is_floating_point() else args
    return type(args)(_widened(x) for x in args) if isinstance(args, list | tuple) else args


def _tensors(operands: Any) -> list[Tensor]:
    """Return the tensors among `operands`, those in lists too."""
    if isinstance(operands, Tensor):
        return [operands]
    return [x for one in operands for x in _tensors(one)] if isinstance(operands, list | tuple) else []


def _table(handler: Handler, names: str) -> dict[str, Handler]:
    return dict.fromkeys(names.split(), handler)


# Name of torch's operation -> its handler where no operand need be complex.
ONLY_COMPLEX: dict[str, Handler] = {
    **_table(elements, "polar"),
    **_table(kernel, "_fft_r2c _fft_c2c _fft_c2r"),
}
# ... where one is. The modulus of a complex number is rounded, as that of a real one need not be.
COMPLEX: dict[str, Handler] = {
    **ONLY_COMPLEX,
    **_table(
        elements,
        """add sub rsub mul div true_divide reciprocal sqrt rsqrt pow exp exp2 expm1 log log2 log10 log1p sin cos tan
        sinh cosh tanh asin acos atan asinh acosh atanh sigmoid abs sgn angle addcmul addcdiv lerp""",
    ),
    **_table(
        kernel,
        """mm bmm mv dot vdot addmm baddbmm addmv addbmm convolution convolution_backward cumsum cumprod prod
        index_add scatter_add""",
    ),
    "sum": _by_parts(total),
    "mean": _by_parts(mean),
}
