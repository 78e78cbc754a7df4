"""A Ray cluster as a pool: every cell a task with the resources that it states. Imported only where it is asked for.

    driver                                   a node
    cell, data, records it needs  -- object store -->  a folder of its own, run_cell, its files
    DIR/records/ID (whole, by rename)  <-------  the files, or nothing with a shared DIR

Ray starts a task again where its worker or node dies; a cell that fails is answered once, as data, and not repeated.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normstab.errors import NormstabError
from normstab.experiment.data.datasets import lendable
from normstab.experiment.data.loans import lend
from normstab.experiment.execution.pools import PoolWorker
from normstab.experiment.execution.progress import Progress
from normstab.experiment.execution.ray_settings import RaySettings
from normstab.experiment.execution.travelling_files import files_of, place_files
from normstab.experiment.execution.worker import Message, Task, answer_of
from normstab.experiment.scenario.spec import Cell, DatasetSpec

__all__ = ["RayPool"]

POLL_S = 0.5  # between looks at the progress of cells
MOST_STORED = 64  # records and data sets that the driver holds in the object store for the cells to come
RETRIES = 3  # of a task whose worker or node died
QUEUED_SHARE = 2.0  # tasks handed to Ray per task that its processors can run: enough that no node waits for the driver


class RayPool:
    """The workers of a run on a Ray cluster."""

    def __init__(self, task: Task, settings: RaySettings) -> None:
        self.ray = _import_ray()
        self.task, self.settings = task, settings
        self._starts_ray = not self.ray.is_initialized()
        if self._starts_ray:
            self._connect()
        resources = self.ray.cluster_resources()
        self.width = _room(resources, settings)
        self._workers: list[RayWorker] = []
        self._needed: dict[Hashable, Any] = {}
        self.remote = self.ray.remote(run_on_node)  # once: Ray keeps every one that is made
        self.nodes: Counter[str] = Counter()
        self.board = self.ray.remote(_Board).options(num_cpus=0, scheduling_strategy=self._here()).remote()

    def _here(self) -> Any:
        """Return the strategy that keeps an actor on the driver's own node, which lives as long as the driver."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=True)

    def _connect(self) -> None:
        """Join or start the cluster; the user's own modules are looked for where they are here."""
        path = os.pathsep.join(dict.fromkeys([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]))
        environment = {"env_vars": {"PYTHONPATH": path}}
        try:
            self.ray.init(
                address=self.settings.address, runtime_env=environment, log_to_driver=False, include_dashboard=False
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = self.settings.address or "this machine"
            message = f"--address {where}: no Ray cluster answers there ({error}); start one with `ray start --head`"
            raise NormstabError(message) from error

    def free_worker(self) -> RayWorker | None:
        """Return a slot for one more task, or None where enough are queued."""
        self._workers = self.busy()
        if len(self._workers) >= max(1, int(QUEUED_SHARE * self.width)):
            return None
        self._workers.append(RayWorker(self))
        return self._workers[-1]

    def wait_for(self, busy: Sequence[PoolWorker]) -> list[PoolWorker]:
        """Block until a task ends, or for a moment; return those that ended or have got on."""
        by_task = {worker.result: worker for worker in self.busy()}
        ended, _ = self.ray.wait(list(by_task), num_returns=1, timeout=POLL_S)
        if ended:
            return [by_task[result] for result in ended]
        try:
            board = self.ray.get(self.board.read.remote(), timeout=POLL_S)
        except self.ray.exceptions.RayError:
            return []  # progress is a comfort: cells end without it
        return [worker for worker in by_task.values() if worker.sees(board)]

    def discard(self, worker: PoolWorker) -> None:
        """Cancel a task and forget it."""
        assert isinstance(worker, RayWorker)
        self._workers.remove(worker)
        worker.stop()

    def busy(self) -> list[RayWorker]:
        """Return the tasks handed to Ray that have not ended."""
        return [worker for worker in self._workers if worker.cell is not None]

    def facts(self) -> dict[str, object]:
        """Return the cluster's size, a cell's resources, and how many cells each node ran."""
        return {
            "executor": "ray",
            "jobs": self.width,
            "cpus_per_cell": self.settings.cpus_per_cell,
            "gpus_per_cell": self.settings.gpus_per_cell,
            "cells_by_node": dict(self.nodes),
        }

    def stop(self) -> None:
        """Cancel what runs, and leave the cluster."""
        for worker in self._workers:
            worker.stop()
        self._workers.clear()
        if self._starts_ray:
            self.ray.shutdown()

    def needed(self, cell_id: str) -> Any:
        """Return the record that other cells need, put into the object store once."""
        return self._stored(cell_id, lambda: files_of(self.task.out_dir / "records" / cell_id))

    def data(self, dataset: DatasetSpec) -> Any:
        """Return the data of a cell, put into the object store once: a node's workers share them there.

        Data that are not on this machine, or that stay in files, are left to the nodes: None.
        """
        key = (dataset.name, dataset.root, dataset.size)
        return self._stored(key, lambda: lendable(dataset))

    def _stored(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what the object store has under this key; the last of them are held, the others as tasks need them."""
        kept = self._needed.pop(key) if key in self._needed else self.ray.put(make())
        self._needed[key] = kept
        if len(self._needed) > MOST_STORED:
            del self._needed[next(iter(self._needed))]
        return kept


class RayWorker:
    """The executor's side of one task."""

    def __init__(self, pool: RayPool) -> None:
        self._pool = pool
        self.cell: Cell | None = None
        self.started_s = 0.0
        self.progress: Progress | None = None
        self.result: Any = None
        self._news: Progress | None = None
        self._death = ""

    def give(self, cell: Cell) -> bool:
        """Hand the cell to Ray."""
        pool, settings = self._pool, self._pool.settings
        self.cell, self.started_s = cell, time.monotonic()
        task = pool.remote.options(
            num_cpus=settings.cpus_per_cell,
            num_gpus=settings.gpus_per_cell,
            max_retries=RETRIES,
            retry_exceptions=False,
            name=cell.id,
        )
        ids = () if settings.is_shared else cell.depends_on
        needed = [pool.needed(cell_id) for cell_id in ids]
        order = Order(cell.to_json(), pool.task, settings.is_shared, ids)
        self.result = task.remote(order, pool.board, pool.data(cell.dataset), *needed)
        return True

    def sees(self, board: Mapping[str, Progress]) -> bool:
        """Return whether the board has something new of this cell, and keep it as its next message."""
        news = board.get(self.cell.id) if self.cell is not None else None
        self._news = news if news != self.progress else None
        return self._news is not None

    def take(self) -> Message | None:
        """Return what the board said, or the answer of the task, whose files are in their place then."""
        if self._news is not None:
            news, self._news = self._news, None
            return Message("progress", progress=news)
        ray, cell = self._pool.ray, self.cell
        assert cell is not None, "only a busy worker is asked"
        try:
            answer: Answer = ray.get(self.result)
        except ray.exceptions.RayError as error:
            self._death = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
            return None
        self._pool.nodes[answer.node] += 1
        if answer.message.kind == "finished" and not self._pool.settings.is_shared:
            place_files(answer.files, self._pool.task.out_dir / "records" / cell.id)
        return answer.message

    def death(self) -> str:
        """Return what Ray says of a task that gave no answer."""
        return f"the task was lost after {RETRIES} tries ({self._death})"

    def stop(self) -> None:
        """Cancel the task where it runs."""
        if self.result is not None:
            self._pool.ray.cancel(self.result, force=True)


@dataclass(frozen=True)
class Answer:
    """What a task gives back: how the cell ended, where, and its files by name."""

    message: Message
    node: str
    files: Mapping[str, bytes]


class _Board:
    """The progress of the cells under way: an actor that tasks tell and the driver reads."""

    def __init__(self) -> None:
        self._progress: dict[str, Progress] = {}

    def tell(self, cell_id: str, progress: Progress) -> None:
        self._progress[cell_id] = progress

    def read(self) -> dict[str, Progress]:
        """Return what was told since the last time."""
        told, self._progress = self._progress, {}
        return told


@dataclass(frozen=True)
class Order:
    """What a task is to do: a cell as plain data, and the ids of the records that it is given."""

    plain: Mapping[str, Any]
    task: Task
    is_shared: bool
    ids: Sequence[str]


def run_on_node(order: Order, board: Any, lent: Any, *needed: Mapping[str, bytes]) -> Answer:
    """Run one cell on a node, with the data that were `lent` where they were.

    Every failure of the cell is an answer, so that Ray repeats only what it lost itself.
    """
    plain, task = order.plain, order.task
    lend(lent)
    node = os.uname().nodename + ":" + _import_ray().get_runtime_context().get_node_id()[:8]
    if order.is_shared:
        return Answer(answer_of(plain, task, _teller(board, plain)), node, {})
    with tempfile.TemporaryDirectory(prefix="normstab-") as folder:
        here = Task(Path(folder), task.threads, task.device, task.run_cell)
        for cell_id, files in zip(order.ids, needed, strict=True):
            place_files(files, here.out_dir / "records" / cell_id)
        message = answer_of(plain, here, _teller(board, plain))
        directory = here.out_dir / "records" / str(plain["id"])
        return Answer(message, node, files_of(directory) if message.kind == "finished" else {})


def _teller(board: Any, plain: Mapping[str, Any]) -> Any:
    """Return the function that tells the driver how far the cell is, without waiting for it."""
    last_s = 0.0

    def report(progress: Progress) -> None:
        nonlocal last_s
        if progress.note is not None or time.monotonic() - last_s >= POLL_S:
            last_s = time.monotonic()
            board.tell.remote(plain["id"], progress)

    return report


def _room(resources: Mapping[str, float], settings: RaySettings) -> int:
    """Return how many cells the cluster runs at once; raise where it has no room for one."""
    rooms = []
    for name, wanted in (("CPU", settings.cpus_per_cell), ("GPU", settings.gpus_per_cell)):
        if wanted > resources.get(name, 0.0):
            raise NormstabError(f"a cell wants {wanted:g} {name}, the cluster has {resources.get(name, 0.0):g}")
        if wanted > 0:
            rooms.append(int(resources[name] / wanted))
    return max(1, min(rooms, default=1))


def _import_ray() -> Any:
    """Return the module ray, or say how to get it."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise NormstabError(f"--executor ray: {error}; install it with `pip install normstab[ray]`") from error
    return ray
