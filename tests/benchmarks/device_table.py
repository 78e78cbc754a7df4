"""The table of a device: bits against the oracle, then times beside a yardstick in the same run, as ratios.

`python -m tests.benchmarks --device cuda [--budget SECONDS] [SECTION...]`. On CUDA the times are those of the device's
events and the oracle is the CPU; on a CPU they are those of its clock, and the oracle is the readable code. Nothing
about a time is asserted. Exit code 1: bits differ, or a row failed; 2: there is no such device or section.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tests.benchmarks import device_rows, device_runs
from tests.benchmarks.device_rows import TINY, Made, Row, Sizes, UnavailableError
from tests.benchmarks.timing import Samples, Work

SECTIONS: dict[str, Callable[[Sizes], Iterator[Row]]] = {
    "casts": device_rows.casts,
    "operations": device_rows.operations,
    "scaled": device_rows.scaled_formats,
    "norms": device_rows.norms,
    "sums": device_rows.sums,
    "steps": device_runs.steps,
}
ONCE = "once"  # first use, and a scenario's run
MOST_TURNS, LEAST_TURNS, HOST_CALLS = 15, 3, 20
MOST_S = 600.0  # of what is measured once, where no budget says less
QUICKSTART = Path(__file__).parents[2] / "scenarios/quickstart.yaml"
HEADS = ("work", "size", "time", "ratio (of minima)", "floor", "aim", "bits")
LAUNCH_HEADS = ("work", "size", "time", "ratio (of minima)", "host, a call", "ratio", "bits")


class Budget:
    """The seconds that are left, and what of them a row may take where so many are to come."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock, self.end = clock, None if seconds is None else clock() + seconds

    @property
    def left(self) -> float:
        """The seconds that are left; infinite without a budget."""
        return float("inf") if self.end is None else self.end - self.clock()

    def until(self, rows: int) -> float:
        """Return the moment by which the next of `rows` rows should be done."""
        return float("inf") if self.end is None else self.clock() + max(0.0, self.left) / max(1, rows)


