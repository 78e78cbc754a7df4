"""One counted rounding after another: the scalar steps that the kernels of sums and products are chains of.

    context   [ plan of lane 64 | key, step | folds, down, counts | histogram | scratch of 12 | losses of 3 ]    int64

A context is all that a rounding at one site needs: its format and mode, where random bits come from, what to count,
and where (see counting.py). There is one for each site and chunk of work, so that no two threads share one.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from normstab.numerics.call import Call
from normstab.numerics.formats import AnyFormat, FixedFormat
from normstab.numerics.kernels.cpu.bits import INF64, MAGNITUDE64, round64, rule64
from normstab.numerics.kernels.cpu.compile import as_float64, as_int64, device, kernel, outside, view
from normstab.numerics.kernels.cpu.counting import SCRATCH, histogram_bin, round_counted64, settle_scratches
from normstab.numerics.kernels.cpu.philox_cpu import field_of
from normstab.numerics.kernels.format_table import PLAN, plan
from normstab.numerics.kernels.shortcut_table import LANE64
from normstab.numerics.precision import Rounding
from normstab.numerics.readable.losses import counts_losses, half_of_precision, lose
from normstab.numerics.tallies.counter_row import COUNTING

__all__ = [
    "CONTEXT",
    "LOSSES_AT",
    "ROW",
    "add_step",
    "contexts",
    "load_step",
    "read",
    "round_step",
    "rows_of",
    "settle_all",
    "sum_folded",
    "write",
]

# After the plan's fields: Philox key and step; whether a sum's error is folded in by round-to-odd; whether
# exact zeros are -0 (mode down); whether anything is counted; the address of a histogram or 0; the scratch.
KEY = len(PLAN)
STEP, FOLDS, DOWN, COUNTS, HISTOGRAM, SCRATCH_AT = KEY + 1, KEY + 2, KEY + 3, KEY + 4, KEY + 5, KEY + 6
# Where losses are counted: half of the format's precision, else 0; then how many additions absorbed and cancelled.
LOSSES_AT = SCRATCH_AT + SCRATCH
# Length of the context of one chain of steps.
CONTEXT = LOSSES_AT + 3
FIELD_WIDTH = PLAN.index("field_width")
HISTOGRAM_SIZE = 2101
# What FOLDS may say beside 0, no: of every sum, or but for those of two numbers of the format, which float64 holds.
FOLDED, FOLDED_OF_OTHERS = 1, 2
ROW = 4  # int64 that say where one call is counted


def contexts(calls: Sequence[Call | None], chunks: int) -> NDArray[np.int64]:
    """Return fresh contexts (chunks, calls, CONTEXT); a missing call has zeros and is not used."""
    made = np.zeros((chunks, len(calls), CONTEXT), np.int64)
    for i, call in enumerate(calls):
        if call is None:
            continue
        made[0, i] = _context(call.format, call.rounding, call.row is not None)
        if call.draw is not None:
            made[0, i, KEY] = np.uint64(call.draw.word).astype(np.int64)
            made[0, i, STEP] = np.uint64(call.draw.step).astype(np.int64)
        if call.row is not None and call.row.histogram is not None:
            made[0, i, HISTOGRAM] = call.row.histogram.ctypes.data
        if counts_losses(call):
            made[0, i, LOSSES_AT] = half_of_precision(call.format)
    made[1:] = made[0]
    return made


@lru_cache(maxsize=1024)
def _context(format: AnyFormat, rounding: Rounding, counts: bool) -> NDArray[np.int64]:
    """Return the context of a call without random bits or a histogram; do not write to it."""
    made = np.zeros(CONTEXT, np.int64)
    made[:KEY] = plan(format, rounding, LANE64)
    # Up to 51 bits a sum rounded to odd is rounded once more to
    # what the exact one is; wider formats take float64's own.
    made[FOLDS] = FOLDED_OF_OTHERS if _adds_exactly(format) else FOLDED * (format.precision <= 51)
    made[DOWN], made[COUNTS] = rounding.mode == "down", counts
    # The smallest magnitude so far: none.
    made[LOSSES_AT - 1] = INF64
    made.flags.writeable = False
    return made


def _adds_exactly(format: AnyFormat) -> bool:
    """Whether float64 holds the sum of any two numbers of the format."""
    if isinstance(format, FixedFormat):
        return True
    return format.emax + 2 - (format.emin - format.precision + 1) <= 53


def rows_of(calls: Sequence[Call | None]) -> NDArray[np.int64]:
    """Return (calls, ROW): where each call's row lies (0: nobody counts), its stamp and step, and `inexact`."""
    none = (0, 0, 0, 0)
    return np.array(
        [none if c is None or c.row is None else (c.row.address, c.stamp, c.step, c.inexact) for c in calls], np.int64
    )


