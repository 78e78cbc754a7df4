"""`torchrun -m normstab run`: the first process leads the run, the others train each cell with it.

    first    the executor; for each cell: tells the others, trains its part in a thread, hears how all of them ended
    others   wait for a cell, train their part, say how it ended, until the first says that the run is over

They meet at torchrun's store. Every cell has a process group of its own, which ends with it: a process that fails alone
breaks the connections of the others, none waits for it, and the next cell finds all of them.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from normstab.errors import NormstabError
from normstab.experiment.execution.progress import Progress
from normstab.experiment.execution.worker import LEAST_SECONDS_BETWEEN_REPORTS, Message, Task, answer_of
from normstab.experiment.scenario.spec import Cell

if TYPE_CHECKING:
    from normstab.experiment.execution.pools import PoolWorker

__all__ = ["Launch", "RanksPool", "is_torchrun", "launched"]

TIMEOUT = timedelta(minutes=30)  # how long a collective waits for a process that is alive, as torch's own
PATIENCE_S = 60.0  # how long the first waits to hear how a cell ended in a process that it cannot see, or that lives
PATIENCE_OF_STOP_S = 10.0  # how long a run that is stopped waits for the step under way
POLL_S = 0.02
# Of a failure that another process caused: it left, or died.
CAUSED_ELSEWHERE = ("connection", "gloo", "a collective on rank", "joining the ledgers", "the ledgers were not joined")


def is_torchrun() -> bool:
    """Whether torchrun started this process beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def launched() -> Launch | None:
    """Return the processes that torchrun started, None where it did not start several; all have to call this."""
    if not is_torchrun():
        return None
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    store, rank, size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    launch = Launch(rank, size, PrefixStore("normstab", store))
    launch.meet()
    return launch


@dataclass
class Launch:
    """This process, number `rank` of `size`, and the store at which they meet."""

    rank: int
    size: int
    store: Any

    def meet(self) -> None:
        """Learn which processes the others are."""
        self.store.set(f"process/{self.rank}", json.dumps([platform.node(), os.getpid()]))
        self.processes = [json.loads(self.store.get(f"process/{rank}")) for rank in range(self.size)]
        self._cells = 0

    def dead(self) -> list[str]:
        """Return the processes of this host that are gone, in words."""
        found = []
        for rank, (host, pid) in enumerate(self.processes):
            if host == platform.node() and not _is_alive(pid):
                found.append(f"rank {rank} of {self.size} (process {pid}) has died")
        return found

    def serve(self) -> None:
        """Train the cells that the first process tells of, until the run is over."""
        while True:
            command = json.loads(self._told(f"cell/{self._cells}"))
            if command is None:
                return
            plain, task = command["cell"], command["task"]
            self.run(plain, replace(Task(**task), out_dir=Path(task["out_dir"])), lambda progress: None)

    def tell(self, cell: Cell | None, task: Task | None = None) -> None:
        """Tell the others which cell is next; None: the run is over."""
        command = None
        if cell is not None and task is not None:
            command = {"cell": cell.to_json(), "task": {**vars(task), "out_dir": str(task.out_dir.absolute())}}
        self.store.set(f"cell/{self._cells}", json.dumps(command))

    def run(self, plain: Mapping[str, Any], task: Task, report: Callable[[Progress], None]) -> Message:
        """Train this process's part of a cell; return how that ended, which the first process can read."""
        import torch.distributed as dist
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        n, self._cells = self._cells, self._cells + 1
        store = PrefixStore(f"group/{n}", self.store)
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=TIMEOUT)
        try:
            message = answer_of(plain, task, report)
        finally:
            dist.destroy_process_group()
        self.store.set(f"ended/{n}/{self.rank}", json.dumps([message.kind, message.text, message.detail]))
        return message

    def outcome(self) -> Message:
        """Return how the cell that has just ended here ended in all processes: as in the one that caused it."""
        n, deadline, messages = self._cells - 1, time.monotonic() + PATIENCE_S, []
        for rank in range(self.size):
            key = f"ended/{n}/{rank}"
            while not self.store.check([key]):
                if dead := self.dead():
                    raise LostError("; ".join(dead))
                if time.monotonic() > deadline:
                    raise LostError(f"rank {rank} of {self.size} did not say how the cell ended in {PATIENCE_S:g} s")
                time.sleep(POLL_S)
            messages.append(Message(*json.loads(self.store.get(key))))
        return _cause(messages)

    @contextmanager
    def ended_by_torchrun(self, say: Callable[[str], None]) -> Iterator[None]:
        """Say, where torchrun ends this process, which one has died, and stop as after Ctrl-C."""

        def stop(number: int, frame: FrameType | None) -> None:
            dead = "; ".join(self.dead()) or "torchrun ends this process"
            say(f"normstab, rank {self.rank}: {dead}; finished cells are kept, and the same command goes on")
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _told(self, key: str) -> bytes:
        """Return what the first process says, however long it takes to say it."""
        while not self.store.check([key]):
            time.sleep(POLL_S)
        found: bytes = self.store.get(key)
        return found


