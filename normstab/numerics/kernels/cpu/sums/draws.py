"""The random bits of stochastic sums in lanes.

    tile                 [ x0 line ][ x1 line ] ...      addends or products, 64 sums side by side
    `away` bytes on      [ bits    ][ bits    ] ...      of the addition that takes in each of them
    twice `away` on      [ bits    ][ bits    ] ...      of the product that made each of them

Bits are drawn ahead, for a run of neighbouring indices, as a Philox block serves several; vector code then finds them
at one fixed distance from what they belong to. A sum, or a line that is moved, carries the bits of its first addend
along (see lanes).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from normstab.numerics.call import Call
from normstab.numerics.kernels.cpu.compile import outside, view
from normstab.numerics.kernels.cpu.philox_cpu import draw_fields
from normstab.numerics.kernels.cpu.sums.tiles import ROOM, ROWS, TILE, WORDS, gather_rows
from normstab.numerics.kernels.cpu.vector.lane_moves import word
from normstab.numerics.kernels.cpu.vector.note_code import OF_ADDENDS, OF_SUMS
from normstab.numerics.kernels.cpu.vector.vectors import LANES, LINE
from normstab.numerics.kernels.format_table import PLAN, plan
from normstab.numerics.kernels.shortcut_table import LANE64

__all__ = ["draw_addends", "draw_products", "draws"]

# A table of draws: bits served per element, the step in the index along the innermost reduced axes, whether kept
# positions are neighbours in the index; then key and step of the site of sums, and of that of products.
WIDTH, INNER, IS_SIDE_BY_SIDE, SITES = 0, 1, 2, 3
WORDS_OF_A_LINE = LANES + 8


def draws(add: Call, product: Call | None, inner_index: int = 1, *, is_side_by_side: bool = False) -> NDArray[np.int64]:
    """Return the table of what is drawn at the sites of sums and of products."""
    table = np.zeros(SITES + 4, np.int64)
    table[WIDTH] = plan(add.format, add.rounding, LANE64)[PLAN.index("field_width")]
    table[INNER], table[IS_SIDE_BY_SIDE] = inner_index, is_side_by_side
    for i, call in enumerate((add, product)):
        if call is not None and call.draw is not None:
            table[SITES + 2 * i : SITES + 2 * i + 2] = np.array([call.draw.word, call.draw.step], np.uint64).view(
                np.int64
            )
    return table


@outside
def draw_run(which, first, n, target, rows):  # pragma: no cover - compiled
    """Write the bits of n addends from index `first` on, drawn at a site, to offset `target`; `rows` is the plan."""
    table = view(rows.draws, SITES + 4, np.int64)
    fields, words = view(rows.base + target, n, np.uint32), view(rows.base + WORDS, WORDS_OF_A_LINE, np.uint32)
    draw_fields(fields, words, table[SITES + 2 * which], table[SITES + 2 * which + 1], first, n, table[WIDTH])


@outside
def turn_fields(m, target, rows):  # pragma: no cover - compiled
    """Turn m fields of each of 64 rows at ROOM into m lines at an offset."""
    addresses = view(rows.base + ROWS, LANES, np.int64)
    for r in range(LANES):
        addresses[r] = rows.base + ROOM + r * LINE
    gather_rows(m, target, rows)


@outside
def draw_addends(plan, group, rows, p, m):  # pragma: no cover - compiled
    """Draw for positions p .. p + m - 1 of a group of rows, which are in the tile."""
    table, away = view(plan.draws, SITES, np.int64), TILE + plan.way.away
    # Kept positions are neighbours in the index: the bits of a line are one run.
    if table[IS_SIDE_BY_SIDE] != 0:
        for t in range(m):
            o, i = (p + t) // plan.n_inner, (p + t) % plan.n_inner
            first = word(plan.kept + 16 * group + 8) + word(plan.outer + 16 * o + 8) + i * table[INNER]
            draw_run(OF_SUMS, first, rows, away + t * LINE, plan)
        return
    # Else the positions of a row are: its bits are one run, which is then turned into lanes.
    for r in range(rows):
        done = 0
        while done < m:
            o, i = (p + done) // plan.n_inner, (p + done) % plan.n_inner
            run = min(plan.n_inner - i, m - done)
            first = word(plan.kept + 16 * (group + r) + 8) + word(plan.outer + 16 * o + 8) + i
            draw_run(OF_SUMS, first, run, ROOM + r * LINE + 4 * done, plan)
            done += run
    turn_fields(m, away, plan)


@outside
def draw_products(plan, element, p, m, found):  # pragma: no cover - compiled
    """Draw for products p .. p + m - 1 of `found` neighbouring elements of the result, and for their additions."""
    for which in (OF_SUMS, OF_ADDENDS):
        for j in range(found):
            # Product k of element e has number e K + k in the virtual tensor of all products.
            draw_run(which, (element + j) * plan.n + p, m, ROOM + j * LINE, plan)
        turn_fields(m, TILE + (1 + which) * plan.way.away, plan)
