"""The interpreter of instructions: any traced program on a CPU, its blocks in the first-level cache.

For each group the rows are gone through once; those of a loop once per block of BLOCK values, which is little against
what a row does. A place is four int64: an address, the slot whose address is added to it (-1: none), how far it moves
per value, and whether it moves as the values of the group lie in a tensor.

    register    [ block ]                         the same for every block
    kept        [ block 0 | block 1 | ... ]       moves with the values of the group
    direct      ... | block 0 | .. | block 1 ...  in a tensor, at the index of the block's first value
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.norms.cpu.block_operations import operate
from normstab.norms.cpu.block_steps import ADD, CAST, DIV, EVERY, MUL, SQRT, SUB
from normstab.norms.cpu.environment import SLOTS, field, floats, index_of, integers, slot
from normstab.norms.cpu.group_memory import fill, gather, gather_parameters, scatter
from normstab.norms.cpu.group_sums import add_to_sum, finish_sum
from normstab.norms.cpu.program.exact_steps import (
    choose_block,
    compare_block,
    exact_scalar,
    sign_bits_block,
    sign_block,
)
from normstab.norms.cpu.program.instruction_codes import CODES, ROW
from normstab.norms.cpu.scalars import add_scalars, cast_scalar, div_scalars, mul_scalars, ratio_scalar, sqrt_scalar
from normstab.norms.fused.layer_table import BLOCK, FIELDS
from normstab.numerics.kernels.cpu.bits import MAGNITUDE32
from normstab.numerics.kernels.cpu.compile import as_int64, device, kernel, outside, view
from normstab.numerics.kernels.cpu.cpu_pointwise import widen
from normstab.numerics.kernels.cpu.layout import narrowed

__all__ = ["PLACE", "run_groups"]

PLACE = 4  # int64 of a place
N = FIELDS.index("n")
AT_ROWS, AT_PLACES, AT_NUMBERS = (SLOTS.index(name) for name in ("rows", "places", "numbers"))
CODE, A, B, C, Y, SITE = (ROW.index(name) for name in ("code", "a", "b", "c", "y", "site"))
LENGTH = len(ROW)
SIGN, ABS, NEG, CHOICE, RATIO = (CODES[name] for name in ("sign", "abs", "aten::neg", "aten::where.self", "apply"))
GATHER, SCATTER, PARAMETERS, SUM, FINISH, FILL, LOAD, STORE, LOOP, END = (
    CODES[name] for name in ("GATHER", "SCATTER", "PARAMETERS", "SUM", "FINISH", "FILL", "LOAD", "STORE", "LOOP", "END")
)


@kernel
def run_groups(env, first, last):  # pragma: no cover - compiled
    """Run the rows for groups first .. last - 1."""
    for group in range(first, last):
        at = slot(env, AT_ROWS)
        while integers(at, 1)[0] != END:
            row = integers(at, LENGTH)
            if row[CODE] == LOOP:
                walk(at + 8 * LENGTH, row[A], group, env)
                at += 8 * LENGTH * (row[A] + 1)
            else:
                on_numbers(row, group, env)
                at += 8 * LENGTH


@outside
def walk(rows, count, group, env):  # pragma: no cover - compiled
    """Run `count` rows on every block of a group."""
    n = field(env, N)
    for first in range(0, n, BLOCK):
        m = min(BLOCK, n - first)
        for i in range(count):
            on_block(integers(rows + 8 * LENGTH * i, LENGTH), group, first, m, env)


@device
def address(which, group, first, env):
    """Return where the block that begins at value number `first` of a group lies in a place."""
    place = integers(slot(env, AT_PLACES) + 8 * PLACE * which, PLACE)
    base = place[0] if place[1] < 0 else place[0] + slot(env, place[1])
    moved = index_of(env, group, first) if place[3] != 0 else first
    return base + place[2] * moved


@device
def number(which, env):
    """Return a number."""
    return view(slot(env, AT_NUMBERS), which + 1, np.float64)[which]


@outside
def on_block(row, group, first, n, env):  # pragma: no cover - compiled
    """Run a row on values number first .. first + n - 1 of a group."""
    code, site = row[CODE], row[SITE]
    a = address(row[A], group, first, env)
    if code == SUM:
        add_to_sum(row[Y], a, MAGNITUDE32 if row[C] != 0 else EVERY, group, first, n, field(env, N), site, env)
        return
    y = address(row[Y], group, first, env)
    if code <= SQRT:
        b = a if code in (CAST, SQRT) else address(row[B], group, first, env)
        operate(code, a, b, y, group, first, n, site, env)
    elif code == GATHER:
        gather(a, group, first, n, y, env)
    elif code == SCATTER:
        scatter(a, group, first, n, y, env)
    elif code == PARAMETERS:
        gather_parameters(a, group, first, n, y, env)
    elif code == SIGN:
        sign_block(a, y, n)
    elif code in (ABS, NEG):
        sign_bits_block(code, a, y, n)
    elif code == CHOICE:
        b, c = address(row[B], group, first, env), address(row[C], group, first, env)
        choose_block(a, b, c, y, n)
    else:
        compare_block(code, a, number(row[B], env), y, n)


@outside
def on_numbers(row, group, env):  # pragma: no cover - compiled
    """Run a row on the numbers of a group."""
    code, numbers = row[CODE], slot(env, AT_NUMBERS)
    if code == FILL:
        fill(address(row[Y], group, 0, env), narrowed(as_int64(number(row[A], env))))
    elif code == STORE:
        floats(address(row[Y], group, 0, env), group + 1)[group] = narrowed(as_int64(number(row[A], env)))
    else:
        if code == LOAD:
            found = widen(view(address(row[A], group, 0, env), group + 1, np.uint32)[group])
        elif code == FINISH:
            found = finish_sum(row[A], group, field(env, N), row[SITE], env)
        else:
            found = computed(row, group, env)
        view(numbers, row[Y] + 1, np.float64)[row[Y]] = found


@outside
def computed(row, group, env):  # pragma: no cover - compiled
    """Return the result of an operation on numbers."""
    code, site, a, b = row[CODE], row[SITE], number(row[A], env), number(row[B], env)
    if code == ADD:
        return add_scalars(a, b, group, site, env)
    if code == SUB:
        return add_scalars(a, -b, group, site, env)
    if code == MUL:
        return mul_scalars(a, b, group, site, env)
    if code == DIV:
        return div_scalars(a, b, group, site, env)
    if code == SQRT:
        return sqrt_scalar(a, group, site, env)
    if code == CAST:
        return cast_scalar(a, group, site, env)
    c = number(row[C], env)
    return ratio_scalar(a, b, c, group, site, env) if code == RATIO else exact_scalar(code, a, b, c)
