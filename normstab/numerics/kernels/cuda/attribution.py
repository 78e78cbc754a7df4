"""Whose is a NaN or an infinity: of what was computed, or of an operand? Asked on the device, where nobody waits.

    counts of a launch    [ count overflow ... nan_propagated inf_propagated ... | answer: NaN | answer: inf ]
                                                  read first ^^^^                   written last ^^^^

A program reads how many NaNs and infinities arrived at the rounding, and ends there if there were none: operands are
read only where something broke. What the answers mean is in `launches.give_back`. Importing this needs Triton.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from normstab.numerics.call import Operands
from normstab.numerics.kernels.cuda.device_log import ANSWERS_AT, LOSSES_AT, Take, log_of, multiprocessors
from normstab.numerics.kernels.strides import align, is_dense
from normstab.numerics.ledger import Ledger, Row
from normstab.numerics.readable.reference import layout
from normstab.numerics.tallies.tally import COUNTERS
from normstab.torch_private import modes_off

__all__ = ["ask", "keep", "keep_specials"]

# Elements that a program takes at a time; programs for each multiprocessor.
BLOCK, RESIDENT = 1024, 4
# The bits of an infinity, by dtype, and of a magnitude.
INFINITIES = {
    torch.float16: (31 << 10, 2**15 - 1),
    torch.bfloat16: (255 << 7, 2**15 - 1),
    torch.float32: (255 << 23, 2**31 - 1),
    torch.float64: (2047 << 52, 2**63 - 1),
}
MOST_OPERANDS = 3
NAN_AT, INF_AT = COUNTERS.index("nan_propagated"), COUNTERS.index("inf_propagated")
NANS, INFS = tl.constexpr(NAN_AT), tl.constexpr(INF_AT)
NAN_ANSWER, INF_ANSWER = tl.constexpr(ANSWERS_AT), tl.constexpr(ANSWERS_AT + 1)


@triton.jit
def special(source, offsets, inside, INF: tl.constexpr, MAGNITUDE: tl.constexpr):
    """Return where numbers, given by their bits, are NaN, and where infinite."""
    a = tl.load(source + offsets, mask=inside, other=0).to(tl.int64) & MAGNITUDE
    return a > INF, a == INF


@triton.jit
def number_of(counts):
    """Return how many NaNs and infinities arrived."""
    return tl.load(counts + NANS) + tl.load(counts + INFS)


@triton.jit(do_not_specialize=["n"])
def any_kernel(
    source, counts, n: tl.int64, rows, columns, slow_step, middle_step, fast_step,
    INF: tl.constexpr, MAGNITUDE: tl.constexpr, IS_RESULT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Answer 1 where an operand has a NaN, and where an infinity; IS_RESULT: count them as what arrived, unasked."""
    # The launch is unconditional, its work is not: the host never waits to learn whether anything broke.
    if IS_RESULT or number_of(counts) > 0:
        nans, infs = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
        n = n.to(tl.int64)
        for start in range(tl.program_id(0).to(tl.int64) * BLOCK, n, tl.num_programs(0) * BLOCK):
            index = start + tl.arange(0, BLOCK)
            row, fast = index // columns, index % columns
            offsets = (row // rows) * slow_step + (row % rows) * middle_step + fast * fast_step
            is_nan, is_inf = special(source, offsets, index < n, INF, MAGNITUDE)
            nans += tl.sum(is_nan.to(tl.int64), axis=0)
            infs += tl.sum(is_inf.to(tl.int64), axis=0)
        if IS_RESULT:
            tl.atomic_add(counts + NANS, nans, mask=nans > 0, sem="relaxed")
            tl.atomic_add(counts + INFS, infs, mask=infs > 0, sem="relaxed")
        else:
            # An answer is yes or no, however many operands say it.
            tl.atomic_max(counts + NAN_ANSWER, nans * 0 + 1, mask=nans > 0, sem="relaxed")
            tl.atomic_max(counts + INF_ANSWER, infs * 0 + 1, mask=infs > 0, sem="relaxed")


@triton.jit(do_not_specialize=["n"])
def each_kernel(
    result, first, second, third, counts, n: tl.int64, rows, columns,
    first_slow, first_middle, first_fast,
    second_slow, second_middle, second_fast,
    third_slow, third_middle, third_fast,
    INF: tl.constexpr, MAGNITUDE: tl.constexpr,
    FIRST_INF: tl.constexpr, FIRST_MAGNITUDE: tl.constexpr,
    SECOND_INF: tl.constexpr, SECOND_MAGNITUDE: tl.constexpr,
    THIRD_INF: tl.constexpr, THIRD_MAGNITUDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Answer how many NaNs of a dense result stand where an operand has one, and how many infinities likewise.

    An operand that there is not is the first one again.
    """
    if number_of(counts) > 0:
        nans, infs = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
        n = n.to(tl.int64)
        for start in range(tl.program_id(0).to(tl.int64) * BLOCK, n, tl.num_programs(0) * BLOCK):
            index = start + tl.arange(0, BLOCK)
            inside = index < n
            row, fast = index // columns, index % columns
            slow, middle = row // rows, row % rows
            is_nan, is_inf = special(result, index, inside, INF, MAGNITUDE)
            at = slow * first_slow + middle * first_middle + fast * first_fast
            a_nan, a_inf = special(first, at, inside, FIRST_INF, FIRST_MAGNITUDE)
            at = slow * second_slow + middle * second_middle + fast * second_fast
            b_nan, b_inf = special(second, at, inside, SECOND_INF, SECOND_MAGNITUDE)
            at = slow * third_slow + middle * third_middle + fast * third_fast
            c_nan, c_inf = special(third, at, inside, THIRD_INF, THIRD_MAGNITUDE)
            nans += tl.sum((is_nan & (a_nan | b_nan | c_nan)).to(tl.int64), axis=0)
            infs += tl.sum((is_inf & (a_inf | b_inf | c_inf)).to(tl.int64), axis=0)
        tl.atomic_add(counts + NAN_ANSWER, nans, mask=nans > 0, sem="relaxed")
        tl.atomic_add(counts + INF_ANSWER, infs, mask=infs > 0, sem="relaxed")


def ask(counts: Tensor, result: Tensor, operands: Operands) -> None:
    """Write the answers into the counts of the launch that rounded `result`."""
    with modes_off(), torch.cuda.device_of(result):
        if operands.are_elementwise:
            _ask_each(counts, result, operands.tensors)
            return
        for x in operands.tensors:
            if x.device != counts.device or not _launch_any(x.detach(), counts):
                _answer(counts, x.isnan().any(), x.isinf().any())


def _ask_each(counts: Tensor, result: Tensor, operands: tuple[Tensor, ...]) -> None:
    """Answer for elements that depend on those at their place; torch does where the kernel cannot, reading all."""
    if not operands:
        return
    tensors = [x.detach() for x in operands]
    axes = None
    is_of_device = all(_is_read(x) and x.device == result.device for x in (result, *tensors))
    if len(tensors) <= MOST_OPERANDS and is_of_device and is_dense(result):
        axes = align(tensors, result)
    if axes is None:
        nans, infs = (torch.zeros_like(result, dtype=torch.bool) for _ in range(2))
        for x in tensors:
            nans |= x.isnan()
            infs |= x.isinf()
        _answer(counts, (result.isnan() & nans).sum(), (result.isinf() & infs).sum())
        return
    missing = MOST_OPERANDS - len(tensors)
    tensors += tensors[:1] * missing
    words = [word for x in (result, *tensors) for word in INFINITIES[x.dtype]]
    steps = [step for strides in axes.strides + axes.strides[:1] * missing for step in strides]
    bits = [x.view(layout(x.dtype).integer) for x in (result, *tensors)]
    each_kernel[_programs(result)](*bits, counts, result.numel(), *axes.sizes[1:], *steps, *words, BLOCK)


def _answer(counts: Tensor, nan: Tensor, inf: Tensor) -> None:
    """Add to the answers what torch found."""
    counts.view(-1)[ANSWERS_AT:LOSSES_AT].add_(torch.stack([nan, inf]).to(counts.device, non_blocking=True))


def _launch_any(x: Tensor, counts: Tensor, *, is_result: bool = False) -> bool:
    """Look through `x` on the device; False: the kernel does not read it."""
    axes = align([x], x) if _is_read(x) else None
    if axes is None:
        return False
    inf, magnitude = INFINITIES[x.dtype]
    bits = x.view(layout(x.dtype).integer)
    any_kernel[_programs(x)](
        bits, counts, x.numel(), *axes.sizes[1:], *axes.strides[0], inf, magnitude, is_result, BLOCK
    )
    return True


def _is_read(x: Tensor) -> bool:
    """Whether the kernels read a tensor where it lies."""
    return x.dtype in INFINITIES and x.layout is torch.strided and not x.is_neg() and x.numel() > 0


def _programs(x: Tensor) -> tuple[int]:
    """Return a grid that costs little where there is nothing to look for, and fills the device where there is."""
    return (min(-(-x.numel() // BLOCK), RESIDENT * multiprocessors(x.device)),)


def keep(number: Tensor, take: Take, asked_by: Sequence[Row | Ledger]) -> None:
    """Have `take` called with a whole number of the device, at [:, 0, 0], before `asked_by` are read."""
    log = log_of(number.device)
    with modes_off():
        cells = log.borrow()
        cells.counts[0, 0].copy_(number)
    log.take_back(cells, take, asked_by)


def keep_specials(x: Tensor, operands: Sequence[Any], take: Take, asked_by: Sequence[Row | Ledger]) -> None:
    """Have `take` called with how many NaNs and infinities `x` has, as propagated, and the answers of the operands."""
    log = log_of(x.device)
    with modes_off(), torch.cuda.device_of(x):
        cells = log.borrow()
        counts = cells.counts.view(-1)
        if not _launch_any(x.detach(), counts, is_result=True):
            counts[NAN_AT : INF_AT + 1].copy_(torch.stack([x.isnan().sum(), x.isinf().sum()]))
        ask(counts, x, Operands(tuple(operands)))
    log.take_back(cells, take, asked_by)