def settle_all(made: NDArray[np.int64], calls: Sequence[Call | None], rows: NDArray[np.int64] | None = None) -> None:
    """Add what the contexts counted to the rows of the calls; `rows` where `rows_of` them is at hand."""
    rows = rows_of(calls) if rows is None else rows
    with COUNTING:
        settle_contexts(made.ctypes.data, len(made), len(calls), rows.ctypes.data)
    for i, call in enumerate(calls):
        if call is not None and counts_losses(call):
            lose(call, made[:, i, LOSSES_AT + 1 :].sum(0, keepdims=True))


@kernel
def settle_contexts(made, chunks, sites, rows):  # pragma: no cover - compiled
    """Settle the scratches of `sites` sites in `chunks` chunks, both given by address."""
    table = view(rows, ROW * sites, np.int64)
    for i in range(sites):
        row = table[ROW * i]
        if row != 0:
            first = made + 8 * (CONTEXT * i + SCRATCH_AT)
            step = CONTEXT * sites
            settle_scratches(first, chunks, step, row, table[ROW * i + 1], table[ROW * i + 2], table[ROW * i + 3])


@device
def read(address, itemsize, offset):
    """Return element `offset` of a float32 (widened by bits, whatever flush-to-zero says) or float64 memory."""
    if itemsize == 8:
        return view(address, offset + 1, np.float64)[offset]
    bits = np.int64(view(address, offset + 1, np.uint32)[offset])
    biased, fraction = (bits >> 23) & 255, bits & 0x7FFFFF
    if biased == 0:
        value = np.float64(fraction) * as_float64((1023 - 149) << 52)
        return -value if bits >> 31 else value
    # An exponent of all ones stays one.
    exponent = 2047 if biased == 255 else biased + 896
    return as_float64(((bits >> 31) << 63) | (exponent << 52) | (fraction << 29))


@device
def write(address, itemsize, offset, value):
    """Store a float64, which float32 can represent, as float32 (by bits) or float64."""
    if itemsize == 8:
        view(address, offset + 1, np.float64)[offset] = value
        return
    bits = as_int64(value)
    a = bits & MAGNITUDE64
    biased = a >> 52
    narrow = (a >> 29) - (896 << 23)
    if biased <= 896:
        narrow = ((a & (2**52 - 1)) | (1 << 52)) >> min(926 - biased, 63) if biased else 0
    if a >= INF64:
        narrow = 0x7F800000 if a == INF64 else 0x7FC00000
    view(address, offset + 1, np.uint32)[offset] = np.uint32(narrow | ((bits >> 63) & 0x80000000))


@outside
def plain_step(c, drawn, context):  # pragma: no cover - compiled
    """Return c rounded, given its random bits aligned for lane 64, and count nothing."""
    return as_float64(round64(as_int64(c), drawn, rule64(context)))


@outside
def round_step(c, leaf, has_nan, has_inf, context):  # pragma: no cover - compiled
    """Return c, an exact result in float64, rounded and counted; `leaf` indexes its random bits."""
    rule = rule64(context)
    drawn = np.int64(0)
    if rule.field_width != 0:
        drawn = np.int64(field_of(context[KEY], context[STEP], leaf, rule.field_width)) << 30
    bits = as_int64(c)
    if context[COUNTS] == 0:
        return plain_step(c, drawn, context)
    if context[HISTOGRAM] != 0:
        view(context[HISTOGRAM], HISTOGRAM_SIZE, np.int64)[histogram_bin(bits)] += 1
    return as_float64(round_counted64(context[SCRATCH_AT:], bits, drawn, has_nan, has_inf, False, rule))


@device
def folded(s, error):
    """Return s rounded to odd, given its exact error. Source: Boldo and Melquiond 2008."""
    bits = as_int64(s)
    if error == 0.0 or error != error or (bits & MAGNITUDE64) >= INF64 or bits & 1:
        return s
    return as_float64(bits + 1 if (error > 0.0) == (s > 0.0) else bits - 1)


@device
def sum_folded(a, b):
    """Return a + b rounded to odd, so that one more rounding is the only one. Source: Knuth's TwoSum for the error."""
    s = a + b
    b_seen = s - a
    return folded(s, (a - (s - b_seen)) + (b - b_seen))


@outside
def add_step(a, b, leaf, context):
    """Return a + b, rounded once and counted."""
    s = sum_folded(a, b) if context[FOLDS] != 0 else a + b
    # IEEE 754, 6.3: downwards the sum of unlike numbers that cancel is -0.
    if s == 0.0 and context[DOWN] != 0 and (as_int64(a) ^ as_int64(b)) < 0:
        s = -0.0
    return round_step(s, leaf, a != a or b != b, abs(a) == np.inf or abs(b) == np.inf, context)


@outside
def load_step(x, leaf, context):
    """Return addend x in the accumulator format, counted only where it does not fit."""
    drawn = np.int64(0)
    if context[FIELD_WIDTH] != 0:
        drawn = np.int64(field_of(context[KEY], context[STEP], leaf, context[FIELD_WIDTH])) << 30
    # Rounded silently first: nearly every addend fits, which is no event.
    y = plain_step(x, drawn, context)
    if y != x and x == x and context[COUNTS] != 0:
        return round_step(x, leaf, False, abs(x) == np.inf, context)
    return y
