"""Threads that run one compiled kernel on chunks of a tensor: torch's own where they can be had, else a few of ours.

    n elements    [ chunk 0 ][ chunk 1 ][ chunk 2 ]     beginning at multiples of 1024
    threads          caller     another    another      each runs the kernel, without the interpreter lock

torch says how many. A chunk's results do not depend on how many chunks there are; the calling thread
computes one itself. Small work is not split.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import lru_cache
from queue import SimpleQueue

import torch

from normstab.numerics.kernels.cpu import openmp

__all__ = ["SERIAL_BELOW", "chunks", "run_chunks"]

# Below this, in float32 elements rounded to nearest, waking a thread costs more than it saves (tens of microseconds).
SERIAL_BELOW = 2**19
ALIGNMENT = 1024


def chunks(n: int, *, work: int = 1) -> list[tuple[int, int]]:
    """Return the (start, size) of the pieces that `n` elements are split into, one per thread of torch.

    Starts are multiples of 1024, so that no two chunks share a block of random bits; `work` is that of an
    element, in roundings to nearest.
    """
    if n * work < SERIAL_BELOW:
        return [(0, n)]
    threads = torch.get_num_threads()
    if threads == 1:
        return [(0, n)]
    size = -(-n // (threads * ALIGNMENT)) * ALIGNMENT
    return [(start, min(size, n - start)) for start in range(0, n, size)]


def run_chunks(work: Callable[[int], None], n: int) -> None:
    """Call work(0) .. work(n - 1), on several threads where `n` > 1; return when all are done.

    `work` must release the interpreter lock for the others to run, as kernels do. The first error is raised
    here, after all have ended.
    """
    if n == 1:
        work(0)
        return
    entry = openmp.team()
    if entry is not None:
        openmp.run_on_team(entry, work, n)
        return
    batch = _Batch(work, n - 1)
    queue = _team(os.getpid(), n - 1)
    for i in range(1, n):
        queue.put((batch, i))
    try:
        work(0)
    finally:
        batch.done.acquire()
    if batch.error is not None:
        raise batch.error


class _Batch:
    """The chunks of one call that other threads compute; `done` is released with the last of them."""

    __slots__ = ("done", "error", "lock", "pending", "work")

    def __init__(self, work: Callable[[int], None], pending: int) -> None:
        self.work, self.pending = work, pending
        self.lock, self.done = threading.Lock(), threading.Lock()
        self.error: BaseException | None = None
        self.done.acquire()

    def run(self, i: int) -> None:
        """Compute chunk `i`."""
        try:
            self.work(i)
        # Whatever it was belongs to the caller; a thread that died here would leave it waiting.
        except BaseException as error:
            self.error = error
        with self.lock:
            self.pending -= 1
            is_last = self.pending == 0
        if is_last:
            self.done.release()


Jobs = SimpleQueue[tuple[_Batch, int] | None]


class _Team:
    """Threads that wait for jobs; they end when the team is no longer referred to."""

    def __init__(self, size: int) -> None:
        self.jobs: Jobs = SimpleQueue()
        self.size = size
        for _ in range(size):
            threading.Thread(target=_serve, args=(self.jobs,), name="normstab", daemon=True).start()

    def put(self, job: tuple[_Batch, int]) -> None:
        """Hand a job to whichever thread is free."""
        self.jobs.put(job)

    def __del__(self) -> None:
        for _ in range(self.size):
            self.jobs.put(None)


@lru_cache(maxsize=1)
def _team(process: int, size: int) -> _Team:
    """Return the threads of this process: a forked child has another id, and starts its own."""
    return _Team(size)


def _serve(jobs: Jobs) -> None:
    """Run jobs until told to end."""
    # A thread is born with its parent's flush-to-zero; where a kernel asks, it asks the caller's.
    torch.set_flush_denormal(False)
    while (job := jobs.get()) is not None:
        batch, i = job
        batch.run(i)
