"""Which kernels compute sums, products, means and functions, by device. Nothing here computes."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from normstab.numerics import dispatch
from normstab.numerics.call import Call

__all__ = ["KERNELS", "READING_HALVES", "addends", "kernels_for"]

# Device and what is computed -> where its kernels are. What has none the readable reference computes.
KERNELS = {
    ("cpu", "sums"): "cpu.sums.cpu_sums",
    ("cpu", "welford"): "cpu.sums.cpu_sums",
    ("cpu", "matmul"): "cpu.sums.cpu_matmul",
    ("cpu", "exact"): "cpu.sums.cpu_exact",
    ("cpu", "functions"): "cpu.cpu_functions",
    ("cuda", "sums"): "cuda.sums.cuda_sums",
    ("cuda", "matmul"): "cuda.sums.cuda_products",
    ("cuda", "welford"): "cuda.sums.welford_launch",
}

# Devices whose sums read float16 and bfloat16 where they lie; elsewhere they are widened first.
READING_HALVES = ["cuda"]


def addends(x: Tensor) -> Tensor:
    """Return `x` as sums take it: in a dtype that the kernels of its device read, a copy only where they do not."""
    x = dispatch.plain(x)
    is_half = x.dtype in (torch.float16, torch.bfloat16)
    return x if is_half and x.device.type in READING_HALVES else dispatch.carried(x)


def kernels_for(x: Tensor, call: Call | None, what: str = "sums") -> ModuleType | None:
    """Return the kernels of `what` that serve the device of `x` and `call`, or None."""
    place = KERNELS.get((x.device.type, what))
    return None if place is None or dispatch.kernels_for(x, call) is None else _imported(place, what)


@cache
def _imported(place: str, what: str) -> ModuleType | None:
    """Import kernels; None where that fails."""
    return dispatch.served(lambda: import_module(f"normstab.numerics.kernels.{place}"), what)
