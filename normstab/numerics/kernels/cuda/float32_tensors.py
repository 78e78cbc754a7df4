"""Which calls the CUDA kernels in float32 serve, and their launch. Importing this needs Triton.

What is not served here cuda_tensors computes in float64: float64 tensors, histograms, `wrap`, and of the operations
targets wider than 22 bits and more random bits than WIDEST_DRAWN has. Nothing here looks at what a tensor holds.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.formats import AnyFormat, FixedFormat
from normstab.numerics.kernels.cuda.cuda_kernels import CODES
from normstab.numerics.kernels.cuda.device_log import multiprocessors
from normstab.numerics.kernels.cuda.float32_events import MOST_TILES
from normstab.numerics.kernels.cuda.float32_exact import WIDEST_DRAWN, WIDEST_TARGET
from normstab.numerics.kernels.cuda.float32_kernels import pointwise32_kernel, round32_kernel
from normstab.numerics.kernels.cuda.launches import Launch
from normstab.numerics.kernels.format_table import PLAN, contains_dtype, plan
from normstab.numerics.kernels.shortcut_table import GENERIC, LANE32
from normstab.numerics.kernels.strides import Axes
from normstab.numerics.precision import Rounding

__all__ = [
    "MOST_OPERANDS",
    "computes32",
    "computes_sums32",
    "launch_pointwise32",
    "launch_round32",
    "programs32",
    "rounds32",
    "serves32",
    "table32",
    "table_of_results32",
    "tile_of",
]

# Elements of a tile: eight for each thread of four warps. Programs for each multiprocessor: what one holds at a time.
BLOCK32, RESIDENT = 1024, 8
# By dtype: its fraction bits, its name, and the integer of its size.
DTYPES32 = {
    torch.float16: (10, "float16", torch.int16),
    torch.bfloat16: (7, "bfloat16", torch.int16),
    torch.float32: (23, "float32", torch.int32),
}
STYLE = PLAN.index("style")
# The least quantum of a target: two bits above float32's least subnormal, so that an odd result rounds on.
LEAST_QUANTUM = -147
WHOLE_DIGITS, WHOLE_EMIN = 24, -126  # of float32 itself
MOST_OPERANDS = 3
MOST_ELEMENTS = 2**31 - 1  # strides and sizes of axes are 32 bits wide


def rounds32(x: Tensor, call: Call) -> bool:
    """Whether a cast of `x` is served."""
    return x.dtype in DTYPES32 and _is_simple(call)


def computes32(operation: str, tensors: list[Tensor], call: Call, target: Tensor) -> bool:
    """Whether an operation is served: on float32 alone, whatever the operands hold."""
    is_float32 = all(x.dtype == torch.float32 for x in (*tensors, target)) and target.numel() <= MOST_ELEMENTS
    return is_float32 and serves32(operation, call)


def serves32(operation: str, call: Call) -> bool:
    """Whether results of float32 numbers can be rounded in float32: those of a cast or an operation."""
    format = call.format
    if operation == "cast" or not _is_simple(call):
        return _is_simple(call)
    if _asks_more(WIDEST_DRAWN[operation], format, call.rounding):
        return False
    least = -format.fraction_bits if isinstance(format, FixedFormat) else format.emin - format.precision + 1
    return format.precision <= WIDEST_TARGET and least >= LEAST_QUANTUM


def computes_sums32(dtype: torch.dtype, call: Call) -> bool:
    """Whether the additions of sums of a dtype are served: as `computes32`, and float32's own to nearest."""
    format = call.format
    if dtype not in DTYPES32 or not _is_simple(call) or _asks_more(WIDEST_DRAWN["add"], format, call.rounding):
        return False
    if isinstance(format, FixedFormat):
        return format.precision <= WIDEST_TARGET and -format.fraction_bits >= LEAST_QUANTUM
    if (format.precision, format.emin, format.has_subnormals) == (WHOLE_DIGITS, WHOLE_EMIN, True):
        # With float32's own 24 bits no odd result can be rounded
        # on: the processor's sum is the rounding, to nearest.
        return call.rounding.mode == "nearest"
    return format.precision <= WIDEST_TARGET and format.emin - format.precision + 1 >= LEAST_QUANTUM


