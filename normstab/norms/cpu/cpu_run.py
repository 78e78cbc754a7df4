"""Run the fused numba kernels of a layer: their environment per thread, and the ledger.

    memory of a thread   [ fields | addresses of tensors, contexts, buffers | values | block | lanes | ... ]

    groups               [ thread 0 takes these ][ thread 1 these ]          a group is never divided

Threads share the tensors and nothing else, so that a result depends on no number of threads; what each counted is
added up at the end. Importing this needs numba.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.norms.cpu.backward_kernel import backward_groups
from normstab.norms.cpu.environment import SLOTS, read_marks
from normstab.norms.cpu.forward_kernel import forward_groups
from normstab.norms.cpu.group_sums import LEVELS
from normstab.norms.fused.layer_table import BLOCK, FIELDS
from normstab.norms.fused.plan_of_layer import Layer
from normstab.numerics.call import Call
from normstab.numerics.kernels.cpu.sums.steps import CONTEXT, contexts, rows_of, settle_all
from normstab.numerics.kernels.cpu.threads import run_chunks
from normstab.numerics.kernels.cpu.workspace import address_of
from normstab.numerics.kernels.format_table import plan
from normstab.numerics.kernels.shortcut_table import LANE32

__all__ = ["Counting", "Room", "Told", "pieces_of", "run_backward", "run_forward", "run_pieces", "slots_of"]

# Values below which waking a thread takes longer than the work.
SERIAL_BELOW = 16384
LINE = 8  # int64 of a cache line
N, WIDTH = FIELDS.index("n"), FIELDS.index("width")
AT_CONTEXTS = SLOTS.index("contexts")


def run_forward(layer: Layer, groups: int, tensors: Mapping[str, Tensor | None]) -> None:
    """Fill z, mean, scale, reciprocal, stored, members and signs from x, gamma and beta, for every group."""
    run(forward_groups, layer, groups, tensors)


def run_backward(layer: Layer, groups: int, tensors: Mapping[str, Tensor | None]) -> None:
    """Fill dx, d_gamma and d_beta, or product and grad_cast, from grad and what the forward pass left."""
    run(backward_groups, layer, groups, tensors)


def run(
    kernel: Callable[[int, int, int], None], layer: Layer, groups: int, tensors: Mapping[str, Tensor | None]
) -> None:
    """Run `kernel` on every group of the layer's `tensors`, named as SLOTS, and settle what it counted."""
    table = plan(layer.ar.precision.format(), layer.ar.precision.rounding, LANE32)
    shared = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
    shared |= {"table": table.ctypes.data, "constants": layer.constants.ctypes.data}
    calls = layer.sites.calls
    room = Room(int(layer.fields[N]), int(layer.fields[WIDTH]), len(calls))
    told = Told(layer.fields, slots_of(shared), room)
    pieces = pieces_of(groups, room.n)
    run_pieces(kernel, pieces, told, Counting(contexts(calls, len(pieces)), rows_of(calls), calls))


class Room(NamedTuple):
    """How much memory a thread needs: values of a group, lanes, sites; blocks, rows that stay of a group, open sums."""

    n: int
    width: int
    sites: int
    blocks: int = 6
    kept: int = 1
    streams: int = 4
    numbers: int = 0


class Told(NamedTuple):
    """What every thread is told: the fields, an address for each slot that has one, its room, and its first numbers."""

    fields: NDArray[np.int64]
    slots: NDArray[np.int64]
    room: Room
    numbers: NDArray[np.int64] | None = None


class Counting(NamedTuple):
    """Where a run counts: contexts for each piece and site, the rows of the ledger, the calls whose losses are asked.

    See `sums.steps`.
    """

    contexts: NDArray[np.int64]
    rows: NDArray[np.int64]
    calls: Sequence[Call | None]


def slots_of(addresses: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the slots with these addresses in them."""
    return np.array([addresses.get(name, 0) for name in SLOTS], np.int64)


def pieces_of(groups: int, n: int) -> list[tuple[int, int]]:
    """Return the first and last group, this one excluded, of each thread's piece of groups of `n` values."""
    pieces = min(torch.get_num_threads() if groups * n >= SERIAL_BELOW else 1, groups)
    return [(groups * i // pieces, groups * (i + 1) // pieces) for i in range(pieces)]


def run_pieces(
    kernel: Callable[[int, int, int], None],
    pieces: Sequence[tuple[int, int]],
    told: Told,
    counting: Counting,
) -> None:
    """Run `kernel` on pieces of all groups, and settle what it counted."""
    made, rows, calls = counting
    at, size, rows_at = address_of(made), 8 * CONTEXT * len(rows), address_of(rows)
    environments = [environment(told, at + size * i, rows_at, len(rows)) for i in range(len(pieces))]
    starts = [address_of(memory) for memory in environments]

    def work(i: int) -> None:
        kernel(starts[i], *pieces[i])

    run_chunks(work, len(pieces))
    settle_all(made, calls, rows)


def environment(told: Told, contexts_at: int, rows_at: int, sites: int) -> NDArray[np.int64]:
    """Return the row of one thread: the fields, an address in every slot, and after them the buffers."""
    offsets, size, own, begins = layout(told.room)
    memory = np.empty(size, np.int64)
    start, fields = address_of(memory), len(told.fields)
    slots = memory[fields : fields + len(SLOTS)]
    memory[:fields], slots[:] = told.fields, told.slots
    slots[own] = begins + start
    slots[AT_CONTEXTS] = contexts_at
    memory[offsets["drawn"] :][: BLOCK // 2] = 0  # for roundings that draw nothing
    if told.numbers is not None:
        memory[offsets["numbers"] :][: len(told.numbers)] = told.numbers
    read_marks(rows_at, sites, start + 8 * offsets["marks"])
    return memory


@lru_cache(maxsize=256)
def layout(room: Room) -> tuple[dict[str, int], int, NDArray[np.int64], NDArray[np.int64]]:
    """Return the offset of each buffer in the memory of a thread, and its size, in int64; buffers begin cache lines.

    Then the slots of the buffers, and their offsets in bytes.
    """
    # Lanes, or the stack of a pairwise tree: one buffer holds either.
    width = max(room.width, LEVELS)
    # Numbers of 4 bytes, two to an int64, and of 8 bytes.
    narrow = {"values": room.kept * room.n, "block": room.blocks * BLOCK, "found": BLOCK}
    narrow |= {"drawn": BLOCK, "words": BLOCK + 16, "lanes": room.streams * width, "before": width}
    wide = {"p": BLOCK, "q": BLOCK, "exact": BLOCK, "rounded": BLOCK, "state": 2 * room.streams}
    wide |= {"partial": room.streams * width, "leaves": room.streams * width, "marks": room.sites}
    wide |= {"numbers": room.numbers}
    offsets, end = {}, len(FIELDS) + len(SLOTS)
    for name, size in ({name: -(-size // 2) for name, size in narrow.items()} | wide).items():
        offsets[name] = -(-end // LINE) * LINE
        end = offsets[name] + size
    own = np.array([SLOTS.index(name) for name in offsets], np.int64)
    return offsets, end, own, 8 * np.array(list(offsets.values()), np.int64)
