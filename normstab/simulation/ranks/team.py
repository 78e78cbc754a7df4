"""A simulation of one network in several processes, from its begin to the end, where what they counted is joined.

The processes are those of the network's DistributedDataParallel, or of its `fully_shard`. A network without one is
simulated by itself, whatever other processes do.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normstab.errors import NormstabError
from normstab.numerics.formats import FORMATS
from normstab.numerics.precision import Collective, Precision
from normstab.numerics.rules import Rules
from normstab.simulation.around.places import Place
from normstab.simulation.ranks.data_parallel import reduction_of
from normstab.simulation.ranks.joining import Joining
from normstab.simulation.ranks.norms_over_ranks import synchronize_norms
from normstab.simulation.ranks.peers import Peers, is_of_a_connection
from normstab.simulation.ranks.sharded import group_of, reduction_of_shards, sharded_modules
from normstab.simulation.run import Run
from normstab.simulation.simulated_session import Simulation

__all__ = ["Team", "network_of"]


def network_of(model: nn.Module) -> nn.Module:
    """Return the network inside a DistributedDataParallel: its modules have the names that they have without it."""
    return model.module if isinstance(model, DistributedDataParallel) else model  # type: ignore[no-any-return]


class Team:
    """The processes that simulate one network together; a context that joins their ledgers when it ends well."""

    def __init__(self, model: nn.Module, run: Run, rules: Rules[Precision]) -> None:
        self.run = run
        self._rules = rules
        self._session: Simulation | None = None
        self._names: dict[int, str] = {}
        self._replicated = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
        self._sharded = sharded_modules(model)
        group = self._group()
        size = 1 if group is None else dist.get_world_size(group)
        # A shard of one process is all there is: torch then reduces nothing.
        self._check_collectives(are_joined=bool(self._replicated) or size > 1)
        self.peers = None if group is None or size == 1 else Peers(group)

    def _group(self) -> dist.ProcessGroup | None:
        """Return the processes that train the network together, None where it knows of no others."""
        if self._replicated:
            return self._replicated[0].process_group  # type: ignore[no-any-return]
        return group_of(self._sharded) if self._sharded else None

    def _check_collectives(self, *, are_joined: bool) -> None:
        """Raise where a collective is stated and none of a network's is known."""
        stated = [precision for precision in self._rules.values() if precision.collective is not None]
        if stated and not are_joined:
            raise NormstabError(
                f"precision {stated[0]}: collective={stated[0].collective} is about gradients of several "
                "processes; simulate the DistributedDataParallel that holds the network, or apply fully_shard to it"
            )

    def __enter__(self) -> Team:
        if self.peers is not None:
            self.run.rank = (self.peers.rank, self.peers.size)
            self.run.arithmetic.clock.share = self.peers.rank
            if self.run.ledger.processes > 1 and self.peers.rank > 0:
                self.run.ledger.drain()  # joined before, and the same everywhere: rank 0 alone carries it on
        return self

    def attach(self, session: Simulation, stack: ExitStack) -> None:
        """Make the sums over processes, of gradients and of norms, operations of its machine until `stack` closes."""
        self._session = session
        synchronize_norms(session, stack)
        self._names = {id(parameter): name for name, parameter in session.model.named_parameters()}
        if session.is_native:
            return
        self.run.arithmetic.clock.splits_parameters = bool(self._sharded)
        for module in self._replicated:
            reduction = reduction_of(module)
            reduction.begin(self._joining_of)
            stack.callback(reduction.end)
        for module in self._sharded:
            of_shards = reduction_of_shards(module)
            of_shards.begin(self._joining_of_shards)
            stack.callback(of_shards.end)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.peers is None:
            return
        self.run.arithmetic.clock.share = 0
        if error is not None:
            try:
                if isinstance(error, RuntimeError) and is_of_a_connection(error):
                    raise self.peers.lost("a collective", error) from error
            finally:
                self.peers.leave(error)
            return
        self.run.become_joined(self.peers.gather(self.run.to_join()))

    def _joining_of(self, parameter: nn.Parameter, name: str, size: int) -> Joining:
        """Return how the gradient of a parameter is joined: at the parameter's name, in the format in which it is kept.

        Not at its module's: the bits of a draw would depend on the order of a module's parameters in DDP's buckets.
        """
        session = self._session
        assert session is not None
        place = session.tracker.place_of(parameter)
        known = self._names.get(id(parameter), "parameter")
        module, _, local = known.rpartition(".")
        return self._joining(place, local if place.name == module else known, name, size, float(size))

    def _joining_of_shards(self, module: nn.Module, size: int, divisor: float) -> Joining:
        """Return how the gradients of a sharded module's parameters are joined: at the module."""
        session = self._session
        assert session is not None
        return self._joining(session.places[module].backward, "", "reduce_scatter", size, divisor)

    def _joining(self, place: Place, at: str, name: str, size: int, divisor: float) -> Joining:
        """Return how gradients of a place are joined, at a name within it."""
        ar, session = place.arithmetic, self._session
        if ar.is_native or session is None:
            return Joining(name, None, None, None, size, divisor)
        ar = ar.at(at) if at else ar
        collective: Collective | None = ar.precision.collective
        if place.shown is not None and session.master_weights:
            return Joining(name, ar, collective, FORMATS["fp32"], size, divisor)
        return Joining(name, ar, collective, ar.format, size, divisor, kept_rounding=ar.precision.rounding)
