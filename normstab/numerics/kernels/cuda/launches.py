"""What a CUDA kernel is launched with, and what it counted, added to the row of its call once someone looks.

No arithmetic here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.call import Call, Operands
from normstab.numerics.kernels.cuda.attribution import ask
from normstab.numerics.kernels.cuda.device_log import ANSWERS_AT, LOSSES_AT, Cells, log_of
from normstab.numerics.philox import Draw, field_width
from normstab.numerics.readable.losses import lose
from normstab.numerics.tallies.counter_row import HISTOGRAM_BINS
from normstab.numerics.tallies.repeats import Repeats
from normstab.numerics.tallies.tally import COUNTERS

__all__ = ["Launch", "add_found", "drawn_from", "give_back", "prepared", "settle", "signed", "value32"]

# Bits: of infinity; of the least normal float32, as
# float64; what biases differ by; of the largest float32.
INF64, MIN_NORMAL32, REBIAS32, LARGEST32 = 2047 << 52, 897 << 52, 896 << 23, 0x7F7FFFFF
INF32 = 255 << 23


class Launch(NamedTuple):
    """What every kernel is launched with: where it counts, bins, place, options.

    `place` is n, begin, word, step, block, and where on the device lies how many steps later it runs.
    """

    cells: Cells | None
    bins: Tensor | None
    place: tuple[int, int, int, int, int, Tensor | None]
    options: dict[str, Any]

    @property
    def counts(self) -> Tensor | None:
        """The counters that the kernel writes."""
        return None if self.cells is None else self.cells.counts


def prepared(n: int, call: Call, device: torch.device) -> Launch:
    """Return from which random bits on `n` results are rounded, and where they are counted.

    With random bits the first tile begins at the first element of a Philox block, at or before the first.
    """
    row, draw, rounding = call.row, call.draw, call.rounding
    width, begin, block, word, step, later = 0, 0, 0, 0, 0, None
    if rounding.is_stochastic:
        assert draw is not None, "stochastic rounding needs a draw"
        width = field_width(rounding.bits)
        block, skipped = divmod(draw.first_index, 128 // width)
        begin, word, step = -skipped, signed(draw.word), signed(draw.step)
        later = log_of(device).later
    cells = None if row is None else log_of(device).borrow()
    has_histogram = row is not None and row.has_histogram
    bins = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64, device=device) if has_histogram else None
    # No fused multiply-add: it would merge two roundings into one.
    options = {"WIDTH": width, "COUNTS": row is not None, "enable_fp_fusion": False}
    return Launch(cells, bins, (n, begin, word, step, block, later), options)


def drawn_from(draws: Sequence[Draw | None], device: torch.device) -> tuple[Tensor | None, int, Tensor | None]:
    """Return the keys of Philox of several sites on the device, the step, and where lies how much later this runs.

    Nones where nothing is drawn. Every site draws from element 0 on.
    """
    drawing = [draw for draw in draws if draw is not None]
    if not drawing:
        return None, 0, None
    assert len({draw.step for draw in drawing}) == 1, "the sites of one launch are called in one step"
    assert not any(draw.first_index for draw in drawing), "a value is a whole tensor"
    words = tuple(0 if draw is None else signed(draw.word) for draw in draws)
    return keys_on(words, device), signed(drawing[0].step), log_of(device).later


@cache
def keys_on(words: tuple[int, ...], device: torch.device) -> Tensor:
    """Return keys of Philox on a device, copied there once: they are the same in every step."""
    return torch.tensor(words, dtype=torch.int64, device=device)


def settle(launch: Launch, n: int, call: Call, result: Tensor) -> None:
    """Have what a launch counts added to the row of its call, before that is read."""
    row, cells = call.row, launch.cells
    if row is None or cells is None:
        return
    if call.operands is not None:
        ask(cells.counts, result, call.operands)
        call = call._replace(operands=call.operands._replace(tensors=()))  # which nobody holds until someone looks

    def take(found: NDArray[np.int64], repeats: Repeats) -> None:
        # How many results there are is known here: the kernel need not count them.
        found[:, 0, 0] = n
        add_found(call, found[:, 0], repeats)

    log = log_of(cells.counts.device)
    log.take_back(cells, take, [row])
    if launch.bins is not None:
        log.add_bins(row, launch.bins)


def add_found(call: Call, found: NDArray[np.int64], repeats: Repeats) -> None:
    """Add to the row of a call what its kernel found, as COUNTED, in a row for each time that it ran."""
    assert call.row is not None, "nobody counts"
    n = len(COUNTERS)
    # The greatest of distances from infinity is that of the least magnitude.
    counts, magnitudes = found[:, :n], [int(word) for word in found[:, n:ANSWERS_AT].max(axis=0)]
    if call.operands is not None:
        give_back(counts, found[:, ANSWERS_AT:LOSSES_AT], call.operands)
    # Kernels always count inexact results; unless asked for, they are left out.
    if not call.inexact:
        counts[:, -1] = 0
    largest, below_inf = _towards_zero32(magnitudes[0]), magnitudes[1]
    # Kept as a distance from infinity, so that cells of zeros say: none seen.
    # Of both pairs one was written.
    smallest = _towards_zero32(INF64 - below_inf) if below_inf else np.inf
    largest = max(largest, value32(magnitudes[2]))
    smallest = min(smallest, value32(INF32 - magnitudes[3]))
    stamp, step = repeats.first(counts > 0, call.stamp, call.step)
    call.row.add(counts.sum(axis=0), largest, smallest, stamp=stamp, step=step)
    lose(call, found[:, LOSSES_AT:], repeats)


def give_back(counts: NDArray[np.int64], answers: NDArray[np.int64], operands: Operands) -> None:
    """Count as born here what arrived as NaN or infinite and was no operand's.

    A row for each time the launch ran. The answers are how many were passed on, of elementwise operands; of others
    whether any had one.
    """
    born = ("nan_produced", "divide_by_zero" if operands.has_poles else "overflow")
    for old, new, answer in zip(("nan_propagated", "inf_propagated"), born, answers.T, strict=True):
        i, j = COUNTERS.index(old), COUNTERS.index(new)
        passed_on = answer if operands.are_elementwise else counts[:, i] * (answer > 0)
        moved = np.maximum(counts[:, i] - passed_on, 0)
        counts[:, i] -= moved
        counts[:, j] += moved


def _towards_zero32(bits: int) -> float:
    """Return a finite float64 magnitude, given by its bits, rounded to float32 toward zero."""
    if bits >= MIN_NORMAL32:
        narrow = min((bits >> 29) - REBIAS32, LARGEST32)
    else:
        biased = max(bits >> 52, 1)
        significand = bits - ((biased - 1) << 52)
        narrow = significand >> (926 - biased)
    return value32(narrow)


def value32(bits: int) -> float:
    """Return the float32 of the bits."""
    return float(np.int32(bits).view(np.float32))


def signed(word: int) -> int:
    """Return a 64-bit word as the int64 of the same bits."""
    return word - 2**64 if word >= 2**63 else word
