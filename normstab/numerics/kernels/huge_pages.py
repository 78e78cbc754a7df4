"""Large results in pages of 2 MiB, where the system gives them to whoever asks (Linux, transparent huge pages).

Memory that is new is zeroed by the system page by page, when a kernel first writes there. In pages of 4 KiB that takes
four times as long as the copy of a tensor, which is more than most kernels here compute.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["in_huge_pages", "widened_copy"]

LEAST = 4 << 20  # bytes of a tensor that is worth a call of the system
HUGE = 2 << 20
ADVICE = 14  # MADV_HUGEPAGE: madvise(2)


def in_huge_pages(x: Tensor) -> Tensor:
    """Return `x`, new memory that nobody has written to, in huge pages if it is large and the system has them."""
    if x.nbytes >= LEAST and x.device.type == "cpu" and (advise := _advice()) is not None:
        start = x.untyped_storage().data_ptr()
        first, end = -(-start // HUGE) * HUGE, (start + x.nbytes) // HUGE * HUGE
        advise(first, end - first, ADVICE)  # a refusal changes nothing but the time
    return x


def widened_copy(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x.to(dtype)`, for another dtype; where no gradient goes through it, in memory of `in_huge_pages`."""
    if x.device.type != "cpu" or x.nbytes < LEAST // 2 or (x.requires_grad and torch.is_grad_enabled()):
        return x.to(dtype)
    return in_huge_pages(torch.empty_like(x, dtype=dtype)).copy_(x.detach())


@cache
def _advice() -> Any | None:
    """Return the system's madvise, or None."""
    if sys.platform != "linux":
        return None
    try:
        advise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes, advise.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return advise
