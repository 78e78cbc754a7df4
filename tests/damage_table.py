"""Every kind of file that normstab reads x every kind of damage: what comes of it, as one table.

An outcome is the right result (as if nothing were damaged), told (the rest is judged, or made anew, and a line names
the file), or an error that names the file; anything else is a failure: a traceback, silence about another result, a
wait without end. `python -m tests.damage_table` prints the table.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normstab.__main__ import main
from normstab.errors import NormstabError
from normstab.experiment.data.image_sources import read_cifar10, read_fashion_mnist
from normstab.experiment.execution.executor import Execution, run_cells
from normstab.experiment.execution.progress import Outcome
from normstab.experiment.records.digest_file import read_digests, write_digests
from normstab.experiment.records.files import write_atomically
from normstab.experiment.training.train_cell import run_cell
from normstab.numerics.formats import FORMATS
from normstab.numerics.kernels.cpu import compile as compiled
from normstab.numerics.kernels.cpu.cpu_round import nearest32
from normstab.numerics.kernels.format_table import plan
from normstab.numerics.kernels.shortcut_table import LANE32
from normstab.numerics.rounding_modes import Rounding
from normstab.study import keep_larger_report
from tests.assess.synthetic import story
from tests.experiment.fake_cells import RUN_CELL
from tests.experiment.fake_cells import cell as fake_cell
from tests.experiment.killing import CELLS, Here
from tests.experiment.test_datasets import write_cifar10, write_idx
from tests.report.made import made_scenario, write_runs
from tests.report.test_damaged_runs import SMALL, STORY

LONGEST_S = 60  # of reading one file
RIGHT, TOLD, ERROR, OTHER = "right result", "told", "error", "another id"
Damage = Callable[[Path], object]


def rewritten(change: Callable[[bytes], bytes]) -> Damage:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def replaced(make: Damage) -> Damage:
    return lambda path: (path.unlink(), make(path))


DAMAGES: dict[str, Damage] = {
    "gone": lambda path: path.unlink(),
    "empty": rewritten(lambda content: b""),
    "cut off": rewritten(lambda content: content[: len(content) // 2]),
    "one bit": rewritten(lambda content: content[:-9] + bytes(byte ^ 1 for byte in content[-9:-8]) + content[-8:]),
    "garbage": rewritten(lambda content: b"not what belongs here\n"),
    "NUL bytes": rewritten(lambda content: bytes(len(content))),
    "another encoding": rewritten(lambda content: b"\xff\xfe" + content),
    "another type": rewritten(lambda content: b"[]\n"),
    "a huge number": rewritten(lambda content: b"1" * 100_000 + b"\n"),
    "deep nesting": rewritten(lambda content: b"[" * 100_000),
    "longer": rewritten(lambda content: content + content[-100:]),
    "a folder": replaced(lambda path: (path.mkdir(), (path / "x").touch())),
    "a pipe": replaced(os.mkfifo),
    "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a dangling link": replaced(lambda path: path.symlink_to("nowhere")),
    "a circle of links": replaced(lambda path: path.symlink_to(path.name)),
    "no permission": lambda path: path.chmod(0),
}


def may_read_all() -> bool:
    """Whether permissions stop this process from nothing, as they do not root."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).chmod(0)
        return os.access(file.name, os.R_OK)


SKIPPED = {"no permission"} if may_read_all() else set()


@dataclass(frozen=True)
class Case:
    """A kind of file: how a whole one is made in a folder, and what is done with it.

    `make` returns the file; `act` returns what came of it - equal to what comes of a whole one is the right result -
    and what was said, or raises a NormstabError.
    """

    make: Callable[[Path], Path]
    act: Callable[[Path], tuple[object, str]]
    is_hashed: bool = False
    """What is read has a hash, which enters the ids of cells: other bytes are another cell's."""


def told(command: list[str]) -> tuple[object, str]:
    """Run a command; return its exit code with what it gave on stdout, and what it said."""
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        code = main(command)
    assert code != 4 and "Traceback" not in said.getvalue(), said.getvalue()
    return (code, out.getvalue()), said.getvalue()


