"""Steps of a traced program in Triton, element by element: a walk over memory that does all of them on its way.

    read       x[i], mu[group of i], gamma[parameter of i], a number for all      once
    steps      subtract, divide, multiply, add: each rounded and counted          in registers
    written    z[i], and what a sum or a later walk reads                         once

The steps are compiled in, and nothing else: formats, counters, sizes and numbers are given, so that one kernel serves
every layer of a network. The arithmetic is that of float32_kernels. Numbers of groups are walked over in the same way,
each of them an element.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment,var-annotated"
# ruff: noqa: RUF005 - Triton joins tuples, and knows no unpacking
from __future__ import annotations

import triton
import triton.language as tl

from normstab.norms.passes import COMPARED, EXACT, ROUNDED
from normstab.numerics.kernels.cuda.cuda_kernels import CODES
from normstab.numerics.kernels.cuda.device_log import COUNTED
from normstab.numerics.kernels.cuda.float32_bits import (
    INF32,
    MAGNITUDE32,
    SIGN32,
    as_float32,
    fields32,
    finished32,
    rule32,
    step_now,
    unbounded32,
    widened32,
)
from normstab.numerics.kernels.cuda.float32_events import TOGETHER, added, settled_cells
from normstab.numerics.kernels.cuda.float32_exact import classes32, exact32, rounded32
from normstab.numerics.kernels.format_table import PLAN

__all__ = ["EXTENTS", "STEP_CODES", "walk_kernel"]

# Kind of a step -> its code; those that Arithmetic rounds have the codes of float32_exact.
STEP_CODES = {name: CODES[name] for name in ROUNDED if name in CODES}
STEP_CODES |= {name: 32 + i for i, name in enumerate(("cast", *EXACT))}
CAST, SIGN, ABS, NEG, CHOICE, EQ, LT = (
    tl.constexpr(STEP_CODES[name]) for name in ("cast", "sign", "abs", "aten::neg", "aten::where.self", *COMPARED[:2])
)
# How many numbers what is read has: one per element, group, parameter, or one for all.
EXTENTS = ("element", "group", "parameter", "number")
ELEMENT, GROUP, PARAMETER = (tl.constexpr(i) for i in range(3))
TABLE, SITE, CELL = tl.constexpr(len(PLAN)), tl.constexpr(COUNTED), tl.constexpr(TOGETHER)
ONE = tl.constexpr(127 << 23)  # the bits of 1


@triton.jit
def read_one(source, index, inside, period, EXTENT: tl.constexpr, DIGITS: tl.constexpr):
    """Return the float32 bits of what the elements at `index` read of a tensor; `period` is (step, count) of both."""
    if EXTENT == ELEMENT:
        bits = tl.load(source + index, mask=inside, other=0)
    elif EXTENT == GROUP:
        bits = tl.load(source + (index // period[0]) % period[1], mask=inside, other=0)
    elif EXTENT == PARAMETER:
        bits = tl.load(source + (index // period[2]) % period[3], mask=inside, other=0)
    else:
        bits = tl.load(source)
    return widened32(bits, DIGITS)


@triton.jit
def drawn_by_step(keys, now, tile, STEP: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return the random fields of the results of step number STEP; zeros where nothing is drawn."""
    drawn = tl.zeros([BLOCK], tl.uint32)
    if WIDTH > 0:
        drawn = fields32(tl.load(keys + STEP), now, tile * (BLOCK * WIDTH // 128), WIDTH, BLOCK)
    return drawn


@triton.jit
def rounded_step(
    a, b, rule, cells, inside, drawn,
    CODE: tl.constexpr, STYLE: tl.constexpr, ROUNDS_DOWN: tl.constexpr, DRAWS: tl.constexpr, COUNTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Return a step's results, rounded, and its cells with what was counted."""
    if CODE == CAST:
        x, seen = a, a & MAGNITUDE32
        has_nan, has_inf, by_zero = seen > INF32, seen == INF32, seen < 0
        y, is_beyond = finished32(x, unbounded32(x, drawn, rule, STYLE), a != a, rule)
    else:
        found = exact32(a, b, CODE, ROUNDS_DOWN)
        x, seen, _, _ = found
        has_nan, has_inf, by_zero = classes32(a & MAGNITUDE32, b & MAGNITUDE32, b & MAGNITUDE32, CODE)
        y, is_beyond = rounded32(found, drawn, rule, STYLE, DRAWS)
    if COUNTS:
        cells = added(cells, x, seen, y, is_beyond, has_nan, has_inf, by_zero, inside, rule, BLOCK)
    return y, cells


@triton.jit
def exact_step(a, b, c, CODE: tl.constexpr):
    """Return the results of a step that rounds nothing; a comparison gives 0 where it does not hold."""
    if CODE == SIGN:
        y = tl.where((a & MAGNITUDE32) == 0, 0, (a & SIGN32) | ONE)
        y = tl.where((a & MAGNITUDE32) > INF32, a, y)
    elif CODE == ABS:
        y = a & MAGNITUDE32
    elif CODE == NEG:
        y = a ^ SIGN32
    elif CODE == CHOICE:
        y = tl.where(a != 0, b, c)
    elif CODE == EQ:
        y = (as_float32(a) == as_float32(b)).to(tl.int32)
    elif CODE == LT:
        y = (as_float32(a) < as_float32(b)).to(tl.int32)
    else:
        y = (as_float32(a) > as_float32(b)).to(tl.int32)
    return y


@triton.jit
def step_done(
    values, rules, cells, inside, drawn,
    STEP: tl.constexpr, ROUNDS_DOWN: tl.constexpr, DRAWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the results of one of STEPS, and the cells that it counts in."""
    a, b, c = values[STEP[1]], values[STEP[2]], values[STEP[3]]
    if STEP[0] > CAST:
        y = exact_step(a, b, c, STEP[0])
    else:
        y, cells = rounded_step(
            a, b, rules[STEP[4]], cells, inside, drawn, STEP[0], STEP[5], ROUNDS_DOWN, DRAWS, STEP[6] >= 0, BLOCK
        )  # fmt: skip
    return y, cells


@triton.jit(do_not_specialize=["step"])
def walk_kernel(
    sources, targets, numbers, tables, keys, step: tl.int64, later, counts, n, period,
    READS: tl.constexpr, STEPS: tl.constexpr, WRITES: tl.constexpr, TABLES: tl.constexpr, SITES: tl.constexpr,
    ROUNDS_DOWN: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Do STEPS for each of `n` elements: read from `sources` as READS says, write WRITES of the values to `targets`.

    A value is known by its place: what is read, then the results of the steps. READS are (extent, fraction bits of
    the dtype), or (-1, i) for number i. STEPS are (code, a, b, c, table, shortcut, site), with site -1 where nobody
    counts; cells of site i are at `counts` + i COUNTED. `period` is (step, count) of the groups, and of the parameters.
    WIDTH is that of random fields, or 0; step i draws by the key at `keys` + i in `step`, and so many more at `later`.
    """
    rules, now = (), step_now(step, later, WIDTH)
    for i in tl.static_range(TABLES):
        rules = rules + (rule32(tables + i * TABLE),)
    nothing = tl.zeros([BLOCK // CELL], tl.int32)
    empty = (nothing, nothing, nothing, nothing, nothing)
    cells = ()
    for _ in tl.static_range(SITES):
        cells = cells + (empty,)
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        index = tile * BLOCK + tl.arange(0, BLOCK)
        inside = index < n
        values, counted = (), ()
        for i in tl.static_range(len(READS)):
            if READS[i][0] < 0:
                values = values + (tl.load(numbers + READS[i][1]),)
            else:
                values = values + (read_one(sources[i], index, inside, period, READS[i][0], READS[i][1]),)
        for i in tl.static_range(len(STEPS)):
            drawn = drawn_by_step(keys, now, tile, i, WIDTH if STEPS[i][0] <= CAST else 0, BLOCK)
            # Steps that count do so in the order of their sites.
            if STEPS[i][6] >= 0:
                y, own = step_done(
                    values, rules, cells[STEPS[i][6]], inside, drawn, STEPS[i], ROUNDS_DOWN, WIDTH > 0, BLOCK
                )  # fmt: skip
                counted = counted + (own,)
            else:
                y, own = step_done(values, rules, empty, inside, drawn, STEPS[i], ROUNDS_DOWN, WIDTH > 0, BLOCK)
            values = values + (y,)
        for i in tl.static_range(len(WRITES)):
            tl.store(targets[i] + index, values[WRITES[i]], mask=inside)
        cells = counted
    for i in tl.static_range(SITES):
        settled_cells(cells[i], counts + i * SITE)
