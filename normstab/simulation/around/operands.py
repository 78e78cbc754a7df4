"""What an operation reads: parameters replaced by their rounded copies, and half-precision tensors told apart.

Nothing here computes or rounds an operation's result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normstab.simulation.around.parameters import Parameters
from normstab.simulation.aten.round_and_attribute import FLOATING

__all__ = ["Operands", "read_operands"]

HALVES = (torch.float16, torch.bfloat16)


class Operands(NamedTuple):
    """The arguments as the operation is to see them, whether any is floating, and the first dtype of 16 bits.

    `other` is a dtype or layout that is not computed with here.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    is_floating: bool
    half: torch.dtype | None
    other: torch.dtype | torch.layout | None


def read_operands(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], parameters: Parameters, raw: tuple[int | str, ...]
) -> Operands:
    """Return the arguments with parameters cast, except those at `raw`: what the operation writes to."""
    reader = _Reader(parameters)
    read = [x if i in raw else reader.read(x) for i, x in enumerate(args)] if raw else [*map(reader.read, args)]
    if kwargs:
        kwargs = {name: x if name in raw else reader.read(x) for name, x in kwargs.items()}
    for where in raw:
        reader.note(args[where] if isinstance(where, int) and where < len(args) else kwargs.get(str(where)))
    return Operands(tuple(read), kwargs, reader.is_floating, reader.half, reader.other)


class _Reader:
    """Reads one argument after the other and notes what dtypes it saw."""

    __slots__ = ("find", "half", "is_floating", "other")

    def __init__(self, parameters: Parameters) -> None:
        self.find = parameters.find
        self.is_floating = False
        self.half: torch.dtype | None = None
        self.other: torch.dtype | torch.layout | None = None

    def read(self, x: Any) -> Any:
        """Return `x`, or the rounded copy of it."""
        if isinstance(x, Tensor):
            dtype = x.dtype
            if x.layout is not torch.strided and (dtype.is_floating_point or dtype.is_complex):
                self.is_floating, self.other = True, x.layout
            elif dtype in FLOATING or dtype in HALVES:
                self.is_floating = True
                if dtype in HALVES:
                    self.half = dtype
                held = self.find(x)
                return x if held is None else held.of_view(x)
            elif dtype.is_floating_point or dtype.is_complex:
                self.is_floating, self.other = True, dtype
                if dtype.is_complex and (held := self.find(x)) is not None:
                    return held.of_view(x)
        elif type(x) in (list, tuple) and x and isinstance(x[0], Tensor | None):
            return [self.read(element) for element in x]
        elif isinstance(x, complex):
            self.other = torch.complex64
        return x

    def note(self, x: Any) -> None:
        """Note the dtype of something that is written to."""
        if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()):
            self.is_floating = True
            if x.dtype in HALVES:
                self.half = x.dtype
            elif x.dtype not in FLOATING:
                self.other = x.dtype
