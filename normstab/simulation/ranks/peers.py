"""The other processes of a distributed run: what they hold at the end of a simulation, and which of them is gone.

Everything goes through torch.distributed and the store that its processes met at. A process that does not come is
waited for as long as the process group waits, and then named.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from normstab.errors import NormstabError
from normstab.torch_private import default_store

__all__ = ["GRACE_S", "Peers", "is_of_a_connection"]

GRACE_S = 5.0
"""How long a process that lost a connection waits for signs of life of the others, in seconds."""
# What gloo's and NCCL's errors say when a peer is gone or does not answer.
CONNECTION_WORDS = ("connection closed", "connection reset", "broken pipe", "nccl", "gloo")
USUAL_TIMEOUT = timedelta(minutes=30)  # torch.distributed's own for gloo


class Peers:
    """This process, number `rank` of `size`, and the others that simulate the same network in the process `group`.

    All of them begin the same simulations in the same order: the n-th of one process belongs to the n-th of the others.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.ranks = dist.get_process_group_ranks(group)
        self.rank = dist.get_rank(group)
        self.size = len(self.ranks)
        self._store = default_store()
        members = ",".join(map(str, self.ranks))
        self._prefix = ""
        if self._store is not None:
            n = self._store.add(f"normstab/{members}/begun/{self.rank}", 1)
            self._prefix = f"normstab/{members}/{n}"

    def gather(self, mine: Any) -> list[Any]:
        """Return what every process holds, in the order of ranks; each has to call this.

        Raises NormstabError that names the processes that left by an exception, died or did not come in time.
        """
        self._tell("ended", "whole")
        self._check_ended()
        found: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(found, mine, group=self.group)
        except RuntimeError as error:
            raise self.lost("joining the ledgers", error) from error
        return found

    def leave(self, error: BaseException) -> None:
        """Tell the others that this process left its simulation by `error`, so that they do not wait for it."""
        self._tell("ended", f"{type(error).__name__}: {error}"[:500])

    def lost(self, what: str, error: Exception) -> NormstabError:
        """Return the error of an exchange that failed: it names the processes that left or are gone."""
        self._tell("alive", "yes")
        deadline = time.monotonic() + GRACE_S
        gone = [self._sign_of(rank, deadline) for rank in range(self.size) if rank != self.rank]
        named = "; ".join(text for text in gone if text) or "every process is alive"
        return NormstabError(f"{what} on rank {self.rank} of {self.size}: {named} ({_first_line(error)})")

    def _sign_of(self, rank: int, deadline: float) -> str:
        """Return what became of another process by a time; empty where it shows that it is alive."""
        if self._store is None:
            return ""
        alive, ended = self._key("alive", rank), self._key("ended", rank)
        try:
            while True:
                if self._store.check([alive]):
                    return ""
                if self._store.check([ended]):
                    how = self._store.get(ended).decode()
                    return "" if how == "whole" else f"rank {rank} left with {how}"
                if time.monotonic() >= deadline:
                    break
                time.sleep(0.05)
        except RuntimeError:  # the store is a server in the process of rank 0, or of torchrun
            return f"rank {rank} did not answer, nor did the store, which is kept by rank 0 or its launcher"
        return f"rank {rank} did not answer within {GRACE_S:g} s: it died, or does something else"

    def _check_ended(self) -> None:
        """Wait until every process has ended its simulation, and raise for those that did not as they should."""
        if self._store is None:
            return
        deadline = time.monotonic() + self._timeout.total_seconds()
        problems = []
        for rank in range(self.size):
            key = self._key("ended", rank)
            try:
                left = max(0.1, deadline - time.monotonic())
                self._store.wait([key], timedelta(seconds=left))
                how = self._store.get(key).decode()
            except RuntimeError:
                how = f"no word within {self._timeout.total_seconds():g} s"
            if how != "whole":
                problems.append(f"rank {rank} of {self.size} left with {how}")
        if problems:
            raise NormstabError(f"simulate on rank {self.rank}: the ledgers were not joined: {'; '.join(problems)}")

    @property
    def _timeout(self) -> timedelta:
        """How long the process group waits for its members, as `init_process_group` was told."""
        return getattr(self._store, "timeout", USUAL_TIMEOUT)

    def _key(self, what: str, rank: int) -> str:
        """Return where a process writes in this simulation."""
        return f"{self._prefix}/{what}/{rank}"

    def _tell(self, what: str, text: str) -> None:
        """Write something for the others to read, where the store can still be reached."""
        if self._store is None:
            return
        try:
            self._store.set(self._key(what, self.rank), text)
        except RuntimeError:
            return  # who kept the store is gone; the others learn it by the same error


def is_of_a_connection(error: RuntimeError) -> bool:
    """Whether an error is that of a collective which another process left: torch says so by its text alone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(words in text for words in CONNECTION_WORDS)


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return str(error).strip().partition("\n")[0][:200]
