"""A worker process: runs one cell after another for the executor, and ends with it.

Started with the `spawn` method, so that it inherits no threads and no state. What it is told and what it
answers is plain data.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal

from normstab.errors import NormstabError
from normstab.experiment.execution.lock import hold_shared
from normstab.experiment.execution.progress import Progress
from normstab.experiment.scenario.spec import Cell

__all__ = ["LocalWorker", "Message", "Task", "answer_of", "interrupts_held", "interrupts_ignored", "start_worker"]

# A live table shows no more than a few updates a second.
LEAST_SECONDS_BETWEEN_REPORTS = 0.2


@dataclass(frozen=True)
class Task:
    """What all cells of a run have in common: where and how they run; `run_cell` is `module:function`."""

    out_dir: Path
    threads: int = 1
    device: str = "cpu"
    run_cell: str = "normstab.experiment.train:run_cell"


@dataclass(frozen=True)
class Message:
    """A worker's answer about its cell: progress, or how it ended."""

    kind: Literal["progress", "finished", "refused", "crashed"]
    text: str = ""
    detail: str = ""
    progress: Progress | None = None


@dataclass
class LocalWorker:
    """The executor's side of a worker: its process, its pipe, and the cell it is at.

    `end` is a file descriptor that is ready once the process has ended, whatever its own children hold open.
    """

    process: SpawnProcess
    pipe: Connection
    end: int
    cell: Cell | None = None
    started_s: float = 0.0
    progress: Progress | None = None

    def give(self, cell: Cell) -> bool:
        """Hand the worker a cell; return whether it was there to take it."""
        self.cell, self.started_s, self.progress = cell, time.monotonic(), None
        try:
            self.pipe.send(cell.to_json())
        except OSError:
            return False
        return True

    def take(self) -> Message | None:
        """Return the next message, or None where the worker has died."""
        # Asked in this order: what it sent before it died is still there to be read.
        is_gone = not self.process.is_alive()
        try:
            if is_gone and not self.pipe.poll():
                return None
            message = self.pipe.recv()
        except (EOFError, OSError):
            return None
        assert isinstance(message, Message), message
        return message

    def death(self) -> str:
        """Return how the process died, as a sentence; waits until it has."""
        self._has_ended(5.0)
        code = self.process.exitcode
        if code is None:
            return "the worker closed its pipe and hangs"
        if code >= 0:
            return f"the worker exited with status {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        cause = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
        return f"the worker was killed by {name}{cause}"

    def stop(self, *, patience_s: float = 2.0) -> None:
        """End the process, by force where it does not end soon; an idle worker holds nothing worth waiting for."""
        self.process.terminate()
        if not self._has_ended(patience_s):
            self.process.kill()
            self._has_ended(None)
        self.pipe.close()
        if self.end != self.process.sentinel:
            os.close(self.end)

    def _has_ended(self, patience_s: float | None) -> bool:
        """Wait so long for the process to end, None: until it has; return whether it has."""
        wait([self.end], patience_s)
        return not self.process.is_alive()


def start_worker(task: Task) -> LocalWorker:
    """Return a new worker. Start it with interrupts held: Ctrl-C stays blocked in it, and the executor decides."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, task), daemon=True)
    process.start()
    theirs.close()
    return LocalWorker(process, ours, _end_of(process))


def _end_of(process: SpawnProcess) -> int:
    """Return a descriptor that is ready once `process` has ended; its own sentinel where the kernel has no better.

    That sentinel is a pipe, which a process forked by the worker inherits.
    """
    assert process.pid is not None, "it was started"
    try:
        return os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not Linux, or one before 5.3
        return process.sentinel


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold a Ctrl-C back until the block ends, so that nothing in it is left half done."""
    # Python's resource tracker unblocks the signal when it starts, which the first worker would make it do.
    resource_tracker.ensure_running()
    came: list[int] = []
    # Children inherit the mask. It is this thread's only: one that reaches another thread gets a handler that waits.
    is_main = threading.current_thread() is threading.main_thread()
    before_handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number)) if is_main else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if before_handler is not None:
            signal.signal(signal.SIGINT, before_handler)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C within the block: one has ended the run already, a second would leave its workers behind."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _serve(pipe: Connection, task: Task) -> None:
    """Run the cells that come through the pipe until the executor ends this process or is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with hold_shared(task.out_dir) as lock:
        # A process that a user's code forks may outlive this one: it has no part in the run.
        os.register_at_fork(after_in_child=lock.close)
        os.register_at_fork(after_in_child=pipe.close)
        while True:
            try:
                plain = pipe.recv()
            except EOFError:
                return
            pipe.send(answer_of(plain, task, _reporter(pipe)))


def _end_with_parent() -> None:
    """Exit at once when the executor's process is gone, be it by `kill -9`: nobody would read the results."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by the executor"
    wait([parent.sentinel])
    os._exit(1)


def answer_of(plain: Mapping[str, Any], task: Task, report: Callable[[Progress], None]) -> Message:
    """Run one cell in this process; an exception becomes a message."""
    try:
        cell = Cell.from_json(plain)
        module, _, name = task.run_cell.partition(":")
        run_cell = getattr(importlib.import_module(module), name)
        directory = task.out_dir / "records" / cell.id
        run_cell(cell, directory, threads=task.threads, device=task.device, report=report)
    except NormstabError as error:
        return Message("refused", _bounded(str(error), 2_000))
    except Exception as error:
        text = _bounded(f"{type(error).__name__}: {error}", 2_000)
        return Message("crashed", text, _bounded(traceback.format_exc(), 20_000))
    return Message("finished")


def _bounded(text: str, most: int) -> str:
    """Return the beginning and the end of a text of more than `most` characters: an exception may hold a tensor."""
    return text if len(text) <= most else f"{text[: most // 2]} [...] {text[-most // 2 :]}"


def _reporter(pipe: Connection) -> Callable[[Progress], None]:
    """Return the function that sends progress to the executor, not more often than a table shows it."""
    last_s = 0.0

    def report(progress: Progress) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if progress.note is not None or now_s - last_s >= LEAST_SECONDS_BETWEEN_REPORTS:
            last_s = now_s
            pipe.send(Message("progress", progress=progress))

    return report
