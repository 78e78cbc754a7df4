"""What kernels count stays in the memory of their device until someone looks: a network's step waits for no count.

    memory of the device    [launch][launch][launch][ free, all zeros ...       ]  cells of COUNTED numbers each
    on the host             [ what to do with the numbers of each, once they are here ]

A launch borrows cells, its kernel writes to them, and it returns them with a function of their numbers. `settle` waits
for the device, copies and calls the functions in the order of the launches. Memory that is full is copied while the
device goes on, and its numbers are taken in when they have arrived. A stream has a log of its own, so that cells are
zeros before a kernel writes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.ledger import Ledger, Row
from normstab.numerics.tallies.counter_row import COUNTING
from normstab.numerics.tallies.repeats import ONCE, Repeats
from normstab.numerics.tallies.tally import COUNTERS
from normstab.torch_private import modes_off

__all__ = [
    "ANSWERS_AT", "COUNTED", "LAUNCHES", "LOSSES_AT", "Cells", "DeviceLog", "Log", "Take", "counting_in", "log_of",
    "multiprocessors",
]  # fmt: skip

# What kernels count, as int64: ten counters; the greatest magnitude and the greatest below infinity in bits of
# float64, then the same in bits of float32, of which a kernel writes one pair; and of the NaNs and the infinities that
# arrived at a rounding those that an operand had (see `attribution`); what additions absorbed and cancelled.
COUNTED = len(COUNTERS) + 8
ANSWERS_AT, LOSSES_AT = len(COUNTERS) + 4, len(COUNTERS) + 6
LAUNCHES = 4096  # that one stretch of memory has cells for, 590 kB

Found = NDArray[np.int64]
# What is done with the numbers of a launch: for each time that it ran an array (k, COUNTED).
Take = Callable[[Found, Repeats], None]


class Cells(NamedTuple):
    """Cells that a launch borrows: int64 (k, COUNTED), zeros at first."""

    counts: Tensor
    stretch: Stretch | None  # which they are part of; None where a step is captured
    first: int


class Log(Protocol):
    """Where launches count: in a stream's log, or, while a step is captured, in that of the step."""

    @property
    def later(self) -> Tensor:
        """How many steps later than it was launched a kernel runs, on the device: int64 ()."""

    def borrow(self, n: int = 1) -> Cells:
        """Return cells of zeros for a launch to write to."""

    def take_back(self, cells: Cells, take: Take, asked_by: Iterable[Row | Ledger]) -> None:
        """Have `take` called with the numbers that the kernel, launched by now, leaves, before `asked_by` are read."""

    def add_bins(self, row: Row, bins: Tensor) -> None:
        """Add to the histogram of a row, before it is read."""


class Stretch:
    """A stretch of memory of a device, the cells of launches one behind another."""

    def __init__(self, device: torch.device) -> None:
        self.memory = torch.zeros(LAUNCHES, COUNTED, dtype=torch.int64, device=device)
        self.borrowed = self.returned = 0
        self.due: list[tuple[int, int, Take]] = []
        self.arriving: Tensor | None = None
        self.arrival: torch.cuda.Event | None = None

    @property
    def is_full(self) -> bool:
        """Whether all cells have been borrowed and returned."""
        return self.borrowed == self.returned == LAUNCHES

    def send(self) -> None:
        """Begin to copy the cells to the host, behind what the device still has to do."""
        if self.memory.is_cuda:
            # Pinned memory, or the copy would wait for all that the device has to do.
            self.arriving = torch.empty(self.memory.shape, dtype=torch.int64, device="cpu", pin_memory=True)
            self.arriving.copy_(self.memory, non_blocking=True)
            self.arrival = torch.cuda.Event()
            self.arrival.record()

    def has_arrived(self) -> bool:
        """Whether the numbers of a full stretch can be read without waiting."""
        return self.is_full and (self.arrival is None or self.arrival.query())

    def settle(self) -> None:
        """Wait for the numbers, and do with those of returned cells what is due."""
        due, self.due = self.due, []
        if not due:
            return
        first, end = min(at for at, _, _ in due), max(at + n for at, n, _ in due)
        if self.arriving is None or self.arrival is None:
            found = self.memory[first:end].cpu().numpy()
        else:
            self.arrival.synchronize()
            found = self.arriving[first:end].numpy()
        for at, n, take in due:
            take(found[None, at - first : at - first + n], ONCE)


