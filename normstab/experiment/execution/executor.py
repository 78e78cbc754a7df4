"""Runs cells in spawned workers: dependencies first, finished records reused, a worker that dies replaced.

Files are the only result: an interrupted run, by Ctrl-C or `kill -9`, goes on when the same cells are run again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from normstab.errors import NormstabError, RecordError
from normstab.experiment.execution.lock import lock_directory
from normstab.experiment.execution.pools import LocalPool, Pool, PoolWorker
from normstab.experiment.execution.progress import Event, EventKind, Failure, Outcome
from normstab.experiment.execution.ray_settings import RaySettings
from normstab.experiment.execution.run_log import RunLog, start_log
from normstab.experiment.execution.torchrun import Launch, RanksPool
from normstab.experiment.execution.waiting import WaitingCells
from normstab.experiment.execution.worker import Message, Task, interrupts_held, interrupts_ignored
from normstab.experiment.records.files import (
    CHECKPOINT_FILE,
    DIGEST_FILE,
    SNAPSHOT_FILE,
    remove_path,
    remove_unfinished,
)
from normstab.experiment.records.moved_records import copy_records, move_records
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.records.step_log import check_log
from normstab.experiment.scenario.spec import Cell

__all__ = ["Execution", "run_cells"]


@dataclass(frozen=True)
class Execution:
    """How cells are run: `jobs` workers at once, `threads` of torch in each, `fresh`: nothing is reused.

    With `ray`, cells are tasks of a Ray cluster, whose resources say how many run at once, and `jobs` means nothing.
    With `launch`, the processes that torchrun started train each cell together.
    `run_cell` is the function that runs one cell, as `module:function`.
    """

    jobs: int = 1
    threads: int = 1
    device: str = "cpu"
    fresh: bool = False
    ray: RaySettings | None = None
    launch: Launch | None = None
    run_cell: str = "normstab.experiment.train:run_cell"


def run_cells(
    cells: Sequence[Cell],
    out_dir: Path,
    *,
    execution: Execution | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    prepare: Callable[[], None] = lambda: None,
    others: Sequence[Path] = (),
) -> Outcome:
    """Run the cells that have no finished record under `out_dir` yet, and return how each ended.

    A cell waits for those it depends on. A crash, or a kill, ends its own cell only. Ctrl-C stops the workers
    and returns with `is_interrupted`. `prepare` is called once the directory is ours. What has the same hash under
    `others`, the directories of other runs, is copied. Raises RecordError when `out_dir` takes no more files (what is
    finished stays), and NormstabError when another run is writing there.
    """
    execution = execution or Execution()
    check_ranks(cells, 1 if execution.launch is None else execution.launch.size)
    with lock_directory(out_dir, is_led=execution.launch is not None), ExitStack() as until_ready:
        until_ready.enter_context(interrupts_held())
        remove_unfinished(out_dir)
        prepare()
        pool = _pool(Task(out_dir, execution.threads, execution.device, execution.run_cell), execution)
        settings = {"threads": execution.threads, "device": execution.device, **pool.facts()}
        run = _Run(cells, out_dir, execution.fresh, pool, on_event, start_log(out_dir, settings), others)
        try:
            until_ready.close()
            run.go()
        except KeyboardInterrupt:
            run.is_interrupted = True
        finally:
            with interrupts_ignored():
                pool.stop()
        run.log.entry |= pool.facts()
        run.log.close("interrupted" if run.is_interrupted else "complete")
        return run.outcome()


def check_ranks(cells: Sequence[Cell], size: int) -> None:
    """Raise NormstabError for a cell that is trained by another number of processes than there are; a sweep is not."""
    for cell in cells:
        if cell.sweep is None and cell.train.ranks != size:
            there = "one is here" if size == 1 else f"torchrun started {size}"
            raise NormstabError(
                f"{cell.id}: train.ranks says that {cell.train.ranks} processes train the cell together, and {there}; "
                f"torchrun --nproc-per-node {cell.train.ranks} -m normstab run ... starts as many"
            )


class _Run:
    """The state of one run: which cells ended and how, which wait, and the workers."""

    def __init__(
        self,
        cells: Sequence[Cell],
        out_dir: Path,
        is_fresh: bool,
        pool: Pool,
        on_event: Callable[[Event], None],
        log: RunLog,
        others: Sequence[Path] = (),
    ) -> None:
        self._cells: Mapping[str, Cell] = {cell.id: cell for cell in cells}
        self._out_dir, self._is_fresh, self._pool, self._on_event, self.log = out_dir, is_fresh, pool, on_event, log
        self._others = [place / "records" for place in others]
        self._waiting = WaitingCells((), reused=(), has_record=self._has_record)
        self._finished: list[str] = []
        self._reused: list[str] = []
        self._failures: dict[str, Failure] = {}
        self._started_s = time.monotonic()
        self.is_interrupted = False

    def outcome(self) -> Outcome:
        """Return what has ended so far."""
        return Outcome(
            tuple(self._finished),
            tuple(self._reused),
            tuple(self._failures.values()),
            self.is_interrupted,
            time.monotonic() - self._started_s,
        )

    def go(self) -> None:
        """Reuse what is finished, then run the rest to the end."""
        self._take_stock()
        while len(self._waiting) or self._pool.busy():
            self._dispatch()
            busy = self._pool.busy()
            if busy:
                for worker in self._pool.wait_for(busy):
                    self._hear(worker, worker.take())

    def _take_stock(self) -> None:
        """Reuse the finished records, under whatever names, or remove them all where the run is to be fresh."""
        missing: Mapping[str, Cell] = self._cells
        found: dict[str, str] = {}
        if not self._is_fresh:
            missing = {name: cell for name, cell in self._cells.items() if not self._has_record(name)}
            records = self._out_dir / "records"
            found = move_records(missing, records, kept=self._cells)
            left = {name: cell for name, cell in missing.items() if name not in found}
            found |= copy_records(left, records, others=self._others)
            self.log.notes += [f"{new}: its record was found as {old}" for new, old in found.items()]
        waiting: dict[str, Cell] = {}
        for cell in self._cells.values():
            directory = self._out_dir / "records" / cell.id
            if self._is_fresh:
                shutil.rmtree(directory, ignore_errors=True)
            if self._is_fresh or (cell.id in missing and not (cell.id in found and self._has_record(cell.id))):
                waiting[cell.id] = cell
                continue
            remove_path(directory / CHECKPOINT_FILE)  # a kill between the record and its removal leaves it
            self._finished.append(cell.id)
            self._reused.append(cell.id)
            self._tell("reused", cell)
        cells = list(waiting.values())
        self._waiting = WaitingCells(cells, reused=set(self._reused), has_record=self._has_record)

    def _has_record(self, cell_id: str) -> bool:
        """Return whether a whole record of the cell, and its log, is there; a torn one counts as none."""
        directory = self._out_dir / "records" / cell_id
        try:
            record = read_record(directory)
            check_log(directory, steps=record.steps, sha256=record.steps_sha256)
        except RecordError:
            return False
        cell = self._cells.get(cell_id)
        has_digests = cell is None or cell.record is None or (directory / DIGEST_FILE).exists()
        leaves_snapshot = cell is not None and cell.fork is not None and cell.fork.leaves_snapshot
        has_snapshot = not leaves_snapshot or (directory / SNAPSHOT_FILE).exists()
        return record.id == cell_id and has_digests and has_snapshot

    def _dispatch(self) -> None:
        """Give every cell that can start to a free worker, and fail those that never will."""
        while True:
            for lost, needed in self._waiting.lost():
                told = f"it needs the record of {needed}, which is not there"
                self._fail(lost, Failure(lost.id, "blocked", told))
            cell = self._waiting.first_ready()
            worker = None if cell is None else self._pool.free_worker()
            if cell is None or worker is None:
                return
            self._waiting.start_first()
            self._tell("started", cell)
            if not worker.give(cell):
                self._hear(worker, None)

    def _hear(self, worker: PoolWorker, message: Message | None) -> None:
        """Act on a worker's message; None: the worker died, and another will take its place."""
        cell = worker.cell
        assert cell is not None, "only a busy worker is listened to"
        if message is not None and message.kind == "progress":
            worker.progress = message.progress
            if message.progress is not None and message.progress.note is not None:
                self.log.notes.append(f"{cell.id}: {message.progress.note}")
            self._tell("progress", cell, worker=worker)
            return
        self.log.note_time(cell.id, round(time.monotonic() - worker.started_s, 3))
        if message is None and not self._has_record(cell.id):
            message = Message("crashed", worker.death())
        worker.cell = None
        if message is None or message.kind == "crashed":
            self._pool.discard(worker)
        if message is None or message.kind == "finished":
            self._finished.append(cell.id)
            self._waiting.note_record(cell.id)
            self.log.write()
            self._tell("finished", cell)
        else:
            is_refused = message.kind == "refused"
            self._fail(cell, Failure(cell.id, "refused" if is_refused else "crashed", message.text, message.detail))

    def _fail(self, cell: Cell, failure: Failure) -> None:
        """Keep the failure; writing the log raises where a full disk was its cause.

        Of cells that are blocked there may be thousands at once, behind one failure that was written.
        """
        self._failures[cell.id] = failure
        self._waiting.note_failure(cell.id)
        self.log.failures.append(failure)
        self.log.write(at_once=failure.kind != "blocked")
        self._tell("failed", cell, failure=failure)

    def _tell(
        self, kind: EventKind, cell: Cell, *, worker: PoolWorker | None = None, failure: Failure | None = None
    ) -> None:
        done = len(self._finished) + len(self._failures)
        elapsed_s = time.monotonic() - self._started_s
        progress = worker.progress if worker is not None else None
        event = Event(kind, cell, done, len(self._cells), elapsed_s, self._eta_s(), progress, failure)
        self._on_event(event)

    def _eta_s(self) -> float | None:
        """Return the seconds left, from the mean time of the cells of this run; None before any is known."""
        known_s, known = self.log.total_s, len(self.log.seconds)
        left = float(len(self._waiting))
        busy = self._pool.busy()
        for worker in busy:
            fraction = worker.progress.fraction if worker.progress is not None else 0.0
            left += 1.0 - fraction
            if fraction > 0.0:
                known_s, known = known_s + (time.monotonic() - worker.started_s) / fraction, known + 1
        if not known:
            return None
        at_once = max(1, min(self._pool.width, len(self._waiting) + len(busy)))
        return left * known_s / known / at_once


def _pool(task: Task, execution: Execution) -> Pool:
    """Return the workers that `execution` asks for."""
    if execution.launch is not None:
        return RanksPool(execution.launch, task)
    if execution.ray is None:
        return LocalPool(task, execution.jobs)
    from normstab.experiment.execution.ray_pool import RayPool

    return RayPool(task, execution.ray)
