"""An all-reduce of tensors as an operation of the machine: every process gets the sum that `joining` describes.

    sent       every process gives its neighbours their chunks of its tensors
    summed     each sums the chunk that it owns, of every tensor
    collected  all get all the sums

Each addition is done, and counted, in one process: the owner of its chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from normstab.simulation.ranks.joining import Joining, carrier_of

__all__ = ["all_reduced"]


def all_reduced(tensors: Sequence[Tensor], joinings: Sequence[Joining], group: dist.ProcessGroup) -> list[Tensor]:
    """Return each tensor (of one dtype) summed over the processes of `group`, all of which call this."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    carrier = carrier_of(tensors[0].dtype, joinings)
    lengths = [-(-x.numel() // size) for x in tensors]
    addends = [joining.load(x.reshape(-1).to(carrier), rank) for joining, x in zip(joinings, tensors, strict=True)]
    sent_RC = torch.cat([in_chunks(x, size, c) for x, c in zip(addends, lengths, strict=True)], dim=1)
    received_RC = torch.empty_like(sent_RC)
    dist.all_to_all_single(received_RC, sent_RC, group=group)
    sums, start = torch.zeros_like(received_RC[0]), 0
    for joining, x, c in zip(joinings, tensors, lengths, strict=True):
        own = max(0, min(c, x.numel() - rank * c))  # the last chunks are shorter
        rows = [received_RC[r, start : start + own] for r in range(size)]
        sums[start : start + own] = joining.add(rows, rank, rank * c)
        start += c
    joined = torch.empty(size * start, dtype=carrier, device=sums.device)
    dist.all_gather(list(joined.view(size, start)), sums, group=group)
    joined_RC, start, found = joined.view(size, start), 0, []
    for x, c in zip(tensors, lengths, strict=True):
        found.append(joined_RC[:, start : start + c].reshape(-1)[: x.numel()].view(x.shape))
        start += c
    return found


def in_chunks(x_N: Tensor, size: int, length: int) -> Tensor:
    """Return a vector as `size` chunks of `length`, filled up with zeros."""
    padded = torch.zeros(size * length, dtype=x_N.dtype, device=x_N.device)
    padded[: x_N.numel()] = x_N
    return padded.view(size, length)
