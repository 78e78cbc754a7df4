"""One operation on tensors of the network's 16-bit dtype: computed in float32, rounded once, stored.

    16 bits --exact--> float32 --handler: kernel, one rounding--> float32 --exact--> 16 bits

What moves or selects numbers runs on the stored tensors themselves. An operation on wide tensors, or one whose
result torch's promotion makes wide, is torch's own and not rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normstab.simulation.aten.norm_ops import NORM_OPERATIONS
from normstab.simulation.aten.wide import ATTENTION

__all__ = ["DIRECT", "GRADIENTS", "Survey", "in_float32", "narrowed", "stored", "survey", "to_dtype", "widened"]

WIDE = (torch.float32, torch.float64)
SEQUENCES = (list, tuple)  # a union of both would be made anew at every question
# Their handlers move numbers and write constants: they take the stored tensors.
DIRECT = frozenset(["clamp", "clamp_min", "clamp_max", "hardtanh", "relu6", "nan_to_num"])
# What these save beside their first result are statistics for their own backward, in float32 as torch's are.
STATISTICS = frozenset(name for name in NORM_OPERATIONS if not name.endswith("_backward")) | ATTENTION
# And these take the statistics: their results are of the dtype of the gradient, or of the input, that comes first.
GRADIENTS = frozenset(name for name in NORM_OPERATIONS if name.endswith("_backward"))
GRADIENTS |= {f"{name}_backward" for name in ATTENTION}


class Survey(NamedTuple):
    """What the operands are: whether any is of the network's dtype, any wide, any of another floating dtype.

    `is_wide`: the result is wide by torch's promotion (tensors without axes give way to those with). `has_complex`: a
    complex number, no tensor, is among those given by position.
    """

    has_stored: bool
    has_wide: bool
    has_other: bool
    is_wide: bool
    has_complex: bool


def survey(args: tuple[Any, ...], kwargs: Mapping[str, Any], dtype: torch.dtype) -> Survey:
    """Return what dtypes the operands have."""
    counts = [0, 0, 0, 0, 0, 0]  # stored with axes, stored without, wide with axes, wide without, others, numbers
    _count(args, dtype, counts)
    has_complex = counts[5] > 0
    if kwargs:
        _count(kwargs.values(), dtype, counts)
    with_axes, without_axes, wide_with, wide_without, others, _ = counts
    is_wide = wide_with > 0 or (wide_without > 0 and with_axes == 0)
    return Survey(with_axes + without_axes > 0, wide_with + wide_without > 0, others > 0, is_wide, has_complex)


def _count(args: Any, dtype: torch.dtype, counts: list[int]) -> None:
    """Count the floating tensors among `args`, those in lists too."""
    for x in args:
        if isinstance(x, Tensor):
            found = x.dtype
            if found == dtype:
                counts[0 if x.dim() else 1] += 1
            elif found in WIDE:
                counts[2 if x.dim() else 3] += 1
            elif found.is_floating_point or found.is_complex or x.layout != torch.strided:
                counts[4] += 1
        elif isinstance(x, complex):
            counts[5] += 1
        elif isinstance(x, SEQUENCES) and x and (x[0] is None or isinstance(x[0], Tensor)):
            _count(x, dtype, counts)


def widened(args: tuple[Any, ...], dtype: torch.dtype, widen: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    """Return the arguments with every stored tensor widened by `widen`, one that occurs twice once."""
    if len(args) > 1 and args[0] is args[1] and isinstance(args[0], Tensor) and args[0].dtype == dtype:
        first = widen(args[0])
        return (first, first, *widened(args[2:], dtype, widen))
    return tuple([_widened(x, dtype, widen) for x in args])


def _widened(x: Any, dtype: torch.dtype, widen: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(x, Tensor):
        return widen(x) if x.dtype == dtype else x
    if isinstance(x, SEQUENCES) and x and (x[0] is None or isinstance(x[0], Tensor)):
        return [_widened(element, dtype, widen) for element in x]
    return x


def stored(name: str, result: Any, dtype: torch.dtype) -> Any:
    """Return the rounded results of an operation in the network's dtype, its saved statistics as they are."""
    if isinstance(result, Tensor):
        if result.is_complex():
            return result.to(torch.complex32) if dtype == torch.float16 else result
        return result.to(dtype) if result.dtype in WIDE else result
    if not isinstance(result, list | tuple):
        return result
    if name in STATISTICS:
        return (stored("", result[0], dtype), *result[1:])
    kind = type(result)
    return getattr(kind, "_make", kind)([stored("", x, dtype) for x in result])  # a namedtuple takes no sequence


def in_float32(x: Any) -> Any:
    """Return 16-bit tensors as float32, exactly."""
    if isinstance(x, Tensor):
        return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    return [in_float32(element) for element in x] if isinstance(x, list | tuple) else x


def narrowed(result: Any) -> Any:
    """Return float64 results as float32: a network keeps its dtype, whatever the format."""
    if isinstance(result, Tensor):
        return result.to(torch.float32) if result.dtype == torch.float64 else result
    return tuple(narrowed(x) for x in result) if isinstance(result, list | tuple) else result


def to_dtype(result: Any, dtype: torch.dtype) -> Any:
    """Return float32 results as `dtype`, which can hold them."""
    if isinstance(result, Tensor):
        return result.to(dtype) if result.dtype == torch.float32 else result
    return tuple(to_dtype(x, dtype) for x in result) if isinstance(result, list | tuple) else result
