"""The first calls of a process that finds no compiled kernels: the reference serves the small ones, at once.

Compiling takes seconds a kernel, half a minute a norm, and is kept on disk; the few numbers of a snippet or of a test
take milliseconds by the reference, with the same bits and counts. A large tensor, or PATIENCE_S of them, end it.
"""

from __future__ import annotations

import time

from torch import Tensor

__all__ = ["FIRST_CALLS", "FirstCalls"]

SMALL = 2**13  # elements: the reference takes a layer of so many, forward and backward, in a third of a second
PATIENCE_S = 2.0  # of processor time: a fraction of what compiling takes, which is what it costs at most


class FirstCalls:
    """Whether the reference serves a call on a CPU because nothing was compiled yet."""

    def __init__(self) -> None:
        self.are_over = False
        self._since: float | None = None

    def serve(self, x: Tensor) -> bool:
        """Whether the reference serves a call on `x`; once it does not, it never does again."""
        if x.device.type != "cpu":
            return False
        if x.numel() > SMALL or self._is_compiled() or self._took() > PATIENCE_S:
            self.end()
        return not self.are_over

    def end(self) -> None:
        """Have every kernel compiled when it is first needed, from here on: for who asks about the kernels."""
        self.are_over = True

    def _is_compiled(self) -> bool:
        """Whether a process left compiled kernels, asked once; where they cannot be imported, dispatch says why."""
        if self._since is not None:
            return False
        try:
            from normstab.numerics.kernels.cpu.compile import is_kept
            from normstab.numerics.kernels.cpu.cpu_round import nearest32  # which whoever loads kernels compiles first
        except Exception:
            return True
        return is_kept(nearest32)

    def _took(self) -> float:
        """Return the seconds of processor time since the first call."""
        now = time.process_time()
        self._since = now if self._since is None else self._since
        return now - self._since


FIRST_CALLS = FirstCalls()
"""Those of this process."""
