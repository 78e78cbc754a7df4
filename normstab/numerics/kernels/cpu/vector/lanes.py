"""Vector operations on lines of 64 float32: add and round, multiply, transpose.

Each takes addresses and steps in bytes. What it saw it merges into SEEN uint32 at `seen`: per lane of 16 the
largest and the smallest magnitude (as bits; the latter less 1, so that zero is the greatest), the subnormal
results, and the underflows. Magnitudes are of exact results, rounded toward zero.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from normstab.numerics.kernels.cpu.compile import outside
from normstab.numerics.kernels.cpu.vector.lane_code import (
    chain_half,
    chain_half_counted,
    chain_half_fitting,
    chain_magic,
    chain_magic_counted,
    chain_magic_fitting,
    chain_plain,
    chain_plain_counted,
    copy_half,
    copy_magic,
    copy_plain,
    halve_half,
    halve_half_counted,
    halve_magic,
    halve_magic_counted,
    halve_plain,
    halve_plain_counted,
    join_half,
    join_half_counted,
    join_magic,
    join_magic_counted,
    join_plain,
    join_plain_counted,
    round_half,
    round_half_counted,
    round_magic,
    round_magic_counted,
    transpose_half,
    transpose_magic,
    transpose_plain,
    word,
)
from normstab.numerics.kernels.cpu.vector.product_code import (
    multiply_chain_half,
    multiply_chain_half_counted,
    multiply_chain_magic,
    multiply_chain_magic_counted,
    multiply_chain_plain,
    multiply_chain_plain_counted,
    multiply_half,
    multiply_half_counted,
    multiply_magic,
    multiply_magic_counted,
    multiply_plain,
    multiply_plain_counted,
)
from normstab.numerics.kernels.cpu.vector.vectors import LANES, SEEN, WIDTH
from normstab.numerics.kernels.nearest import HALF, PLAIN

__all__ = [
    "LANES",
    "SEEN",
    "chain",
    "copy_line",
    "halve",
    "join",
    "multiply",
    "multiply_chain",
    "round_in_place",
    "transpose",
    "word",
]


@outside
def join(a, a_step, x, x_step, y, y_step, n, style, counts, table, seen):  # pragma: no cover - compiled
    """Set a line at y to that at a plus that at x, n times, each address then moving by its step."""
    arguments = (a, a_step, x, x_step, y, y_step, n, table, seen)
    if style == PLAIN:
        if counts:
            join_plain_counted(arguments)
        else:
            join_plain(arguments)
    elif style == HALF:
        if counts:
            join_half_counted(arguments)
        else:
            join_half(arguments)
    elif counts:
        join_magic_counted(arguments)
    else:
        join_magic(arguments)


@outside
def chain(total, x, x_step, n, style, counts, fits, table, seen):  # pragma: no cover - compiled
    """Add n lines at x, `x_step` apart, one after the other to the line at `total`.

    With `fits` False, and nothing counted, each addend is rounded first.
    """
    arguments = (total, x, x_step, n, table, seen)
    if style == PLAIN:
        if counts:
            chain_plain_counted(arguments)
        else:
            chain_plain(arguments)
    elif style == HALF:
        if counts:
            chain_half_counted(arguments)
        elif fits:
            chain_half(arguments)
        else:
            chain_half_fitting(arguments)
    elif counts:
        chain_magic_counted(arguments)
    elif fits:
        chain_magic(arguments)
    else:
        chain_magic_fitting(arguments)


@outside
def multiply(a, x, y, n, style, counts, exact, table, seen):  # pragma: no cover - compiled
    """Set n lines at y to those at x times one float each at a; `exact`: float32 holds these products."""
    arguments = (a, x, y, n, exact, table, seen)
    if style == PLAIN:
        if counts:
            multiply_plain_counted(arguments)
        else:
            multiply_plain(arguments)
    elif style == HALF:
        if counts:
            multiply_half_counted(arguments)
        else:
            multiply_half(arguments)
    elif counts:
        multiply_magic_counted(arguments)
    else:
        multiply_magic(arguments)


@outside
def multiply_chain(total, a, x, n, style, counts, exact, table, seen, seen_of_products):  # pragma: no cover - compiled
    """Add n lines at x, each times one float at a, one after the other to the line at `total`; `exact` as above."""
    arguments = (total, a, x, n, exact, table, seen, seen_of_products)
    if style == PLAIN:
        if counts:
            multiply_chain_plain_counted(arguments)
        else:
            multiply_chain_plain(arguments)
    elif style == HALF:
        if counts:
            multiply_chain_half_counted(arguments)
        else:
            multiply_chain_half(arguments)
    elif counts:
        multiply_chain_magic_counted(arguments)
    else:
        multiply_chain_magic(arguments)


@outside
def halve(x, y, n, style, counts, table, seen):  # pragma: no cover - compiled
    """Set each of 16 n floats at y to the tree sum of 16 at x; with nothing counted, addends are rounded first."""
    arguments = (x, y, n, table, seen)
    if style == PLAIN:
        if counts:
            halve_plain_counted(arguments)
        else:
            halve_plain(arguments)
    elif style == HALF:
        if counts:
            halve_half_counted(arguments)
        else:
            halve_half(arguments)
    elif counts:
        halve_magic_counted(arguments)
    else:
        halve_magic(arguments)


@outside
def round_in_place(x, n, style, counts, moved, table, seen):  # pragma: no cover - compiled
    """Round n times 16 addends at x; of those that moved, `seen` notes what they became, and `moved` how many."""
    arguments = (x, n, moved, table, seen)
    if style == HALF:
        if counts:
            round_half_counted(arguments)
        else:
            round_half(arguments)
    elif counts:
        round_magic_counted(arguments)
    else:
        round_magic(arguments)


@outside
def transpose(rows, columns, target, target_step, style, table, seen):  # pragma: no cover - compiled
    """Write `columns` (a multiple of 16) floats of each of 64 rows, by address, to 64 lanes at target.

    They are rounded to the format of `style`, uncounted; PLAIN copies.
    """
    for r in range(0, LANES, WIDTH):
        for c in range(0, columns, WIDTH):
            arguments = (rows + 8 * r, 4 * c, target + c * target_step + 4 * r, target_step, table, seen)
            if style == PLAIN:
                transpose_plain(arguments)
            elif style == HALF:
                transpose_half(arguments)
            else:
                transpose_magic(arguments)


@outside
def copy_line(source, target, ahead, style, table, seen):  # pragma: no cover - compiled
    """Copy a line, rounded to the format of `style`, uncounted, and prefetch one `ahead` bytes after the source."""
    arguments = (source, target, ahead, table, seen)
    if style == PLAIN:
        copy_plain(arguments)
    elif style == HALF:
        copy_half(arguments)
    else:
        copy_magic(arguments)
