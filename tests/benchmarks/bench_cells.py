"""Cells of milliseconds through local workers and through Ray: how many a second, and what the driver holds.

Nothing is trained: what is measured is the executor. Both numbers should not depend on how many cells there are.
"""

from __future__ import annotations

import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from normstab.experiment.execution.executor import Execution, run_cells
from normstab.experiment.execution.ray_settings import RaySettings
from tests.experiment.fake_cells import cell

SIZES = (500, 5000)


def measured(executor: str, count: int) -> tuple[float, float, float]:
    """Run so many cells in this process; return seconds, its peak memory in MiB before, and after."""
    cells = [cell(number=number) for number in range(count)]
    ray = RaySettings() if executor == "ray" else None
    execution = Execution(jobs=2, ray=ray, run_cell="tests.experiment.fake_cells:run_short_cell")
    with tempfile.TemporaryDirectory() as folder:
        run_cells(cells[:4], Path(folder) / "first", execution=execution)  # what is loaded once
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start_s = time.perf_counter()
        outcome = run_cells(cells, Path(folder) / "out", execution=execution)
        spent_s = time.perf_counter() - start_s
    assert len(outcome.finished) == count, outcome.failures[:3]
    return spent_s, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table, or one row of it, which has a process of its own."""
    if len(sys.argv) == 3:
        executor, count = sys.argv[1], int(sys.argv[2])
        spent_s, before, after = measured(executor, count)
        rate, grown, each = count / spent_s, after - before, 1024 * (after - before) / count
        print(f"| {executor} | {count} | {rate:.0f} | {after:.0f} | {grown:.1f} | {each:.1f} |", flush=True)
        return
    print("| executor | cells | cells a second | driver, MiB | grown, MiB | KiB a cell |")
    print("| -------- | ----- | -------------- | ----------- | ---------- | ---------- |", flush=True)
    for executor in ("local", "ray"):
        if executor == "ray" and importlib.util.find_spec("ray") is None:
            print("| ray | - | Ray is not installed | | | |")
            continue
        for count in SIZES:
            subprocess.run([sys.executable, "-m", "tests.benchmarks.bench_cells", executor, str(count)], check=True)


if __name__ == "__main__":
    main()