class DeviceLog:
    """What the launches on one stream of one device have counted, and nobody has read yet."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self.device, self.stream = device, stream
        self._stretches: list[Stretch] = []
        self._bins: dict[Row, Tensor] = {}

    @property
    def later(self) -> Tensor:
        """Nothing: what is launched here runs in its own step."""
        return _zero(self.device)

    def borrow(self, n: int = 1) -> Cells:
        """Return cells of zeros for a launch to write to."""
        with COUNTING, modes_off():
            # Cells of one launch lie in one stretch.
            if not self._stretches or self._stretches[-1].borrowed + n > LAUNCHES:
                self._open()
            stretch = self._stretches[-1]
            first = stretch.borrowed
            stretch.borrowed += n
            return Cells(stretch.memory[first : first + n], stretch, first)

    def take_back(self, cells: Cells, take: Take, asked_by: Iterable[Row | Ledger]) -> None:
        """Have `take` called with the numbers that the kernel, launched by now, leaves, before `asked_by` are read."""
        stretch, n = cells.stretch, len(cells.counts)
        assert stretch is not None, "the cells are of this log"
        with COUNTING:
            stretch.due.append((cells.first, n, take))
            for one in asked_by:
                one.pending.add(self)
            self._return(stretch, n)

    def add_bins(self, row: Row, bins: Tensor) -> None:
        """Add to the histogram of a row, before it is read."""
        with COUNTING, modes_off():
            waiting = self._bins.get(row)
            self._bins[row] = bins if waiting is None else waiting + bins
            row.pending.add(self)

    def settle(self) -> None:
        """Wait for the device, and take in all that was counted."""
        with COUNTING, modes_off(), self._on_stream():
            for stretch in list(self._stretches):
                stretch.settle()
                if stretch.is_full:
                    self._stretches.remove(stretch)
            bins, self._bins = self._bins, {}
            for row, waiting in bins.items():
                row.add_bins(waiting.cpu().numpy())

    def _on_stream(self) -> AbstractContextManager[object]:
        """Have the stream current, so that a copy comes after its kernels, wherever it is read from."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def _return(self, stretch: Stretch, n: int) -> None:
        """Note that cells came back; the last ones set a full stretch on its way to the host."""
        stretch.returned += n
        if stretch.is_full:
            with modes_off():
                stretch.send()

    def _open(self) -> None:
        """Begin a new stretch, and take in those that have arrived; the rest of the last one stays free."""
        if self._stretches:
            last = self._stretches[-1]
            last.borrowed, rest = LAUNCHES, LAUNCHES - last.borrowed
            self._return(last, rest)
        for stretch in [each for each in self._stretches if each.has_arrived()]:
            stretch.settle()
            self._stretches.remove(stretch)
        self._stretches.append(Stretch(self.device))


def log_of(device: torch.device) -> Log:
    """Return the log of the current stream of a device; of any other device, as Triton's interpreter has, the log."""
    stream = _stream(device)
    return _log(device, stream) if not _CAPTURED else _CAPTURED.get((device, stream)) or _log(device, stream)


# While steps are captured: the logs of the streams that they are captured on. Not of a thread, for a backward pass has
# one of its own.
_CAPTURED: dict[tuple[torch.device, torch.cuda.Stream | None], Log] = {}


@contextmanager
def counting_in(log: Log, device: torch.device) -> Iterator[None]:
    """Have what is launched on the current stream count in `log`."""
    place = device, _stream(device)
    _CAPTURED[place] = log
    try:
        yield
    finally:
        del _CAPTURED[place]


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return the current stream; devices other than CUDA have none."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


@cache
def _log(device: torch.device, stream: torch.cuda.Stream | None) -> DeviceLog:
    """Return the log of a stream."""
    return DeviceLog(device, stream)


@cache
def _zero(device: torch.device) -> Tensor:
    """Return the number that says: not later at all."""
    return torch.zeros((), dtype=torch.int64, device=device)


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a device has; one where it is none, as under Triton's interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
