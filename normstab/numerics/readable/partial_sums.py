"""All partial sums of chains of additions at once, where float32's own additions are the roundings wanted.

Which lets what the additions of a long sum lose be counted together, beside a kernel's sum.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.formats import FORMATS
from normstab.numerics.precision import NEAREST
from normstab.numerics.readable.losses import counts_losses

__all__ = ["are_known", "loses_unknown", "partial_sums"]

FP32 = FORMATS["fp32"]
SUBNORMAL = np.float32(2.0**-149)


def are_known(call: Call, device: torch.device) -> bool:
    """Whether `partial_sums` has the sums of `call`: float32's, rounded to nearest, subnormals included."""
    return (
        call.format == FP32 and call.rounding == NEAREST and device.type == "cpu" and SUBNORMAL * np.float32(1.0) != 0
    )


def loses_unknown(call: Call, device: torch.device) -> bool:
    """Whether what each addition loses is counted, and only adding one after another tells it."""
    return counts_losses(call) and not are_known(call, device)


def partial_sums(x: Tensor) -> Tensor:
    """Return p_i = p_i-1 + x_i along axis 1 of `x` (K, n, width), float64 that holds float32 numbers.

    Numpy's `add.accumulate` adds one after another, each sum rounded to float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = np.add.accumulate(x.numpy().astype(np.float32), axis=1, dtype=np.float32)
    return torch.from_numpy(narrow).double()
