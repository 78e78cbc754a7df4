"""Run the fused numba kernels of a layer: their environment per thread, and the ledger.

    memory of a thread   [ fields | addresses of tensors, contexts, buffers | values | kept | block | lanes | ... ]

    groups               [ thread 0 takes these ][ thread 1 these ]          a group is never divided

Threads share the tensors and nothing else, so that a result depends on no number of threads; what each counted is
added up at the end. Importing this needs numba.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstab.norms.cpu.backward_kernel import backward_groups
from normstab.norms.cpu.environment import SLOTS, read_marks
from normstab.norms.cpu.forward_kernel import forward_groups
from normstab.norms.cpu.group_sums import LEVELS
from normstab.norms.fused.coverage import BLOCK
from normstab.norms.fused.launch import Layer
from normstab.norms.fused.plan_of_layer import FIELDS
from normstab.numerics.kernels.cpu.sums.steps import contexts, rows_of, settle_all
from normstab.numerics.kernels.cpu.threads import run_chunks
from normstab.numerics.kernels.format_table import LANE32, plan

__all__ = ["run_backward", "run_forward"]

# Values below which waking a thread takes longer than the work.
SERIAL_BELOW = 16384
LINE = 8  # int64 of a cache line
N, WIDTH = FIELDS.index("n"), FIELDS.index("width")
STREAMS = 5


def run_forward(layer: Layer, groups: int, tensors: Mapping[str, Tensor | None]) -> None:
    """Normalize every group; see `launch.Runner`."""
    run(forward_groups, layer, groups, tensors)


def run_backward(layer: Layer, groups: int, tensors: Mapping[str, Tensor | None]) -> None:
    """Write the gradients of every group; see `launch.Runner`."""
    run(backward_groups, layer, groups, tensors)


def run(
    kernel: Callable[[int, int, int], None], layer: Layer, groups: int, tensors: Mapping[str, Tensor | None]
) -> None:
    """Run `kernel` on every group of the layer's `tensors`, named as SLOTS, and settle what it counted."""
    calls = layer.sites.calls
    threads = torch.get_num_threads() if groups * int(layer.fields[N]) >= SERIAL_BELOW else 1
    pieces = min(threads, groups)
    bounds = [groups * i // pieces for i in range(pieces + 1)]
    made, rows = contexts(calls, pieces), rows_of(calls)
    table = plan(layer.ar.precision.format(), layer.ar.precision.rounding, LANE32)
    shared = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
    shared |= {"table": table.ctypes.data, "constants": layer.constants.ctypes.data}
    environments = [environment(layer, shared | {"contexts": made[i].ctypes.data}, rows) for i in range(pieces)]

    def work(i: int) -> None:
        kernel(environments[i].ctypes.data, bounds[i], bounds[i + 1])

    run_chunks(work, pieces)
    settle_all(made, calls, rows)


def environment(layer: Layer, addresses: Mapping[str, int], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row of one thread: the fields, an address in every slot, and after them the buffers."""
    offsets, size = layout(int(layer.fields[N]), int(layer.fields[WIDTH]), len(rows))
    memory = np.empty(size, np.int64)
    start, slots = memory.ctypes.data, len(layer.fields)
    memory[:slots] = layer.fields
    memory[slots : slots + len(SLOTS)] = [
        start + 8 * offsets[name] if name in offsets else addresses.get(name, 0) for name in SLOTS
    ]
    memory[offsets["drawn"] :][: BLOCK // 2] = 0  # for roundings that draw nothing
    read_marks(rows.ctypes.data, len(rows), start + 8 * offsets["marks"])
    return memory


@lru_cache(maxsize=256)
def layout(n: int, width: int, sites: int) -> tuple[dict[str, int], int]:
    """Return the offset of each buffer in the memory of a thread, and its size, in int64; buffers begin cache lines."""
    # Lanes, or the stack of a pairwise tree: one buffer holds either.
    width = max(width, LEVELS)
    # Numbers of 4 bytes, two to an int64, and of 8 bytes.
    narrow = {"values": n, "kept": n, "block": 6 * BLOCK, "found": BLOCK, "drawn": BLOCK, "words": BLOCK + 16}
    narrow |= {"lanes": STREAMS * width, "before": width}
    wide = {"p": BLOCK, "q": BLOCK, "exact": BLOCK, "rounded": BLOCK, "state": 2 * STREAMS}
    wide |= {"partial": STREAMS * width, "leaves": STREAMS * width, "marks": sites}
    offsets, end = {}, len(FIELDS) + len(SLOTS)
    for name, size in ({name: -(-size // 2) for name, size in narrow.items()} | wide).items():
        offsets[name] = -(-end // LINE) * LINE
        end = offsets[name] + size
    return offsets, end
