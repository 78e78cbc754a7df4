"""The launches of the kernels of ordered sums: which arithmetic serves, the passes, the counting after them.

    pass 1   x (rows, n)          -> partial sums (rows, chunks)
    pass 2   partial sums         -> fewer of them
    ...                           -> (rows, 1)

The passes of a sum share a Job: calls, counters, and what is compiled in. Each walks what the one before it wrote.
Importing it needs Triton.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from normstab.numerics.accumulate import SumCalls
from normstab.numerics.call import Call
from normstab.numerics.kernels.cuda.cuda_tensors import NAMES, table64
from normstab.numerics.kernels.cuda.device_log import Cells, log_of, multiprocessors
from normstab.numerics.kernels.cuda.float32_exact import WIDEST_TARGET
from normstab.numerics.kernels.cuda.float32_tensors import computes_sums32, table_of_results32
from normstab.numerics.kernels.cuda.launches import add_found, signed
from normstab.numerics.kernels.cuda.sums.ordered_kernel import SITES, ordered_kernel
from normstab.numerics.kernels.cuda.sums.ordered_steps import How
from normstab.numerics.kernels.cuda.sums.products_kernel import products_kernel
from normstab.numerics.kernels.cuda.sums.sum_passes import Pass, Walk, WalkedAxes
from normstab.numerics.kernels.format_table import contains_dtype
from normstab.numerics.philox import field_width
from normstab.numerics.readable.losses import half_of_precision
from normstab.numerics.readable.reference import layout
from normstab.numerics.tallies.counter_row import HISTOGRAM_BINS
from normstab.numerics.tallies.repeats import Repeats
from normstab.numerics.tallies.tally import COUNTERS

__all__ = ["Job", "Tile", "job_of", "run_passes", "settle_job", "tile_of_sums"]

# Open sums of a program: of one lane each, where there are many; where there are few; of several lanes.
CHAINS, FEW_CHAINS, JOINED = 64, 32, 512
A_WARP, MOST_WARPS = 32, 8
FEW_REGISTERS, MANY_REGISTERS = 128, 224  # with which nothing spills
BUSY = 4  # programs for each multiprocessor, below which smaller ones are better
FOLDED = 51  # significand bits up to which float64's sum is rounded to odd, for it is rounded again
NOWHERE = WalkedAxes((), ())
BY_ZERO = COUNTERS.index("divide_by_zero")
FIRST_ONLY = How.LOADS | How.FUSED


class Job(NamedTuple):
    """What all passes of a sum share: the calls by site, where they count, and what is compiled in."""

    calls: dict[str, Call | None]
    table: Tensor
    counts: Tensor
    cells: Cells | None
    bins: Tensor
    how: int
    told: dict[str, int | Tensor | None]
    dtype: torch.dtype


def run_passes(sources: list[Tensor], walks: list[Walk], passes: list[Pass], job: Job) -> Tensor:
    """Return the sums (rows, chunks of the last pass) of a tensor, or of the products of two, each with its walk."""
    rows, by_rows = walks[0].rows, False
    for i, own in enumerate(passes):
        # Neighbouring rows are neighbours in memory: then a warp
        # reads them together, and so do the passes after it.
        by_rows = rows > 1 and walks[-1].kept.strides[0] == 1
        found = _run(sources, walks, own, job, by_rows=by_rows)
        steps = (1, rows) if by_rows else (own.chunks, 1)
        # What is in the format already is neither cast nor multiplied again.
        job = job._replace(how=job.how & ~FIRST_ONLY) if i == 0 else job
        kept, reduced = WalkedAxes((), steps[:1]), WalkedAxes((), steps[1:])
        sources, walks = [found], [walks[0]._replace(kept=kept, reduced=reduced)]
    return found.view(-1, rows).t() if by_rows else found.view(rows, -1)


def job_of(x: Tensor, at: SumCalls, *, more: int = 0) -> Job:
    """Return what the passes share; a product's call is that of `load`, `more` the bits of How that go with it."""
    dtype = torch.float64 if x.dtype == torch.float64 or not at.add.format.fits_float32 else torch.float32
    calls = dict(zip(SITES, at, strict=True))
    call, rows = at.add, [call.row for call in at if call is not None and call.row is not None]
    has_histogram = any(row.has_histogram for row in rows)
    is_narrow = dtype == torch.float32 and not has_histogram and computes_sums32(x.dtype, call)
    # A fused sum in float32's own 24 bits is none of float32's operations here.
    is_narrow = is_narrow and not (more & How.FUSED and call.format.precision > WIDEST_TARGET)
    table, style = (
        table_of_results32(call.format, call.rounding, x.device)
        if is_narrow
        else (table64(call.format, call.rounding, False, x.device), 0)
    )
    how = field_width(call.rounding.bits) if call.rounding.is_stochastic else 0
    flags = {
        How.DOWN: call.rounding.mode == "down",
        How.NARROW: is_narrow,
        How.WHOLE: is_narrow and call.format.precision > WIDEST_TARGET,
        How.FOLDS: call.format.precision <= FOLDED,
        How.COUNTS: bool(rows),
        How.HISTOGRAM: has_histogram,
        How.LOADS: at.load is not None and not contains_dtype(call.format, NAMES[x.dtype]),
        How.KAHAN: at.kahan is not None,
        How.LOSES: any(row.counts_losses for row in rows),
    }
    how |= more | sum(flag for flag, is_set in flags.items() if is_set) | style * 2**How.STYLE_AT
    sites = len(SITES)
    cells = log_of(x.device).borrow(sites) if rows else None
    # A kernel takes an address in any case; where nothing counts it is not written to.
    counts = torch.empty(1, dtype=torch.int64, device=x.device) if cells is None else cells.counts
    bins = torch.zeros(sites * HISTOGRAM_BINS if has_histogram else 1, dtype=torch.int64, device=x.device)
    told = _drawn(calls, x.device) | {"half": half_of_precision(call.format)}
    return Job(calls, table, counts, cells, bins, how, told, dtype)


