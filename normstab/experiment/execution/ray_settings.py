"""A Ray cluster, and what a cell takes of it: plain data, which needs no Ray."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RaySettings"]


@dataclass(frozen=True)
class RaySettings:
    """The cluster, and what a cell takes of it.

    `address` None starts Ray on this machine; "auto" joins the cluster that this machine belongs to. `is_shared`:
    the output directory is on a path that every node has, and cells write into it themselves, checkpoints included.
    """

    address: str | None = None
    cpus_per_cell: float = 1.0
    gpus_per_cell: float = 0.0
    is_shared: bool = False
