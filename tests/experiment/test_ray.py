"""Cells on a Ray cluster: the records of local workers, whatever node they ran on and whoever died on the way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from normstab.errors import NormstabError
from normstab.experiment.execution.executor import Execution, run_cells
from normstab.experiment.execution.progress import Outcome
from normstab.experiment.execution.ray_settings import RaySettings
from normstab.experiment.records.files import read_json
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.scenario.expand import expand
from normstab.experiment.scenario.reader import load_scenario
from normstab.experiment.scenario.spec import Cell
from tests.experiment.fake_cells import RUN_CELL, cell

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
NODE = {"include_dashboard": False, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each on loopback; the driver's own node has none."""
    ray = pytest.importorskip("ray")
    utils = pytest.importorskip("ray.cluster_utils")
    environment = {"PYTHONPATH": str(ROOT)}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    made = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **NODE})
    for _ in range(2):
        made.add_node(num_cpus=1, **NODE)
    ray.init(address=made.address, log_to_driver=False, runtime_env={"env_vars": environment})
    yield made
    ray.shutdown()
    made.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def run(cells: list[Cell], out_dir: Path, **settings: Any) -> Outcome:
    return run_cells(cells, out_dir, execution=Execution(ray=RaySettings(**settings), run_cell=RUN_CELL))


def files(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_records_are_those_of_local_workers_from_two_nodes(cluster: Any, tmp_path: Path) -> None:
    scenario = load_scenario(
        ROOT / "scenarios" / "quickstart.yaml", overrides=["profile=smoke", "dataset.train=128", "dataset.test=64"]
    )
    cells = list(expand(scenario))
    local = run_cells(cells, tmp_path / "local", execution=Execution(jobs=2))
    far = run_cells(cells, tmp_path / "far", execution=Execution(ray=RaySettings()))
    assert sorted(local.finished) == sorted(far.finished) == sorted(c.id for c in cells)
    assert files(tmp_path / "local" / "records") == files(tmp_path / "far" / "records")
    (entry,) = read_json(tmp_path / "far" / "run.json")["runs"]
    assert entry["executor"] == "ray" and len(entry["cells_by_node"]) == 2
    again = run_cells(cells, tmp_path / "far", execution=Execution(ray=RaySettings()))
    assert sorted(again.reused) == sorted(c.id for c in cells)


def test_the_workers_of_a_node_share_the_data_that_the_driver_read(cluster: Any, tmp_path: Path) -> None:
    cells = [cell(number=n) for n in range(4)]
    lent = "tests.experiment.fake_cells:run_lent_cell"
    outcome = run_cells(cells, tmp_path, execution=Execution(ray=RaySettings(), run_cell=lent))
    assert sorted(outcome.finished) == sorted(c.id for c in cells), outcome.failures
    (entry,) = read_json(tmp_path / "run.json")["runs"]
    assert sum(entry["cells_by_node"].values()) == 4


def test_a_cell_that_fails_is_not_repeated_and_harms_no_other(cluster: Any, tmp_path: Path) -> None:
    bad, refused, good = cell("raise", 1), cell("refuse", 2), [cell(number=n) for n in range(3, 6)]
    outcome = run([bad, refused, *good], tmp_path)
    assert sorted(outcome.finished) == sorted(c.id for c in good)
    kinds = {failure.id: failure.kind for failure in outcome.failures}
    assert kinds == {bad.id: "crashed", refused.id: "refused"}
    detail = next(failure.detail for failure in outcome.failures if failure.id == bad.id)
    assert "ZeroDivisionError: a bug" in detail and detail.count("Traceback") == 1


def test_a_task_whose_worker_dies_is_tried_again_and_then_named(cluster: Any, tmp_path: Path) -> None:
    bad, good = cell("die", 1), cell(number=2)
    outcome = run([bad, good], tmp_path, is_shared=True)
    assert outcome.finished == (good.id,)
    (failure,) = outcome.failures
    assert failure.kind == "crashed" and "tries" in failure.message
    starts = (tmp_path / "records" / bad.id / "starts").read_text().splitlines()
    assert len(starts) == 4  # once, and three times again


def test_a_node_that_dies_takes_no_record_with_it(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1, **NODE)
    cells = [cell("nap", number) for number in range(12)]
    seen: list[str] = []

    def kill_after_two(event: Any) -> None:
        if event.kind == "finished":
            seen.append(event.cell.id)
            if len(seen) == 2:
                cluster.remove_node(node, allow_graceful=False)

    execution = Execution(ray=RaySettings(), run_cell=RUN_CELL)
    outcome = run_cells(cells, tmp_path, execution=execution, on_event=kill_after_two)
    assert sorted(outcome.finished) == sorted(c.id for c in cells)
    assert sorted(seen) == sorted(c.id for c in cells)
    assert all(read_record(tmp_path / "records" / c.id).id == c.id for c in cells)


def test_a_killed_driver_goes_on_where_it_was(cluster: Any, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from normstab.experiment.execution.executor import Execution, run_cells\n"
        "from normstab.experiment.execution.ray_settings import RaySettings\n"
        "from tests.experiment.fake_cells import RUN_CELL, cell\n"
        "cells = [cell('nap', n) for n in range(8)]\n"
        f"how = Execution(ray=RaySettings(address={cluster.address!r}), run_cell=RUN_CELL)\n"
        "run_cells(cells, Path(sys.argv[1]), execution=how)\n"
    )
    records = tmp_path / "records"
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not list(records.glob("fake*/record.json")) and not list(records.glob("*/record.json")):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {path.parent.name: path.stat().st_mtime_ns for path in records.glob("*/record.json")}
    outcome = run([cell("nap", n) for n in range(8)], tmp_path)
    assert len(outcome.finished) == 8 and set(outcome.reused) == set(before)
    assert all((records / name / "record.json").stat().st_mtime_ns == when for name, when in before.items())


def test_resources_that_no_node_has_are_refused(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(NormstabError, match="a cell wants 64 CPU, the cluster has 2"):
        run([cell()], tmp_path, cpus_per_cell=64)