class LostError(NormstabError):
    """A process of the run is gone, or does not answer."""


def _is_alive(pid: int) -> bool:
    """Whether there is such a process here."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError, IndexError):  # one that has ended, and whose end nobody has asked for yet, is gone too
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    return True


def _cause(messages: Sequence[Message]) -> Message:
    """Return the message of a process that failed by itself, with its rank where it is not the first's."""
    failed = [(rank, message) for rank, message in enumerate(messages) if message.kind != "finished"]
    if not failed:
        return Message("finished")
    own = [each for each in failed if not any(words in each[1].text.lower() for words in CAUSED_ELSEWHERE)]
    rank, message = (own or failed)[0]
    return message if rank == 0 else replace(message, text=f"rank {rank} of {len(messages)}: {message.text}")


class RanksWorker:
    """The one worker of a run under torchrun: all its processes together."""

    def __init__(self, launch: Launch, task: Task) -> None:
        self._launch, self._task = launch, task
        self.messages: queue.Queue[Message] = queue.Queue()
        self.cell: Cell | None = None
        self.started_s = 0.0
        self.progress: Progress | None = None
        self.lost = ""
        self._is_stopped = False
        self._last_s = 0.0
        self._thread: threading.Thread | None = None

    def give(self, cell: Cell) -> bool:
        """Train a cell, unless a process is gone."""
        self.cell, self.started_s, self.progress = cell, time.monotonic(), None
        self.lost = self.lost or "; ".join(self._launch.dead())
        if self.lost:
            return False
        self._launch.tell(cell, self._task)
        self._thread = threading.Thread(target=self._train, args=(cell.to_json(),), daemon=True)
        self._thread.start()
        return True

    def _train(self, plain: Mapping[str, Any]) -> None:
        """Train this process's part, in a thread: the main one is the executor's."""
        try:
            message = self._launch.run(plain, self._task, self._report)
            message = self._launch.outcome()
        except LostError as error:
            self.lost = str(error)
            message = Message("crashed", self.lost)
        except Exception as error:
            message = Message("crashed", f"{type(error).__name__}: {error}"[:2000])
        self.messages.put(message)

    def _report(self, progress: Progress) -> None:
        """Hand progress to the executor, not more often than a table shows it; end here where the run is stopped."""
        if self._is_stopped:
            raise NormstabError("the run was stopped")
        now_s = time.monotonic()
        if progress.note is not None or now_s - self._last_s >= LEAST_SECONDS_BETWEEN_REPORTS:
            self._last_s = now_s
            self.messages.put(Message("progress", progress=progress))

    def take(self) -> Message | None:
        """Return the next message, None where a process is gone."""
        message = self.messages.get()
        return None if message.kind == "crashed" and self.lost else message

    def death(self) -> str:
        """Return which process is gone."""
        return self.lost

    def stop(self) -> None:
        """Let the cell that is under way end at its next step."""
        self._is_stopped = True
        if self._thread is not None:
            self._thread.join(PATIENCE_OF_STOP_S)


class RanksPool:
    """All processes of torchrun as one worker."""

    width = 1

    def __init__(self, launch: Launch, task: Task) -> None:
        self._launch = launch
        self._worker = RanksWorker(launch, task)

    def free_worker(self) -> RanksWorker | None:
        """Return the worker unless it is at a cell."""
        return self._worker if self._worker.cell is None else None

    def wait_for(self, busy: Sequence[PoolWorker]) -> list[PoolWorker]:
        """Return the worker once it has a message."""
        while self._worker.messages.empty():
            time.sleep(POLL_S)
        return [self._worker]

    def discard(self, worker: PoolWorker) -> None:
        """Keep it: it ends with the run."""

    def busy(self) -> list[RanksWorker]:
        """Return the worker where it is at a cell."""
        return [] if self._worker.cell is None else [self._worker]

    def facts(self) -> dict[str, object]:
        """Return the number of processes."""
        return {"executor": "torchrun", "ranks": self._launch.size}

    def stop(self) -> None:
        """End the cell that is under way."""
        self._worker.stop()
