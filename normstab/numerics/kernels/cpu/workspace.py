"""One scratch of counters for each thread, for kernels that run on one piece: its address is looked up once.

Asking numpy for an address costs as much as rounding a thousand numbers. Who uses a scratch settles it before
anything else runs in this thread; several pieces need memory of their own.
"""

from __future__ import annotations

import threading

import numpy as np

from normstab.numerics.kernels.cpu.counting import SCRATCH

__all__ = ["OWN"]


class _Workspace(threading.local):
    """A scratch and its address, made anew where a thread first asks."""

    def __init__(self) -> None:
        self.counts = np.empty(SCRATCH, np.int64)  # kernels write every word
        self.address: int = self.counts.ctypes.data


OWN = _Workspace()
"""The scratch of the thread that asks."""