def _asks_more(bits: int, format: AnyFormat, rounding: Rounding) -> bool:
    """Whether stochastic rounding looks at more than the first `bits` of a result: the format's and the random ones."""
    return rounding.is_stochastic and format.precision + rounding.bits > bits


def _is_simple(call: Call) -> bool:
    """Whether a call neither fills a histogram nor wraps."""
    return (call.row is None or not call.row.has_histogram) and call.format.overflow != "wrap"


def launch_round32(x: Tensor, out: Tensor, call: Call, launch: Launch) -> None:
    """Round `x` into `out`, both dense and in one order."""
    digits, name, integer = DTYPES32[x.dtype]
    copies = contains_dtype(call.format, name)
    table, style = table32(call.format, call.rounding, copies, x.device)
    n, begin, *drawn = launch.place
    round32_kernel[programs32(n - begin, x.device, tile=BLOCK32)](
        x.view(integer),
        out.view(integer),
        table,
        launch.counts,
        n,
        begin,
        *drawn,
        DIGITS=digits,
        COPIES=copies,
        STYLE=style,
        BLOCK=BLOCK32,
        **launch.options,
    )


def launch_pointwise32(
    operation: str, tensors: list[Tensor], axes: Axes, call: Call, launch: Launch, *, target: Tensor
) -> None:
    """Compute an operation into `target`, which is dense; `axes` are those of the operands."""
    tile, missing = tile_of(operation), MOST_OPERANDS - len(tensors)
    table, style = table_of_results32(call.format, call.rounding, target.device)
    n, begin, *drawn = launch.place
    pointwise32_kernel[programs32(n - begin, target.device, tile=tile)](
        target.view(torch.int32),
        *(x.view(torch.int32) for x in (*tensors, *tensors[:1] * missing)),
        table,
        launch.counts,
        n,
        begin,
        *drawn,
        *axes.sizes[1:],
        *(step for steps in (*axes.strides, *axes.strides[:1] * missing) for step in steps),
        OPERATION=CODES[operation],
        ROUNDS_DOWN=call.rounding.mode == "down",
        STYLE=style,
        FLAT=axes.sizes[:2] == (1, 1) and all(steps[2] == 1 for steps in axes.strides),
        BLOCK=tile,
        **launch.options,
    )


def tile_of(operation: str) -> int:
    """Return the elements of a tile: half as many where the steps of an operation would take all registers."""
    return BLOCK32 // 2 if operation in ("div", "fma") else BLOCK32


def programs32(n: int, device: torch.device, *, tile: int) -> tuple[int]:
    """Return the grid for `n` elements: what the device holds at a time, more where a cell would run over."""
    tiles = (n + tile - 1) // tile
    return (max(min(tiles, RESIDENT * multiprocessors(device)), (tiles + MOST_TILES - 1) // MOST_TILES),)


def table_of_results32(format: AnyFormat, rounding: Rounding, device: torch.device) -> tuple[Tensor, int]:
    """Return what `table32` does for results of an operation, which have more bits than a shortcut may look at."""
    table, style = table32(format, rounding, False, device)
    return table, GENERIC if _asks_more(WHOLE_DIGITS, format, rounding) else style


@cache
def table32(format: AnyFormat, rounding: Rounding, copies: bool, device: torch.device) -> tuple[Tensor, int]:
    """Return the plan of lane 32 on a device, to which nothing writes, and its shortcut."""
    words = plan(format, rounding, LANE32, copies=copies)
    return torch.tensor(words.astype("uint32").view("int32"), device=device), int(words[STYLE])
