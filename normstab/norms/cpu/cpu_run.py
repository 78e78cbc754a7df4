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
from normstab.numerics.kernels.cpu.sums.steps import contexts, rows_of, settle_all
from normstab.numerics.kernels.cpu.threads import run_chunks
from normstab.numerics.kernels.format_table import plan
from normstab.numerics.kernels.shortcut_table import LANE32

__all__ = ["Room", "Told", "run_backward", "run_forward", "run_pieces"]

# Values below which waking a thread takes longer than the work.
SERIAL_BELOW = 16384
LINE = 8  # int64 of a cache line
N, WIDTH = FIELDS.index("n"), FIELDS.index("width")


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
    run_pieces(kernel, calls, groups, Told(layer.fields, shared, room))


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
    addresses: Mapping[str, int]
    room: Room
    numbers: Sequence[float] = ()


def run_pieces(kernel: Callable[[int, int, int], None], calls: Sequence[Call | None], groups: int, told: Told) -> None:
    """Run `kernel` on all groups, a piece of them per thread, and settle what it counted at the sites of `calls`."""
    threads = torch.get_num_threads() if groups * told.room.n >= SERIAL_BELOW else 1
    pieces = min(threads, groups)
    bounds = [groups * i // pieces for i in range(pieces + 1)]
    made, rows = contexts(calls, pieces), rows_of(calls)
    environments = [environment(told, made[i].ctypes.data, rows) for i in range(pieces)]

    def work(i: int) -> None:
        kernel(environments[i].ctypes.data, bounds[i], bounds[i + 1])

    run_chunks(work, pieces)
    settle_all(made, calls, rows)


def environment(told: Told, contexts_at: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row of one thread: the fields, an address in every slot, and after them the buffers."""
    offsets, size = layout(told.room)
    memory = np.empty(size, np.int64)
    start, slots = memory.ctypes.data, len(told.fields)
    addresses = {"contexts": contexts_at} | {name: start + 8 * offset for name, offset in offsets.items()}
    memory[:slots] = told.fields
    memory[slots : slots + len(SLOTS)] = [addresses.get(name, told.addresses.get(name, 0)) for name in SLOTS]
    memory[offsets["drawn"] :][: BLOCK // 2] = 0  # for roundings that draw nothing
    memory[offsets["numbers"] :][: len(told.numbers)] = np.array(told.numbers, np.float64).view(np.int64)
    read_marks(rows.ctypes.data, len(rows), start + 8 * offsets["marks"])
    return memory


@lru_cache(maxsize=256)
def layout(room: Room) -> tuple[dict[str, int], int]:
    """Return the offset of each buffer in the memory of a thread, and its size, in int64; buffers begin cache lines."""
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
    return offsets, end
