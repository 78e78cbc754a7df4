"""DistributedDataParallel in a simulation: its all-reduce of gradients as an operation of the machine.

DDP takes one communication hook for its life, which torch offers no way to take back. Ours is registered once and
reduces as DDP itself does while no simulation is open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from normstab.errors import NormstabError
from normstab.simulation.ranks.exchange import all_reduced
from normstab.simulation.ranks.joining import Joining
from normstab.torch_private import modes_off

__all__ = ["Reduction", "reduction_of"]

# How the gradient of a parameter is joined over processes.
JoiningOf = Callable[[nn.Parameter, str, int], Joining]


class Reduction:
    """What our communication hook does: `joining_of` a parameter while a simulation is open, torch's mean otherwise."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.joining_of: JoiningOf | None = None

    def begin(self, joining_of: JoiningOf) -> None:
        """Reduce in a simulation's arithmetic from now on."""
        self.joining_of = joining_of

    def end(self) -> None:
        """Reduce as torch does from now on."""
        self.joining_of = None

    def reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Return a future of the buffer of `bucket`, a dist.GradBucket, with the mean over ranks in it."""
        if self.joining_of is None:
            return self._as_torch(bucket.buffer())
        with modes_off(), torch.no_grad():
            self._join(bucket)
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def _as_torch(self, buffer: Tensor) -> torch.futures.Future[Tensor]:
        """Return the mean as DDP forms it without a hook: a product with 1 / R, then the sum."""
        buffer.mul_(1.0 / dist.get_world_size(self.group))
        work: Any = dist.all_reduce(buffer, group=self.group, async_op=True)
        future: torch.futures.Future[list[Tensor]] = work.get_future()
        return future.then(lambda done: done.value()[0])

    def _join(self, bucket: Any) -> None:
        """Replace each gradient in the bucket by the mean over processes."""
        assert self.joining_of is not None
        size = dist.get_world_size(self.group)
        gradients = bucket.gradients()
        joinings = [self.joining_of(parameter, "all_reduce", size) for parameter in bucket.parameters()]
        for gradient, joined in zip(gradients, all_reduced(gradients, joinings, self.group), strict=True):
            gradient.copy_(joined)


def reduction_of(module: DistributedDataParallel) -> Reduction:
    """Return our reduction of a module, registered on first use.

    Raises NormstabError for a module that has a communication hook of its own.
    """
    known = module.__dict__.get("_normstab_reduction")
    if known is None:
        known = Reduction(module.process_group)
        try:
            # Without annotations: torch compares them as objects, and here they are text.
            module.register_comm_hook(known, lambda state, bucket: state.reduce(bucket))
        except RuntimeError as error:
            raise NormstabError(
                "simulate: the DistributedDataParallel has a communication hook of its own, and torch allows one; "
                "wrap the network anew without it, for all_reduce is an operation of the machine here"
            ) from error
        module.__dict__["_normstab_reduction"] = known
    return known  # type: ignore[no-any-return]
