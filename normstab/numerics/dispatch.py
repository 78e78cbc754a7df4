"""Which implementation computes: the kernels of a tensor's device where they can run, else the reference.

A kernels module offers `round_into(x, out, call) -> bool` and `pointwise(operation, operands, call, dtype, out)
-> Tensor | None`; a refusal means that the reference serves. Nothing here computes.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor

from normstab.numerics.call import Call

__all__ = ["Kernels", "kernels_for"]


class Kernels(Protocol):
    """What a kernels module offers."""

    def round_into(self, x: Tensor, out: Tensor, call: Call) -> bool:
        """Round `x` into `out` (which may be `x`) and count; False: not covered, nothing was written."""

    def pointwise(
        self, operation: str, operands: tuple[Tensor | float, ...], call: Call, dtype: torch.dtype, out: Tensor | None
    ) -> Tensor | None:
        """Compute and round in one pass; None: not covered, nothing was written."""


def kernels_for(x: Tensor) -> Kernels | None:
    """Return the kernels that serve the device of `x`, or None for the reference."""
    return _kernels(x.device.type)


@cache
def _kernels(device_type: str) -> Kernels | None:
    """Import the kernels of a device once; where that fails, warn once and return None."""
    module = {"cpu": "cpu.cpu_tensors", "cuda": "cuda.cuda_tensors"}.get(device_type)
    if module is None:
        return None
    try:
        found: Kernels = import_module(f"normstab.numerics.kernels.{module}")
    except ImportError as reason:
        warnings.warn(
            f"normstab: no compiled kernels for {device_type} ({reason}); the torch reference serves, with the "
            f"same results, slower",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return found
