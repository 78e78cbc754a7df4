"""Normalization of tensors in an Arithmetic, by the fastest code there is: a fused kernel, or op by op.

Both give the same bits and the same ledger. Tensors in, tensors out; autograd is in `autograd`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from normstab.norms import op_by_op, wide_norm
from normstab.norms.catalogue import Scheme
from normstab.norms.op_by_op import Forward, Gradients, Saved
from normstab.norms.reduction import Reduction
from normstab.norms.running import update_running
from normstab.norms.wide_norm import SavedWhole
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.dispatch import kernels_for
from normstab.numerics.readable.reference import contains, holds

if TYPE_CHECKING:
    from normstab.norms.fused.launch import SavedFused
    from normstab.norms.program.recomputed import SavedAgain

__all__ = [
    "HALVES",
    "Forward",
    "Gradients",
    "Reduction",
    "Saved",
    "Scheme",
    "in_16_bits",
    "normalize_backward",
    "normalize_forward",
    "normalize_with",
    "update_running",
]


HALVES = (torch.float16, torch.bfloat16)
"""The dtypes in which a network of 16 bits has its numbers."""


def normalize_forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, scheme: Scheme, reduction: Reduction, ar: Arithmetic
) -> Forward:
    """Return z = gamma (x - mu) / s + beta with the statistics of `x` itself; see `op_by_op.forward`.

    Raises NormstabError when there are fewer values than the members of a top k.
    """
    if scheme.spec is not None:
        scheme.spec.require_values(reduction.n)
    if ar.precision.norm == "wide":
        return wide_norm.forward(x, (gamma, beta), None, scheme, reduction, ar)
    if not ar.is_native and reduction.shared is None and kernels_for(x) is not None:
        from normstab.norms.fused import coverage, launch

        if coverage.covers(x, scheme, ar, parameters=(gamma, beta)):
            return launch.forward(x, gamma, beta, scheme, reduction, ar)
        if coverage.covers_program(x, ar, parameters=(gamma, beta)):
            from normstab.norms.program import launch_program

            done = launch_program.forward(x, gamma, beta, scheme, reduction, ar)
            if done is not None:
                return done
    return op_by_op.forward(x, gamma, beta, scheme, reduction, ar)


def normalize_with(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    statistics: tuple[Tensor | None, Tensor | None],
    scheme: Scheme,
    reduction: Reduction,
    ar: Arithmetic,
) -> Forward:
    """Return z with given `statistics`, the running mean and what is stored of the scale: evaluation."""
    if ar.precision.norm == "wide":
        return wide_norm.forward(x, (gamma, beta), statistics, scheme, reduction, ar)
    if not ar.is_native and reduction.shared is None and kernels_for(x) is not None:
        from normstab.norms.fused import coverage
        from normstab.norms.program import launch_program

        if coverage.covers_program(x, ar, parameters=(gamma, beta, *statistics)):
            done = launch_program.evaluate(x, gamma, beta, statistics, scheme, reduction, ar)
            if done is not None:
                return done
    return op_by_op.evaluate(x, gamma, beta, statistics, scheme, reduction, ar)


def normalize_backward(
    grad: Tensor,
    saved: Saved | SavedAgain | SavedFused | SavedWhole,
    scheme: Scheme,
    reduction: Reduction,
    ar: Arithmetic,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> Gradients:
    """Return the gradients of input, gamma and beta from that of the output; see `op_by_op.backward`."""
    if isinstance(saved, SavedWhole) or (isinstance(saved, Saved) and ar.precision.norm == "wide"):
        return wide_norm.backward(grad, saved, scheme, reduction, ar, needs)
    if isinstance(saved, Saved):
        wide = _widened(saved)
        found = _backward_by_program(grad, wide, scheme, reduction, ar, needs)
        return op_by_op.backward(grad, wide, scheme, reduction, ar, needs) if found is None else found
    from normstab.norms.fused import launch_backward
    from normstab.norms.program import launch_program, recomputed

    if isinstance(saved, recomputed.SavedAgain):
        gradients = launch_program.backward(grad, saved, scheme, reduction, ar, needs)
        assert gradients is not None, "a forward pass that keeps its input has a backward program"
        return gradients
    return launch_backward.backward(grad, saved, scheme, reduction, ar, needs)


def _backward_by_program(
    grad: Tensor, saved: Saved, scheme: Scheme, reduction: Reduction, ar: Arithmetic, needs: tuple[bool, bool, bool]
) -> Gradients | None:
    """Return the gradients by the traced program of the layer; None where it has none, or nothing runs it."""
    if ar.is_native or saved.centred is None or reduction.shared is not None or kernels_for(grad) is None:
        return None
    from normstab.norms.fused import coverage
    from normstab.norms.program import launch_program

    if not coverage.covers_program(grad, ar, parameters=saved._replace(members=None)):
        return None
    return launch_program.backward(grad, saved, scheme, reduction, ar, needs)


# ------------------------------------------------------------------- what a network of 16 bits keeps for backward


def in_16_bits(saved: Any, x: Tensor | None, dtype: torch.dtype, ar: Arithmetic) -> Any:
    """Return what backward needs of a norm whose input came in `dtype`: `x` for that, and rounded results in the dtype.

    Kernels and traced programs keep the input as it came, torch's own what it was cast to, which is the same where the
    format has every number of the dtype. Op by op the input itself is not kept.
    """
    if isinstance(saved, Saved):
        return _narrowed(saved, dtype, ar)
    if isinstance(saved, SavedWhole) and not contains(ar.format, dtype):
        return saved
    return saved._replace(input=x)


def _narrowed(saved: Saved, dtype: torch.dtype, ar: Arithmetic) -> Saved:
    """Return y and d, float32 results of `ar`, in `dtype` where that holds every number of the format.

    Where the inside of a norm is wide, or a rule gives one of its operations another format, they stay as they are.
    """
    is_rounded = ar.precision.norm != "wide" and ar.rules is None and ar.role is None
    if not is_rounded or not holds(dtype, ar.format):
        return saved
    y = _in_dtype(saved.normalized, dtype)
    d = y if saved.centred is saved.normalized else None if saved.centred is None else _in_dtype(saved.centred, dtype)
    return saved._replace(normalized=y, centred=d)


def _widened(saved: Saved) -> Saved:
    """Return y and d in float32 where they were kept in 16 bits: the same numbers."""
    y, d = saved.normalized, saved.centred
    wide = y.to(torch.float32) if y.dtype in HALVES else y
    return saved._replace(normalized=wide, centred=d.to(torch.float32) if d is not None and d.dtype in HALVES else d)


def _in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.dtype == torch.float32 else x