def made_run(name: str) -> Callable[[Path], Path]:
    """Return what leaves a judged run, and its file `name`: of the last cell where it is a cell's."""

    def make(folder: Path) -> Path:
        runs = story(**STORY)
        directory = write_runs(folder / "out", runs, made_scenario(folder, SMALL))
        shutil.copytree(directory, folder / "other")
        if name == "report.md":
            (directory / name).write_text("# the report of an earlier run\n" * 9)
        own = [run for run in runs if not run.record.is_reference]
        return directory / name if name in ("scenario.json", "report.md") else directory / "records" / own[-1].id / name

    return make


def reported(folder: Path) -> tuple[object, str]:
    return told(["report", str(folder / "out"), "--format", "json"])


def written(folder: Path) -> tuple[object, str]:
    """Write a new report over the old one, as `report` and `run` do once they have looked at it."""
    keep_larger_report(folder / "out", 10**6, force=False)
    write_atomically(folder / "out/report.md", "the new report\n")
    return (0, (folder / "out/report.md").read_bytes()), ""


def compared(folder: Path) -> tuple[object, str]:
    return told(["compare", str(folder / "out"), str(folder / "other")])


FAKE = fake_cell(number=1)


def finished(name: str) -> Callable[[Path], Path]:
    """Return what leaves a run of a cell that trains nothing, and its file `name`."""

    def make(folder: Path) -> Path:
        again(folder)
        place = folder / "out/records" / FAKE.id if name in ("record.json", "checkpoint.pt") else folder / "out"
        if name == "checkpoint.pt":
            (place / name).write_bytes(b"left by a kill")
        return place / name

    return make


def again(folder: Path) -> tuple[object, str]:
    """Run the cell that trains nothing, again where it has been run."""
    ended = here([FAKE], folder / "out", RUN_CELL)
    if ended.failures:
        return (2, ""), ended.failures[0].message
    return (ended.finished, (folder / "out/records" / FAKE.id / "record.json").read_bytes()), ""


def here(cells: list[object], out: Path, run: str) -> Outcome:
    """Run cells in this process."""
    from normstab.experiment.execution import executor

    before = executor._pool
    executor._pool = lambda task, execution: Here(task)  # type: ignore[assignment,return-value]
    try:
        return run_cells(cells, out, execution=Execution(run_cell=run))  # type: ignore[arg-type]
    finally:
        executor._pool = before


def probed(folder: Path) -> Path:
    """Leave a reference that has run, and return its first probe."""
    run_cell(CELLS[0], folder / CELLS[0].id)
    return sorted((folder / CELLS[0].id / "probes").iterdir())[0]


def followed(folder: Path) -> tuple[object, str]:
    """Run the cell that is compared with the probes."""
    shutil.rmtree(folder / CELLS[1].id, ignore_errors=True)
    run_cell(CELLS[1], folder / CELLS[1].id)
    return (folder / CELLS[1].id / "record.json").read_bytes(), ""


def digests(folder: Path) -> Path:
    write_digests(folder, [])
    return folder / "digests.json"


def cached(folder: Path) -> Path:
    rounded(folder)
    (file,) = folder.glob("*.nbc")
    return file


def rounded(folder: Path) -> tuple[object, str]:
    """Round with a kernel that is looked for in `folder`, and compiled where it is not found there."""
    kernel = compiled.kernel(nearest32.py_func)
    kernel._cache._cache_file._cache_path = str(folder)
    x = np.full(3, 0.1, np.float32)
    kernel(x.ctypes.data, x.ctypes.data, 3, plan(FORMATS["fp16"], Rounding(), LANE32))
    return x.tolist(), ""


def image_set(name: str, write: Callable[[Path], None]) -> Callable[[Path], Path]:
    return lambda folder: (write(folder), folder / name)[1]


def read_with(read: Callable[[Path], object]) -> Callable[[Path], tuple[object, str]]:
    """Return what reads a set of images, and gives its hash."""

    def act(folder: Path) -> tuple[object, str]:
        return read(folder).sha256, ""  # type: ignore[attr-defined]

    return act


