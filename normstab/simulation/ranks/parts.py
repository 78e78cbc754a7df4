"""Tensors of which each process has a part (DTensors): which they are, the part here, and what holds of any part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["is_in_any_part", "is_split", "part_of"]


def is_split(tensor: object) -> bool:
    """Whether a tensor is one of which this process has a part (a DTensor)."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "to_local") and hasattr(tensor, "device_mesh")


def part_of(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, which shares its memory; any other tensor as it is."""
    split: Any = tensor
    part: Tensor = split.detach().to_local() if is_split(tensor) else tensor
    return part


def is_in_any_part(found: bool, tensors: Iterable[Tensor]) -> bool:
    """Whether something was found in any process's part of `tensors`, each of which has to call this.

    Without split tensors among them, what was found here.
    """
    split: list[Any] = [tensor for tensor in tensors if is_split(tensor)]
    if not split:
        return found
    flag = torch.tensor(float(found), device=part_of(split[0]).device)
    meshes = {id(tensor.device_mesh): tensor.device_mesh for tensor in split}
    for mesh in meshes.values():
        for axis in range(mesh.ndim):
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=mesh.get_group(axis))
    return bool(flag > 0)
