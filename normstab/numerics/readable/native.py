"""The operations under `native`: plain torch, nothing rounded, nothing counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["operate"]

Operand = Tensor | float

# Name of an operation -> torch's own.
NATIVE_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "sqrt": torch.sqrt,
    "fma": lambda a, b, c: a * b + c,
}


def operate(name: str, operands: tuple[Operand, ...], out: Tensor | None) -> Tensor:
    """Return torch's own result of `name`, into `out` if given."""
    first = next(x for x in operands if isinstance(x, Tensor))
    result = NATIVE_OPERATIONS[name](*(x if isinstance(x, Tensor) else first.new_tensor(x) for x in operands))
    return result if out is None else out.copy_(result)
