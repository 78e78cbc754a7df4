"""Networks whose parameters are split over processes (`fully_shard`): whole ones, parts, and their reduce-scatter.

    optimizer, model.parameters()   DTensors, of which each process has a part
    a module, while it runs         whole parameters, whose memory comes and goes with every use

A simulation casts the whole ones where a module reads them, and looks at the parts where an optimizer writes them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normstab.errors import NormstabError
from normstab.simulation.around.parameters import CARRIERS, Held
from normstab.simulation.around.places import Place
from normstab.simulation.ranks.joining import Joining, carrier_of
from normstab.simulation.ranks.parts import is_split, part_of
from normstab.torch_private import modes_off

__all__ = ["ShardedReduction", "gathered", "group_of", "reduction_of_shards", "sharded_modules", "shards_of"]

# How the gradients of a module's parameters are joined, from its number of processes and a divisor.
JoiningOf = Callable[[nn.Module, int, float], Joining]


def sharded_modules(model: nn.Module) -> list[Any]:
    """Return the modules that `fully_shard` was applied to; torch's part for them is not even imported here."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return [] if kind is None else [module for module in model.modules() if isinstance(module, kind)]


@contextmanager
def gathered(modules: list[Any]) -> Iterator[None]:
    """Have the whole parameters of sharded modules in the modules' tables; every process has to come here.

    Raises NormstabError where a policy of mixed precision would convert them before a simulation sees them.
    """
    for module in modules:
        module.unshard()
    try:
        for module in modules:
            for name, parameter in module.named_parameters():
                if not is_split(parameter) and parameter.is_floating_point() and parameter.dtype not in CARRIERS:
                    raise NormstabError(
                        f"simulate: fully_shard gathers {name!r} in {parameter.dtype}, as its MixedPrecisionPolicy "
                        "says; leave param_dtype out: which numbers a network sees is the simulation's matter"
                    )
        yield
    finally:
        for module in modules:
            module.reshard()


def shards_of(places: dict[nn.Module, Place]) -> list[Held]:
    """Return this process's parts of the parameters: what an optimizer writes to."""
    found = []
    for module, place in places.items():
        for name, parameter in module.named_parameters(recurse=False):
            if not place.passes and is_split(parameter) and parameter.is_floating_point():
                found.append(Held(part_of(parameter), place, name, is_parameter=True))
    return found


def group_of(modules: list[Any]) -> dist.ProcessGroup:
    """Return the processes over which modules are split; all there are, where they are replicated too."""
    meshes = [parameter.device_mesh for module in modules for parameter in module.parameters() if is_split(parameter)]
    of_one_axis = [mesh for mesh in meshes if mesh.ndim == 1]
    is_of_one = bool(of_one_axis) and len(of_one_axis) == len(meshes)
    group: Any = of_one_axis[0].get_group() if is_of_one else dist.group.WORLD
    assert isinstance(group, dist.ProcessGroup), "fully_shard needs torch.distributed to be initialized"
    return group


class ShardedReduction:
    """torch's interface of a reduce-scatter: in a simulation's arithmetic while one is open, torch's own otherwise."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.joining_of: JoiningOf | None = None

    def begin(self, joining_of: JoiningOf) -> None:
        """Reduce in a simulation's arithmetic from now on."""
        self.joining_of = joining_of

    def end(self) -> None:
        """Reduce as torch does from now on."""
        self.joining_of = None

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory for what is sent and received."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> Any:
        """Write this process's part of the sum, or mean, over processes to `output_tensor`."""
        if self.joining_of is None:
            reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
            return reduce_scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
        size, rank = dist.get_world_size(group), dist.get_rank(group)
        if op not in (dist.ReduceOp.AVG, dist.ReduceOp.SUM):
            raise NormstabError(
                f"simulate: a reduce-scatter by {op} is not simulated; leave the divide factor as it is"
            )
        with modes_off(), torch.no_grad():
            joining = self.joining_of(self.module, size, float(size) if op == dist.ReduceOp.AVG else 1.0)
            addend = joining.load(input_tensor.to(carrier_of(input_tensor.dtype, [joining])), rank)
            received = torch.empty_like(addend)
            dist.all_to_all_single(received, addend, group=group)
            length = output_tensor.numel()
            total = joining.add(list(received.view(size, length)), rank, rank * length)
            output_tensor.copy_(total.view(output_tensor.shape))
        return None


def reduction_of_shards(module: Any) -> ShardedReduction:
    """Return our reduce-scatter of a sharded module, put in place on first use: torch offers no way to take it back."""
    known = module.__dict__.get("_normstab_reduction")
    if known is None:
        known = ShardedReduction(module)
        try:
            module.set_custom_reduce_scatter(known)
        except ValueError as error:
            raise NormstabError(f"simulate: {type(module).__name__}: {error}") from error
        module.__dict__["_normstab_reduction"] = known
    return known  # type: ignore[no-any-return]
