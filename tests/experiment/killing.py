"""Kills a run of two small cells, at a file operation or a random moment, and looks at what the next run makes of it.

The run is the real one - lock, scenario.json, run.json, two dependent cells with a checkpoint after every step, a
report and a plot - but for its workers: a cell runs in the process itself, which is forked, so that a kill costs a
fraction of a second. `python -m tests.experiment.killing KILLS` prints the table of outcomes. A process in which
torch has run backward cannot be forked: the tests start this file as a program.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import normstab as ns
from normstab.experiment.data.datasets import load_dataset
from normstab.experiment.execution import executor
from normstab.experiment.execution.pools import PoolWorker
from normstab.experiment.execution.progress import Progress
from normstab.experiment.execution.worker import Message, Task, answer_of
from normstab.experiment.records.checkpoints import own_code
from normstab.experiment.records.files import write_atomically
from normstab.experiment.scenario.spec import Cell
from normstab.study import SCENARIO_FILE
from tests.experiment.cells import small_cell

REFERENCE = replace(
    small_cell(dataset__train=32, dataset__test=16, train__loss_scale="dynamic", train__probe_every=2),
    is_reference=True,
)
CELLS = (
    REFERENCE,
    replace(
        small_cell("bf16/stochastic", dataset__train=32, dataset__test=16, train__probe_every=2),
        reference_id=REFERENCE.id,
        depends_on=(REFERENCE.id,),
    ),
)
MODULES = "modules"
MOST_IN_A_ROW = 3
LONGEST_S = 600  # of one run, that compiles included; a wait without end is a failure too


class Here:
    """A worker, and a pool of one, that runs its cell in this process."""

    width = 1

    def __init__(self, task: Task) -> None:
        self.task, self.cell, self.started_s = task, None, 0.0
        self.progress: Progress | None = None
        self.message: Message | None = None

    def give(self, cell: Cell) -> bool:
        self.cell = cell
        self.message = answer_of(cell.to_json(), self.task, lambda progress: None)
        return True

    def take(self) -> Message | None:
        return self.message

    def death(self) -> str:
        return "not a process of its own"

    def free_worker(self) -> PoolWorker | None:
        return self if self.cell is None else None

    def wait_for(self, busy: Any) -> list[PoolWorker]:
        return list(busy)

    def discard(self, worker: PoolWorker) -> None:
        self.cell = None

    def busy(self) -> list[PoolWorker]:
        return [] if self.cell is None else [self]

    def facts(self) -> dict[str, object]:
        return {"executor": "here", "jobs": 1}

    def stop(self) -> None:
        self.cell = None


@dataclass
class Operations:
    """Counts the file operations below `root`, by kind, and kills the process at number `fatal`; 0: never."""

    root: str
    fatal: int = 0
    kinds: list[str] = field(default_factory=list)

    def meet(self, kind: str) -> None:
        self.kinds.append(kind)
        if len(self.kinds) == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Watch this process from now on; it is a forked one, and keeps the hooks to its end."""
        sys.addaudithook(self._hear)
        fsync, fdopen = os.fsync, os.fdopen
        os.fsync = lambda descriptor: (self.meet("fsync"), fsync(descriptor))[1]
        os.fdopen = lambda *arguments: Written(fdopen(*arguments), self)  # type: ignore[assignment]

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        kind = AUDITED.get(event)
        if kind is not None and (kind == "lock" or any(str(each).startswith(self.root) for each in arguments)):
            path = next((str(each) for each in reversed(arguments) if str(each).startswith(self.root)), "")
            self.meet(f"{kind} of a checkpoint" if "checkpoint.pt" in path else kind)


AUDITED = {"open": "open", "os.rename": "rename", "os.remove": "remove", "os.mkdir": "make a folder",
           "os.chmod": "set the mode", "shutil.rmtree": "remove a folder", "fcntl.flock": "lock"}  # fmt: skip


class Written:
    """A file whose writes are operations, each in two halves."""

    def __init__(self, file: Any, operations: Operations) -> None:
        self._file, self._operations = file, operations

    def write(self, content: bytes) -> None:
        self._operations.meet("write")
        half = len(content) // 2
        self._file.write(content[:half])
        self._file.flush()
        self._operations.meet("torn write")
        self._file.write(content[half:])

    def truncate(self, size: int) -> None:
        self._operations.meet("truncate")
        self._file.truncate(size)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *what: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def run(out: Path) -> None:
    """Run the two cells into `out`, then write what stands for a report."""
    executor._pool = lambda task, execution: Here(task)
    execution = executor.Execution(run_cell="tests.experiment.fake_cells:run_real_cell")
    prepare: Callable[[], None] = lambda: write_atomically(out / SCENARIO_FILE, "{}")  # noqa: E731
    outcome = executor.run_cells(CELLS, out, execution=execution, prepare=prepare)
    assert not outcome.failures, outcome.failures
    for name in ("report.md", "plots/losses.svg"):
        write_atomically(out / name, "what was found\n")


def preload(out: Path) -> None:
    """Load what a run needs, but for what only a backward pass does, before anything is forked again.

    A run left the names of the modules that it had imported in `out`.
    """
    for name in (out / MODULES).read_text().split():
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    own_code()
    load_dataset(REFERENCE.dataset)
    network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    with torch.no_grad(), ns.simulate(network, CELLS[1].numerics.precision):
        network(torch.ones(4, 8))


