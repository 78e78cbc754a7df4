"""Where arrays lie, for kernels that take addresses, and a scratch of counters for each thread.

Asking numpy for an address costs as much as rounding a thousand numbers; asking its buffer does not. The scratch is
for kernels that run on one piece: who uses it settles it before anything else runs in this thread; several pieces need
memory of their own.
"""

from __future__ import annotations

import threading
from ctypes import addressof, c_char
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normstab.numerics.kernels.cpu.counting import SCRATCH

__all__ = ["OWN", "address_of"]

of_buffer: Any = c_char.from_buffer


def address_of(array: NDArray[Any]) -> int:
    """Return the address of an array that can be written to, its elements one after another; 0 without any."""
    return addressof(of_buffer(array)) if array.size else 0


class _Workspace(threading.local):
    """A scratch and its address, made anew where a thread first asks."""

    def __init__(self) -> None:
        self.counts = np.empty(SCRATCH, np.int64)  # kernels write every word
        self.address: int = self.counts.ctypes.data


OWN = _Workspace()
"""The scratch of the thread that asks."""
