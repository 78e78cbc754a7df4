"""Which kernels compute sums, products, means and functions, by device. Nothing here computes."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from normstab.numerics import dispatch
from normstab.numerics.call import Call
from normstab.numerics.precision import Precision
from normstab.numerics.readable.losses import counts_losses

__all__ = ["KERNELS", "READING_HALVES", "addends", "are_losses_cheap", "kernels_for"]

# Device and what is computed -> where its kernels are. What has none the readable reference computes.
KERNELS = {
    ("cpu", "sums"): "cpu.sums.cpu_sums",
    ("cpu", "welford"): "cpu.sums.cpu_sums",
    ("cpu", "matmul"): "cpu.sums.cpu_matmul",
    ("cpu", "exact"): "cpu.exact.cpu_exact",
    ("cpu", "functions"): "cpu.cpu_functions",
    ("cpu", "losses"): "cpu.losses.cpu_losses",
    ("cpu", "lost updates"): "cpu.losses.cpu_losses",
    ("cpu", "quantize"): "cpu.granules.cpu_quantize",
    ("cuda", "sums"): "cuda.sums.cuda_sums",
    ("cuda", "matmul"): "cuda.sums.cuda_products",
    ("cuda", "exact, rounded"): "cuda.sums.cuda_exact",
    ("cuda", "welford"): "cuda.sums.welford_launch",
    ("cuda", "losses"): "cuda.losses.cuda_losses",
    ("cuda", "quantize"): "cuda.granules.cuda_quantize",
}

# What adds up, and the devices whose kernels of it also count what each addition loses.
ADDING, COUNTING_LOSSES = ("sums", "welford", "matmul"), ["cpu", "cuda"]
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
    if what in ADDING and call is not None and counts_losses(call) and x.device.type not in COUNTING_LOSSES:
        return None
    return None if place is None or dispatch.kernels_for(x, call) is None else _imported(place, what)


def are_losses_cheap(precision: Precision, device: str = "cpu") -> bool:
    """Whether what additions lose is counted in a few times the time of a step on a device.

    In every addition of emulated products it would take minutes, and so would the readable sums of other devices.
    """
    return device in COUNTING_LOSSES and precision.matmul.kind != "rounded"


@cache
def _imported(place: str, what: str) -> ModuleType | None:
    """Import kernels; None where that fails."""
    return dispatch.served(lambda: import_module(f"normstab.numerics.kernels.{place}"), what)