def forked(out: Path, operations: Operations, *, kill_after_s: float | None = None) -> tuple[int, list[str]]:
    """Run in a child, killed after so long unless None; return how it ended and the kinds of its operations."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            signal.alarm(LONGEST_S)
            operations.watch()
            run(out)
            if out.name == "warm":
                (out / MODULES).write_text("\n".join(sys.modules))
            os.write(writer, json.dumps(operations.kinds).encode())
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(3)
    os.close(writer)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reader, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(said) if said else []


def contents(out: Path) -> dict[str, bytes]:
    """Return the files of a run; what run.json says differs from run to run."""
    found = {str(path.relative_to(out)): path for path in sorted(out.rglob("*")) if not path.is_dir()}
    return {name: b"" if name == "run.json" else path.read_bytes() for name, path in found.items()}


def records(out: Path) -> dict[Path, int]:
    """Return the inode of every record that is there: a finished cell is not run again."""
    return {path: path.stat().st_ino for path in out.glob("records/*/record.json")}


@dataclass
class Tally:
    """What became of the kills of one kind."""

    kills: int = 0
    other_bytes: int = 0
    cells_lost: int = 0
    leftovers: int = 0
    failed: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, left or different."""
        return not (self.other_bytes or self.cells_lost or self.leftovers or self.failed)


class Harness:
    """Kills runs in a folder and compares what comes of them with a run that was left alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, Tally] = {}
        self.forked_whole("warm")  # kernels compile once
        preload(folder / "warm")
        start_s = time.monotonic()
        self.kinds = self.forked_whole("whole")
        self.whole_s = time.monotonic() - start_s
        self.whole = contents(folder / "whole")
        assert len([name for name in self.whole if name.endswith("record.json")]) == len(CELLS)

    def forked_whole(self, name: str) -> list[str]:
        code, kinds = forked(self.folder / name, Operations(str(self.folder / name)))
        assert code == 0, "a run that nobody kills"
        return kinds

    def kill(self, fatal: list[int | float]) -> None:
        """Kill one run after another in a folder - an int: at that operation, a float: after so many seconds -
        and judge what the run after them leaves."""
        out = self.folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        tallies, before = [], {}
        for each in fatal:
            operations = Operations(str(out), each if isinstance(each, int) else 0)
            code, _ = forked(out, operations, kill_after_s=None if isinstance(each, int) else each)
            if code == 0:
                break  # it had ended before
            kind = self.kinds[each - 1] if isinstance(each, int) and len(tallies) == 0 else "a random moment"
            tallies.append(self.found.setdefault(kind, Tally()))
            tallies[-1].kills += 1
            tallies[-1].failed += code != -signal.SIGKILL
            tallies[-1].cells_lost += any(records(out).get(path) != inode for path, inode in before.items())
            before = records(out)
        if not tallies:
            return
        last = tallies[-1]
        code, _ = forked(out, Operations(str(out)))
        last.failed += code != 0
        last.cells_lost += any(records(out).get(path) != inode for path, inode in before.items())
        found = contents(out)
        last.leftovers += len(found.keys() - self.whole.keys())
        last.other_bytes += any(found.get(name) != content for name, content in self.whole.items())

    def every_operation(self) -> Iterator[list[int | float]]:
        """Yield a plan for each file operation of a run."""
        yield from ([number] for number in range(1, len(self.kinds) + 1))

    def at_random(self, chance: random.Random) -> list[int | float]:
        """Return a plan of up to MOST_IN_A_ROW kills, at operations or at moments."""
        return [
            chance.randint(1, len(self.kinds)) if chance.random() < 0.5 else chance.uniform(0.0, self.whole_s)
            for _ in range(chance.randint(1, MOST_IN_A_ROW))
        ]

    @property
    def kills(self) -> int:
        """How many there were so far."""
        return sum(tally.kills for tally in self.found.values())

    def table(self) -> str:
        """Return the outcomes as Markdown."""
        rows = ["| killed at | kills | other bytes | cells lost | leftovers | failed |", "|---|---|---|---|---|---|"]
        for kind, tally in sorted(self.found.items()):
            numbers = (tally.kills, tally.other_bytes, tally.cells_lost, tally.leftovers, tally.failed)
            rows.append(f"| {kind} | {' | '.join(map(str, numbers))} |")
        return "\n".join(rows)


def main(kills: int, seed: int = 0) -> int:
    """Kill so many runs - every operation once where there are enough - print the table; 1 unless it is clean."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="killing-") as folder:
        harness = Harness(Path(folder))
        plans = list(harness.every_operation())
        for plan in plans if kills >= len(plans) else chance.sample(plans, kills):
            harness.kill(plan)
        while harness.kills < kills:  # a run may end before the operation that it should be killed at
            harness.kill(harness.at_random(chance)[: kills - harness.kills])
        print(f"{len(plans)} file operations in a run of {harness.whole_s:.2f} s; {harness.kills} kills\n")
        print(harness.table())
        return 0 if all(tally.is_clean for tally in harness.found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *map(int, sys.argv[2:])))
