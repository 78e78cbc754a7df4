"""The options of `normstab run` that say who runs the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from normstab.errors import NormstabError

if TYPE_CHECKING:
    from normstab.experiment.execution.executor import Execution

__all__ = ["Address", "CpusPerCell", "Executor", "GpusPerCell", "RayOptions", "SharedOut", "execution_of"]

# Local processes, or a Ray cluster.
Executor = Annotated[Literal["local", "ray"], typer.Option(help="Who runs the cells: processes here, or Ray tasks.")]
# Of the cluster; without it, Ray is started on this machine.
Address = Annotated[str | None, typer.Option(metavar="auto|HOST", help="ray: the cluster; none starts one here.")]
# Resources of one task.
CpusPerCell = Annotated[float | None, typer.Option(min=0.0, help="ray: processors of a cell (1).")]
GpusPerCell = Annotated[float | None, typer.Option(min=0.0, help="ray: GPUs of a cell, or a part of one (0).")]
# Cells write into --out themselves, checkpoints included.
SharedOut = Annotated[bool, typer.Option("--shared-out", help="ray: --out is on a path that every node has.")]


class RayOptions(NamedTuple):
    """What was said of the cluster; None and False where nothing was."""

    address: str | None
    cpus_per_cell: float | None
    gpus_per_cell: float | None
    shared_out: bool


def execution_of(executor: str, ray: RayOptions, *, jobs: int, threads: int, device: str, fresh: bool) -> Execution:
    """Return how cells are run by the executor of that name; raise where an option of the other one was given."""
    from normstab.experiment.execution.executor import Execution
    from normstab.experiment.execution.ray_settings import RaySettings

    if executor == "local":
        stray = [name for name, value in ray._asdict().items() if value not in (None, False)]
        if stray:
            option = f"--{stray[0].replace('_', '-')}"
            raise NormstabError(f"{option} is an option of --executor ray; local cells run --jobs at once")
        if device != "cpu":  # on a cluster the nodes have the devices, not this machine
            from normstab.experiment.records.machine import require_device

            require_device(device)
        return Execution(jobs, threads, device, fresh)
    if jobs != 1:
        raise NormstabError("--jobs is of local cells; on Ray, --cpus-per-cell and --gpus-per-cell say how many run")
    cpus = 1.0 if ray.cpus_per_cell is None else ray.cpus_per_cell
    gpus = 0.0 if ray.gpus_per_cell is None else ray.gpus_per_cell
    return Execution(1, threads, device, fresh, RaySettings(ray.address, cpus, gpus, ray.shared_out))