CASES: dict[str, Case] = {
    "record.json, report": Case(made_run("record.json"), reported),
    "record.json, compare": Case(made_run("record.json"), compared),
    "record.json, run again": Case(finished("record.json"), again),
    "steps.jsonl, report": Case(made_run("steps.jsonl"), reported),
    "steps.jsonl, compare": Case(made_run("steps.jsonl"), compared),
    "scenario.json, report": Case(made_run("scenario.json"), reported),
    "scenario.json, compare": Case(made_run("scenario.json"), compared),
    "report.md, report": Case(made_run("report.md"), written),
    "run.json, run again": Case(finished("run.json"), again),
    ".lock, run again": Case(finished(".lock"), again),
    "checkpoint.pt of a finished cell, run again": Case(finished("checkpoint.pt"), again),
    "a reference's probe": Case(probed, followed),
    "digests.json": Case(digests, lambda folder: (read_digests(folder), "")),
    "compiled code": Case(cached, rounded),
    "images of Fashion-MNIST": Case(
        image_set("train-images-idx3-ubyte.gz", lambda folder: write_idx(folder, 20)),
        read_with(read_fashion_mnist),
        True,
    ),
    "labels of Fashion-MNIST": Case(
        image_set("t10k-labels-idx1-ubyte", lambda folder: write_idx(folder, 20)), read_with(read_fashion_mnist), True
    ),
    "a python batch of CIFAR-10": Case(
        image_set("data_batch_3", lambda folder: write_cifar10(folder, "python")), read_with(read_cifar10), True
    ),
    "a binary batch of CIFAR-10": Case(
        image_set("data_batch_3.bin", lambda folder: write_cifar10(folder, "binary")), read_with(read_cifar10), True
    ),
}


@dataclass(frozen=True)
class Whole:
    """A case with its file in `folder`, at `name` there, and what comes of it undamaged."""

    case: Case
    folder: Path
    name: Path
    right: object


def made(case: Case, folder: Path) -> Whole:
    """Make the case's file in `folder`, and act on a copy."""
    (folder / "made").mkdir(parents=True)
    name = case.make(folder / "made").relative_to(folder / "made")
    shutil.copytree(folder / "made", folder / "act")
    right, _ = case.act(folder / "act")
    return Whole(case, folder / "made", name, right)


class Late(BaseException):
    """Nothing that code which guards against errors takes for one."""


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise Late after so long."""

    def ring(number: int, frame: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(whole: Whole, damage: Damage, folder: Path) -> str:
    """Damage a copy of the file, act on it in `folder`, and return the outcome, or what is wrong with it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole.folder, folder)
    path, case = folder / whole.name, whole.case
    damage(path)
    try:
        with within(LONGEST_S):
            found, said = case.act(folder)
    except Late:
        return "a wait without end"
    except NormstabError as error:
        return ERROR if path.name in str(error) or path.parent.name in str(error) else f"silent about the file: {error}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    if found == whole.right or case.is_hashed:
        return RIGHT if found == whole.right else OTHER
    code, answer = found if isinstance(found, tuple) else (0, "")
    names_it = any(name in f"{said}{answer}" for name in (path.name, path.parent.name, "no record: "))
    if code in (2, 3) and names_it:
        return TOLD if answer else ERROR
    return f"silent: {code} {said[-300:]}"


def table(names: Sequence[str] = tuple(CASES)) -> str:
    """Return the outcomes as Markdown."""
    rows = [f"| file | {' | '.join(DAMAGES)} |", "|---" * (len(DAMAGES) + 1) + "|"]
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            whole = made(CASES[name], Path(place) / "whole")
            found = [
                "-" if how in SKIPPED else outcome(whole, damage, Path(place) / "whole/act")
                for how, damage in DAMAGES.items()
            ]
        rows.append(f"| {name} | {' | '.join(found)} |")
        print(rows[-1], file=sys.stderr, flush=True)
    return "\n".join(rows)


if __name__ == "__main__":
    print(table(sys.argv[1:] or tuple(CASES)))