def _drawn(calls: dict[str, Call | None], device: torch.device) -> dict[str, int | Tensor | None]:
    """Return the words of Philox of additions and loads, zeros where nothing is drawn; where lies how much later."""
    words: dict[str, int | Tensor | None] = {"later": None}
    for site in ("add", "load"):
        call = calls[site]
        draw = None if call is None else call.draw
        words[f"{site}_word"] = 0 if draw is None else signed(draw.word)
        words[f"{site}_step_word"] = 0 if draw is None else signed(draw.step)
        if draw is not None:
            words["later"] = log_of(device).later
    return words


def _run(sources: list[Tensor], walks: list[Walk], own: Pass, job: Job, *, by_rows: bool) -> Tensor:
    """Run one pass; partial sums lie as their addends do: neighbouring rows beside each other, or else chunks."""
    source, walk, bits = sources[0], walks[0], layout(sources[0].dtype)
    rows, chunks, is_narrow = walk.rows, own.chunks, bool(job.how & How.NARROW)
    target = torch.empty(rows * chunks, dtype=job.dtype, device=source.device)
    tile = tile_of_sums(rows * chunks, own.lanes, source.device, is_narrow=is_narrow)
    indices = (walk.kept_index, walk.reduced_index) if job.how & How.WIDTHS else (NOWHERE, NOWHERE)
    axes: tuple[object, ...] = (walk.kept, walk.reduced, *indices)
    if len(walks) > 1:
        axes = (tuple(each.kept for each in walks), tuple(each.reduced for each in walks), indices[1])
    kernel = ordered_kernel if len(walks) == 1 else products_kernel
    kernel[(-(-rows * chunks // tile.rows),)](
        *(each.view(bits.integer) for each in sources), target.view(layout(job.dtype).integer), job.table,
        job.counts, job.bins, rows, own.n, chunks, own.chunk_step, own.span, own.step, own.lanes, own.leaf_step,
        *axes, *((1, rows) if by_rows else (chunks, 1)), **job.told,
        DIGITS=bits.fraction_bits, BIAS=bits.bias, HOW=tl.constexpr(job.how), BY_ROWS=by_rows,
        IS_LONG=own.n + own.step * own.lanes >= 2**31, ROWS=tile.rows, LANES=tile.lanes,
        LEVELS=tile.lanes.bit_length() - 1, num_warps=tile.num_warps, maxnreg=tile.maxnreg, enable_fp_fusion=False,
    )  # fmt: skip
    return target


class Tile(NamedTuple):
    """The rows and the lanes of a tile, powers of two; the warps that share it; the registers that a thread may take.

    The last two are what Triton's compiler takes by these names.
    """

    rows: int
    lanes: int
    num_warps: int
    maxnreg: int


def tile_of_sums(chains: int, lanes: int, device: torch.device, *, is_narrow: bool) -> Tile:
    """Return the tile for so many rows and chunks: open sums of 64 bits take twice the registers."""
    width = 1 << (lanes - 1).bit_length()
    if width == 1:
        rows = CHAINS if chains >= BUSY * CHAINS * multiprocessors(device) else FEW_CHAINS
        return Tile(rows, 1, rows // A_WARP, FEW_REGISTERS)
    sums = JOINED if is_narrow else JOINED // 2
    rows = max(min(sums // width, 1 << (chains - 1).bit_length()), 1)
    warps = max(rows * width * MOST_WARPS // sums, 1)
    return Tile(rows, width, warps, FEW_REGISTERS if is_narrow else MANY_REGISTERS)


def settle_job(job: Job, known: dict[str, int]) -> None:
    """Have what all passes count added to the rows of the calls, before those are read.

    How many additions there were is `known`; how many addends were cast, the kernel counts as divisions by zero.
    """
    if job.cells is None:
        return
    counting = [(i, call) for i, call in enumerate(job.calls.values()) if call is not None and call.row is not None]

    def take(found: NDArray[np.int64], repeats: Repeats) -> None:
        for i, call in counting:
            # Nothing is divided in a sum, which leaves that counter to say how many addends were cast.
            found[:, i, 0] = known.get(SITES[i], found[:, i, BY_ZERO])
            found[:, i, BY_ZERO] = 0
            if found[:, i, 0].any():
                add_found(call, found[:, i], repeats)

    log = log_of(job.counts.device)
    log.take_back(job.cells, take, [call.row for _, call in counting if call.row is not None])
    if job.how & How.HISTOGRAM:
        for i, call in counting:
            if call.row is not None and call.row.has_histogram:
                log.add_bins(call.row, job.bins.view(len(SITES), -1)[i])