@dataclass(frozen=True)
class Timer:
    """Measures works in turns, one of each a turn after one warm-up, until a moment or MOST_TURNS."""

    device: str

    def seconds(self, works: dict[str, Work], until: float) -> Samples:
        """Return the seconds of each: of the device's events, or of a clock where the device is the host."""
        for work in works.values():
            work()
        self.wait()
        taken: dict[str, list[Callable[[], float]]] = {name: [] for name in works}
        for turn in range(MOST_TURNS):
            for name, work in works.items():
                taken[name].append(self._one(work))
            if turn + 1 >= LEAST_TURNS and time.perf_counter() > until:
                break
        self.wait()
        return {name: [seconds() for seconds in found] for name, found in taken.items()}

    def host_seconds(self, works: dict[str, Work]) -> dict[str, float]:
        """Return how long the host takes to give each work to the device, which is not waited for."""
        found = {}
        for name, work in works.items():
            self.wait()
            start = time.perf_counter()
            for _ in range(HOST_CALLS):
                work()
            found[name] = (time.perf_counter() - start) / HOST_CALLS
        self.wait()
        return found

    def wait(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def _one(self, work: Work) -> Callable[[], float]:
        """Do a work, and return what tells its seconds once the device has been waited for."""
        if self.device == "cpu":
            start = time.perf_counter()
            work()
            seconds = time.perf_counter() - start
            return lambda: seconds
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        return lambda: begin.elapsed_time(end) / 1e3


def verdicts(made: Made, device: str) -> dict[str, str]:
    """Return of each work whether its bits and counts on the device are the oracle's."""
    found = {}
    for name, bits in made.bits.items():
        here = bits(device)
        with device_rows.readable() if device == "cpu" else nullcontext():
            there = bits("cpu")
        wrong = sum(differing(a, b) for a, b in zip(here, there, strict=True))
        found[name] = "equal" if wrong == 0 else f"DIFFER: {wrong} of {sum(x.numel() for x in there)}"
    return found


def differing(a: Tensor, b: Tensor) -> int:
    """Return how many elements are not the same, NaNs and the signs of zeros told apart."""
    same = (a == b) & (torch.signbit(a) == torch.signbit(b)) | (a.isnan() & b.isnan())
    return int((~same).sum())


def shown(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.1f} us"


def ratio(taken: list[float], base: list[float]) -> str:
    """Return the ratio of medians, and that of minima."""
    return f"{statistics.median(taken) / statistics.median(base):.2f} ({min(taken) / min(base):.2f})"


class Table:
    """Prints rows as they come, and remembers whether all was right."""

    def __init__(self, timer: Timer, budget: Budget) -> None:
        self.timer, self.budget = timer, budget
        self.is_right = True
        self.compared = 0
        self._title = ""

    def heading(self, title: str, heads: tuple[str, ...]) -> None:
        """Begin a section, unless it has begun."""
        if title != self._title:
            self._title = title
            print(f"\n### {title}\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|", flush=True)

    def line(self, *cells: str) -> None:
        """Print one row."""
        print(f"| {' | '.join(cells)} |", flush=True)

    def row(self, row: Row, rows_left: int) -> None:
        """Check and measure one row; where that fails, or no time is left, say so in its place."""
        heads = LAUNCH_HEADS if row.is_launch_bound else HEADS
        self.heading(f"{row.section}: launch-bound" if row.is_launch_bound else row.section, heads)
        if self.budget.left <= 0:
            self._left_out(row, "no time was left")
            return
        until = self.budget.until(rows_left)
        try:
            made = row.make(self.timer.device)
        except (UnavailableError, torch.OutOfMemoryError) as reason:
            self._left_out(row, str(reason).splitlines()[0])
            return
        try:
            self._measured(row, made, until)
        except Exception as problem:  # the rows to come are worth having
            self.is_right = False
            self._left_out(row, f"FAILED: {type(problem).__name__}: {problem!s:.120}")
        finally:
            made.close()

    def once(self, what: device_runs.Once) -> None:
        """Measure what is measured once."""
        self.heading("once", ("work", "seconds", "floor", "aim"))
        if self.budget.left <= 0:
            self.line(what.name, "left out: no time was left", what.floor, what.aim)
            return
        try:
            seconds = what.seconds(self.timer.device, min(self.budget.left, MOST_S))
            self.line(what.name, shown(seconds), what.floor, what.aim)
        except UnavailableError as reason:
            self.line(what.name, f"left out: {reason}", what.floor, what.aim)

    def _left_out(self, row: Row, why: str) -> None:
        """Say of every work of a row why it is not there."""
        for name, (floor, aim) in row.to_reach.items():
            blank = ("", "") if row.is_launch_bound else (floor, aim)
            self.line(name, row.size, f"left out: {why}", "", *blank, "")

    def _measured(self, row: Row, made: Made, until: float) -> None:
        """Compare bits, then measure, and print."""
        bits = verdicts(made, self.timer.device)
        self.compared += len(bits)
        self.is_right &= all(verdict == "equal" for verdict in bits.values())
        taken = self.timer.seconds(made.works, until)
        yardstick = next(iter(made.works))
        host = self.timer.host_seconds(made.works) if row.is_launch_bound else {}
        for name, seconds in taken.items():
            compared = "" if name == yardstick else ratio(seconds, taken[yardstick])
            cells = [name, row.size, shown(statistics.median(seconds)), compared]
            if row.is_launch_bound:
                cells += [shown(host[name]), "" if name == yardstick else f"{host[name] / host[yardstick]:.2f}"]
            else:
                cells += row.to_reach.get(name, ("", ""))
            self.line(*cells, bits.get(name, ""))
        for note in made.notes:
            print(f"| {note} |" + " |" * (len(HEADS) - 1), flush=True)


def described(device: str) -> str:
    """Return the device's name, and the versions of what compiles for it."""
    if device == "cpu":
        threads = f"{torch.get_num_threads()} threads"
        return f"CPU {torch.backends.cpu.get_cpu_capability()}, {threads}, torch {torch.__version__}"
    import triton

    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}"


def options_of(arguments: list[str]) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="The table of a device.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join((*SECTIONS, ONCE))}; all if none")
    parser.add_argument("--device", required=True, choices=("cpu", "cuda"))
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="what does not fit is left out, and named")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that the table is there")
    parser.add_argument("--scenario", type=Path, default=QUICKSTART, help="what `normstab run` is timed with")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.sections if name not in (*SECTIONS, ONCE)]
    if unknown:
        parser.error(f"unknown section {', '.join(unknown)} (there are: {', '.join((*SECTIONS, ONCE))})")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; --device cpu prints the same table with a CPU's clock")
    return options


def main(arguments: list[str]) -> int:
    """Print the table."""
    options = options_of(arguments)
    table = Table(Timer(options.device), Budget(options.budget))
    sizes = Sizes() if options.device == "cuda" else replace(Sizes(), bulk=Sizes.bulk[:1])
    sizes = TINY if options.tiny else sizes
    chosen = options.sections or [*SECTIONS, ONCE]
    limit = "" if options.budget is None else f", in {options.budget:g} s"
    print(f"## The table of a device: {described(options.device)}{limit}")
    rows = [row for name, section in SECTIONS.items() if name in chosen for row in section(sizes)]
    rows.sort(key=lambda row: row.is_launch_bound)  # which keeps the order otherwise
    singles = device_runs.once(options.scenario) if ONCE in chosen else []
    for number, row in enumerate(rows):
        table.row(row, len(rows) - number + len(singles))
    for single in singles:
        table.once(single)
    equal = f"equal in all {table.compared} works compared" if table.compared else "nothing was compared"
    print("\nbits: " + (equal if table.is_right else "NOT equal, or a row failed: see above"))
    return 0 if table.is_right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
