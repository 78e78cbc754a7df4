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
from normstab.numerics.kernels.cpu.philox_cpu import draw_fields, philox_block
from normstab.numerics.kernels.cpu.sums.tiles import ROOM, ROWS, TILE, WORDS, gather_rows
from normstab.numerics.kernels.cpu.vector.lane_operations import word
from normstab.numerics.kernels.cpu.vector.note_code import OF_ADDENDS, OF_SUMS
from normstab.numerics.kernels.cpu.vector.vectors import LANES, LINE
from normstab.numerics.kernels.format_table import PLAN, plan
from normstab.numerics.kernels.shortcut_table import LANE64

__all__ = ["draw_addends", "draw_products", "draws"]

# A table of draws: bits served per element, the step in the index along the innermost reduced axes, whether kept
# positions are neighbours in the index; then key and step of the site of sums, and of that of products.
WIDTH, INNER, IS_SIDE_BY_SIDE, SITES = 0, 1, 2, 3
WORDS_OF_A_LINE = LANES + 8
# In the room for 64 rows, after four lines of a block's words: how late lanes are; fields, 3.5 lines for each at most.
LATE, FIELDS = 4 * LANES, 5 * LANES


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
def draw_lines(which, first, step, m, target, plan):  # pragma: no cover - compiled
    """Write m lines of bits to an offset: line t has in lane j those of index first + j step + t, drawn at a site."""
    table = view(plan.draws, SITES + 4, np.int64)
    key, at, width = table[SITES + 2 * which], table[SITES + 2 * which + 1], table[WIDTH]
    each, lines = 128 // width, view(plan.base + target, m * LANES, np.uint32)
    room = view(plan.base + ROOM, LANES * LANES, np.uint32)
    words, late, before, drawn = room, room[LATE:], room[FIELDS:], room[FIELDS + each * LANES :]
    moved = drawn[each * LANES :]
    for j in range(LANES):
        late[j] = np.uint32((first + j * step) & (each - 1))
    # Where all 64 sums begin with a block its bits are lines as they are drawn. Else a lane is late: its first
    # bits are among the last of its block, and what is drawn of two blocks is moved up, lane by lane.
    is_whole = first % each == 0 and step % each == 0
    for block in range((m + each - 1) // each + (0 if is_whole else 1)):
        draw_blocks(words, key, at, first + block * each, step, each)
        done, found = block * each, drawn
        if is_whole and done + each <= m:
            take_fields(words, lines[done * LANES :], width)
            continue
        take_fields(words, drawn, width)
        if not is_whole:
            done, found = done - each, moved
            move_lanes(before, late, each, moved)
            for i in range(each * LANES):
                before[i] = drawn[i]
        own = lines[max(done, 0) * LANES :]
        for i in range(min(each, m - done) * LANES if done >= 0 else 0):
            own[i] = found[i]


@outside
def draw_blocks(words, key, at, first, step, each):  # pragma: no cover - compiled
    """Draw the blocks that have indices first + j step, of 64 lanes j: four lines of words."""
    w0, w1, w2, w3 = words[:LANES], words[LANES:], words[2 * LANES :], words[3 * LANES :]
    shift = 2 if each == 4 else 3 if each == 8 else 4
    for j in range(LANES):
        c0, c1, c2, c3 = philox_block(key, at, (first + j * step) >> shift)
        w0[j], w1[j], w2[j], w3[j] = np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)


@outside
def take_fields(words, fields, width):  # pragma: no cover - compiled
    """Write a line for each field of the blocks in four lines of words; the bits are topmost."""
    per_word, top = 32 // width, np.uint32(0xFFFFFFFF) << np.uint32(32 - width)
    for i in range(128 // width):
        source, target, up = words[i // per_word * LANES :], fields[i * LANES :], 32 - width * (1 + i % per_word)
        for j in range(LANES):
            target[j] = np.uint32(source[j] << np.uint32(up)) & np.uint32(top)


@outside
def move_lanes(window, late, each, moved):  # pragma: no cover - compiled
    """Write `each` lines: in every lane those of the window, of twice as many, from line late[lane] on."""
    step, source = each // 2, window
    # By halves: a lane is moved by each power of two in what it is late.
    while step > 0:
        for i in range(each + step - 1):
            own, next_, target = source[i * LANES :], source[(i + step) * LANES :], moved[i * LANES :]
            for j in range(LANES):
                # Both are read in any case, so that the choice is one of vectors.
                here, further = own[j], next_[j]
                target[j] = further if late[j] & np.uint32(step) else here
        step, source = step // 2, moved


@outside
def draw_products(plan, element, p, m):  # pragma: no cover - compiled
    """Draw for products p .. p + m - 1 of 64 neighbouring elements of the result, and for their additions."""
    for which in (OF_SUMS, OF_ADDENDS):
        # Product k of element e has number e K + k in the virtual tensor of all products.
        draw_lines(which, element * plan.n + p, plan.n, m, TILE + (1 + which) * plan.way.away, plan)
