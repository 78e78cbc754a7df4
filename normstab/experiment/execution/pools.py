"""Where cells run: the protocol of a pool of workers, and the pool of local processes.

A pool only offers workers and waits for them; which cell runs when, and what its end means, is the executor's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Protocol

from normstab.experiment.execution.progress import Progress
from normstab.experiment.execution.worker import LocalWorker, Message, Task, interrupts_held, start_worker
from normstab.experiment.scenario.spec import Cell

__all__ = ["LocalPool", "Pool", "PoolWorker"]


class PoolWorker(Protocol):
    """One that runs a cell at a time: the executor gives it a cell and takes its messages."""

    cell: Cell | None
    started_s: float
    progress: Progress | None

    def give(self, cell: Cell) -> bool:
        """Hand the worker a cell; return whether it was there to take it."""

    def take(self) -> Message | None:
        """Return the next message of a worker that `wait_for` named, or None where it has died."""

    def death(self) -> str:
        """Return how a worker that gave None died, as a sentence."""

    def stop(self) -> None:
        """End it, by force where it does not end soon."""


class Pool(Protocol):
    """The workers of a run."""

    width: int
    """How many cells run at once, as far as is known: what an estimate of the time left is divided by."""

    def free_worker(self) -> PoolWorker | None:
        """Return a worker that can take a cell, or None where all are busy."""

    def wait_for(self, busy: Sequence[PoolWorker]) -> list[PoolWorker]:
        """Block until a worker of `busy` has a message or has died, and return those that have; it may be none."""

    def discard(self, worker: PoolWorker) -> None:
        """Stop a worker and forget it; another will take its place."""

    def busy(self) -> Sequence[PoolWorker]:
        """Return the workers that are at a cell."""

    def facts(self) -> dict[str, object]:
        """Return what `run.json` says of the pool."""

    def stop(self) -> None:
        """End every worker; cells under way keep what they have written."""


class LocalPool:
    """Processes of this machine, started as they are needed, up to `jobs`."""

    def __init__(self, task: Task, jobs: int) -> None:
        self._task, self.width = task, jobs
        self._workers: list[LocalWorker] = []

    def free_worker(self) -> LocalWorker | None:
        """Return an idle worker, a new one, or None where all `jobs` are busy."""
        for worker in [worker for worker in self._workers if worker.cell is None]:
            if worker.process.is_alive():
                return worker
            self.discard(worker)
        if len(self._workers) >= self.width:
            return None
        with interrupts_held():
            self._workers.append(start_worker(self._task))
        return self._workers[-1]

    def wait_for(self, busy: Sequence[PoolWorker]) -> list[PoolWorker]:
        """Block until a pipe has a message, or a process has ended: a child of its own may hold its pipe open."""
        watched = [worker for worker in self._workers if worker in busy]
        ready = set(wait([each for worker in watched for each in (worker.pipe, worker.end)]))
        return [worker for worker in watched if ready & {worker.pipe, worker.end}]

    def discard(self, worker: PoolWorker) -> None:
        """Stop a worker and forget it."""
        assert isinstance(worker, LocalWorker)
        self._workers.remove(worker)
        worker.stop()

    def busy(self) -> list[LocalWorker]:
        """Return the workers that are at a cell."""
        return [worker for worker in self._workers if worker.cell is not None]

    def facts(self) -> dict[str, object]:
        """Return the number of processes."""
        return {"executor": "local", "jobs": self.width}

    def stop(self) -> None:
        """End every process."""
        for worker in self._workers:
            worker.stop()
        self._workers.clear()
