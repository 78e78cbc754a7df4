"""What the launches of a captured step count in its replays: the same launches, with the same addresses, each time.

    cells of the step    [launch][launch] ...      zeros, then counts, in every replay
    found    replay 0    [launch][launch] ...      copies, each made at the end of a replay
             replay 1    [launch][launch] ...

The host tells a replay, in memory of the device, how many steps later it runs and which row of `found` is its own. Rows
that are all in use are copied to the host while the device goes on. No arithmetic here.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from normstab.errors import NormstabError
from normstab.numerics.kernels.cuda.device_log import COUNTED, LAUNCHES, Cells, Take
from normstab.numerics.ledger import Ledger, Row
from normstab.numerics.tallies.counter_row import COUNTING
from normstab.numerics.tallies.repeats import Repeats
from normstab.torch_private import modes_off

__all__ = ["CapturedLog"]

REPLAYS = 32  # whose counts are on the device at a time: of a step of a thousand launches four megabytes


class Sent(NamedTuple):
    """Counts of replays on their way to the host, or there once `arrival` is."""

    found: Tensor
    arrival: torch.cuda.Event | None
    repeats: Repeats


class CapturedLog:
    """Lends cells while a step is captured, and takes in what they hold after each replay of it.

    `later`, int64 (), is on the device: how many steps later than it was captured a replay runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with modes_off():
            self.later = torch.zeros((), dtype=torch.int64, device=device)
            self._own_row = torch.zeros((), dtype=torch.int64, device=device)
            self._rows = torch.arange(REPLAYS, device=device).view(-1, 1, 1)
        self._cells: list[Tensor] = []
        self._borrowed = 0
        self._due: list[tuple[int, int, Take]] = []
        self._asked: dict[int, Row | Ledger] = {}
        self._found: Tensor | None = None
        self._replayed: list[tuple[int, int]] = []
        self._sent: Sent | None = None
        self._stream: torch.cuda.Stream | None = None

    def borrow(self, n: int = 1) -> Cells:
        """Return cells for a launch to write to, which are zeros when a replay comes to it."""
        with modes_off():
            if self._borrowed + n > LAUNCHES * len(self._cells):
                self._borrowed = LAUNCHES * len(self._cells)
                self._cells.append(torch.zeros(LAUNCHES, COUNTED, dtype=torch.int64, device=self.device))
            first = self._borrowed
            self._borrowed += n
            return Cells(self._cells[-1][first % LAUNCHES :][:n], None, first)

    def take_back(self, cells: Cells, take: Take, asked_by: Iterable[Row | Ledger]) -> None:
        """Have `take` called with what each replay leaves in the cells, before `asked_by` are read."""
        self._due.append((cells.first, len(cells.counts), take))
        self._asked |= {id(one): one for one in asked_by}

    def add_bins(self, row: Row, bins: Tensor) -> None:
        """Raise: nobody adds up bins from replay to replay."""
        raise NormstabError("a step under a ledger with a histogram cannot be captured")

    def close(self) -> None:
        """End what is captured: every replay copies its counts to a row of its own."""
        if self._cells:
            with modes_off():
                cells = torch.cat(self._cells)[: self._borrowed]
                self._found = torch.empty(REPLAYS, *cells.shape, dtype=torch.int64, device=self.device)
                # Element by element: which kernels torch has for an index may depend on its flags.
                torch.where(self._rows == self._own_row, cells, self._found, out=self._found)

    def begin_replay(self, *, stamps: int, steps: int) -> None:
        """Tell the replay that comes next, on the current stream, by how much later it runs than what was captured."""
        with COUNTING, modes_off():
            if self.device.type == "cuda":
                self._stream = torch.cuda.current_stream(self.device)
            if len(self._replayed) == REPLAYS:
                self._send()
            self.later.fill_(steps)
            self._own_row.fill_(len(self._replayed))
            self._replayed.append((stamps, steps))
            for one in self._asked.values():
                one.pending.add(self)

    def settle(self) -> None:
        """Wait for the device, and take in what all replays so far have counted."""
        with COUNTING, modes_off(), nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            self._settle_sent()
            if self._replayed and self._found is not None:
                self._take(self._found[: len(self._replayed)].cpu(), self._repeats())
            self._replayed = []

    def _send(self) -> None:
        """Begin to copy all rows to the host, behind what the device still has to do, so that they can be used anew."""
        self._settle_sent()
        if self._found is not None:
            is_cuda = self._found.is_cuda
            # Pinned memory, or the copy would wait for all that the device has to do.
            host = torch.empty(self._found.shape, dtype=torch.int64, device="cpu", pin_memory=is_cuda)
            host.copy_(self._found, non_blocking=True)
            self._sent = Sent(host, torch.cuda.Event() if is_cuda else None, self._repeats())
            if self._sent.arrival is not None:
                self._sent.arrival.record()
        self._replayed = []

    def _settle_sent(self) -> None:
        """Take in what was sent, a whole round of replays ago."""
        sent, self._sent = self._sent, None
        if sent is not None:
            if sent.arrival is not None:
                sent.arrival.synchronize()
            self._take(sent.found, sent.repeats)

    def _repeats(self) -> Repeats:
        """Return when the replays were whose counts are in the rows."""
        return Repeats(*np.array(self._replayed, np.int64).T)

    def _take(self, found: Tensor, repeats: Repeats) -> None:
        """Do with the numbers of each launch what is due."""
        numbers = found.numpy()
        for at, n, take in self._due:
            take(numbers[:, at : at + n], repeats)
