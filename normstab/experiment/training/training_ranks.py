"""The processes that train one cell together: each has its part of a batch, all have the same network.

What only one of them does (evaluating, writing) the first does, and tells the others. Without others everything here
does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from normstab.errors import NormstabError
from normstab.experiment.scenario.spec import Cell
from normstab.numerics.ledger import Ledger

__all__ = ["Ranks"]

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process, number `rank` of `size` that train a cell."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def of(cell: Cell) -> Ranks:
        """Return the processes that train `cell`, or of which the first makes its sweep.

        Raises NormstabError where there are others than it states, or where a batch is too small for them.
        """
        wanted = cell.train.ranks
        there = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if cell.sweep is not None:
            return Ranks(dist.get_rank() if there > 1 else 0, there)
        if wanted == 1:
            return Ranks()
        if there != wanted:
            raise NormstabError(
                f"train.ranks: {wanted} processes train the cell together, and there are {there}; "
                f"torchrun --nproc-per-node {wanted} -m normstab run ... starts them"
            )
        if cell.record is not None:
            raise NormstabError(f"train.ranks: {wanted}: digests of results are kept by one process alone")
        return Ranks(dist.get_rank(), wanted)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that evaluates and writes."""
        return self.rank == 0

    def check_batches(self, bounds: Sequence[tuple[int, int]]) -> None:
        """Raise NormstabError where a batch has fewer samples than there are processes."""
        least = min(end - start for start, end in bounds)
        if least < self.size:
            raise NormstabError(
                f"train.ranks: {self.size} processes have their parts of every batch, and an epoch has a batch of "
                f"{least}; choose train.batch and dataset.train so that every batch has {self.size} or more"
            )

    def part(self, index: Tensor) -> Tensor:
        """Return this process's part of a batch: consecutive samples, the first parts one larger where it is uneven."""
        return self.parts(index)[self.rank]

    def parts(self, index: Tensor) -> Sequence[Tensor]:
        """Return the parts of a batch of all processes, in the order of ranks."""
        return index.tensor_split(self.size) if self.size > 1 else (index,)

    def mean(self, losses: Sequence[float], counts: Sequence[int]) -> float:
        """Return the mean loss of a batch from that of each process: in float64, in the order of ranks."""
        if self.size == 1:
            return losses[0]
        return sum(loss * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)

    def share(self, counts: Sequence[int]) -> float:
        """Return the factor on this process's mean loss of `counts[rank]` predictions.

        The mean over processes of what DistributedDataParallel gets is then the gradient of the whole batch's mean.
        """
        return self.size * counts[self.rank] / sum(counts) if self.size > 1 else 1.0

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return what the training steps run: the network, or the DistributedDataParallel that holds it."""
        return model if self.size == 1 else DistributedDataParallel(model)

    def seed(self, seed: int) -> None:
        """Seed torch's generators, so that dropout draws for each process's samples bits of their own."""
        if not self.is_first:
            torch.manual_seed(seed + (self.rank << 40))

    def gather(self, mine: T) -> list[T]:
        """Return what every process has, in the order of ranks; all have to call this."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine)
        return found

    def of_first(self, value: Callable[[], T]) -> T:
        """Return what the first process computes; all have to call this."""
        if self.size == 1:
            return value()
        told: list[Any] = [value() if self.is_first else None]
        dist.broadcast_object_list(told, src=0)
        found: T = told[0]
        return found

    def joined(self, ledger: Ledger) -> Ledger:
        """Return the ledger of all processes: counters add, the earliest offence names its rank; the own is emptied."""
        if self.size == 1:
            return ledger
        whole = Ledger(histogram=ledger.counts_histogram)
        whole.become_joined(self.gather(ledger))
        ledger.drain()
        return whole
