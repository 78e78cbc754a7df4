"""The few members of a maximum, a top k or a range in Triton: one search over the values for each of them.

    search 1   the greatest of all                         [ . . . 9 . . 7 . 9 . ]  -> position 3
    search 2   the greatest behind (9, position 3)                                  -> position 8
    search 3   the greatest behind (9, position 8)                                  -> position 6

"Behind" is less, or equal and at a later position: no list of what was found is needed, and ties go to the lowest
index. Whole numbers are compared, which order as the values do, NaN above all.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.norms.cuda.cuda_parts import add_to_lanes, cast, centred, field, index_of, joined, tile, tiling, write
from normstab.norms.fused.layer_table import FIELDS, FORWARD
from normstab.numerics.kernels.cuda.cuda_bits import INF64, MAGNITUDE64, SIGN64
from normstab.numerics.kernels.cuda.cuda_kernels import read

__all__ = ["at_members", "few_sum", "range_ends", "sign_of"]

N = tl.constexpr(FIELDS.index("n"))
INPUT, CENTRE = tl.constexpr(FORWARD.index("input")), tl.constexpr(FORWARD.index("centre"))
# What is searched for: the largest abs(d), the largest x, the smallest x.
MAGNITUDE, LARGEST, SMALLEST = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
LEAST, GREATEST, ONE = tl.constexpr(-(2**63)), tl.constexpr(2**63 - 1), tl.constexpr(1023 << 52)


@triton.jit
def sign_of(x):
    """Return the bits of sign(x): -1, +0 or 1, NaN of NaN."""
    a = x & MAGNITUDE64
    return tl.where(a > INF64, x, tl.where(a == 0, 0, ONE | (x & SIGN64)))


@triton.jit
def order_of(x, WHAT: tl.constexpr):
    """Return an int64 that orders what is searched for: zeros are equal, NaN is greatest."""
    a = x & MAGNITUDE64
    key = a
    if WHAT == LARGEST:
        key = tl.where(x < 0, -a, a)
    if WHAT == SMALLEST:
        key = tl.where(x < 0, a, -a)
    return tl.where(a > INF64, GREATEST, key)


@triton.jit
def next_largest(
    x, mu, key_before, place_before, group, layer, WHAT: tl.constexpr, BLOCK: tl.constexpr, HOW: tl.constexpr
):
    """Return the order and the position of the greatest value behind one already found; the lowest among equals."""
    n = field(layer, N)
    best, place = tl.full([BLOCK], LEAST, tl.int64), tl.full([BLOCK], GREATEST, tl.int64)
    for first in range(0, n, BLOCK):
        position = first + tl.arange(0, BLOCK).to(tl.int64)
        inside = position < n
        index = index_of(group, position, layer, 0)
        if WHAT == MAGNITUDE:
            value = centred(x, mu, index, inside, layer, INPUT, CENTRE, HOW, False)
        else:
            value = cast(read(x, index, inside), index, inside, layer, INPUT, HOW, False)
        key = order_of(value, WHAT)
        is_behind = (key < key_before) | ((key == key_before) & (position > place_before))
        # Strictly greater, so that each lane keeps its first; the lanes' positions are compared at the end.
        is_better = inside & is_behind & (key > best)
        best, place = tl.where(is_better, key, best), tl.where(is_better, position, place)
    top = tl.max(best, axis=0)
    return top, tl.min(tl.where(best == top, place, GREATEST), axis=0)


@triton.jit
def range_ends(x, members, group, own, layer, BLOCK: tl.constexpr, HOW: tl.constexpr):
    """Return the largest and the smallest value, and note their places."""
    none = tl.full([], -1, tl.int64)
    greatest = tl.full([], GREATEST, tl.int64)
    _, at_first = next_largest(x, own, greatest, none, group, layer, LARGEST, BLOCK, HOW)
    _, at_last = next_largest(x, own, greatest, none, group, layer, SMALLEST, BLOCK, HOW)
    tl.store(members + own * 2, own * 0 + at_first)
    tl.store(members + own * 2 + 1, own * 0 + at_last)
    return value_at(x, at_first, group, own, layer, HOW), value_at(x, at_last, group, own, layer, HOW)


@triton.jit
def value_at(x, place, group, own, layer, HOW: tl.constexpr):
    """Return the cast value at one position of the group, shape (1,)."""
    index = index_of(group, own * 0 + place, layer, 0)
    return cast(read(x, index, own >= 0), index, own >= 0, layer, INPUT, HOW, False)


@triton.jit
def at_members(
    x, mu, members, signs, group, layer, K: tl.constexpr, MEMBERS: tl.constexpr, BLOCK: tl.constexpr, HOW: tl.constexpr
):
    """Return the K largest abs(d) in the order of their indices, zeros behind; note the indices and signs."""
    slot = tl.arange(0, MEMBERS)
    places = tl.full([MEMBERS], GREATEST, tl.int64)
    key, place = tl.full([], GREATEST, tl.int64), tl.full([], -1, tl.int64)
    for i in range(K):
        key, place = next_largest(x, mu, key, place, group, layer, MAGNITUDE, BLOCK, HOW)
        places = tl.where(slot == i, place, places)
    # Sorted by index: a member's place is how many have a lower one.
    rank = tl.sum((places[None, :] < places[:, None]).to(tl.int64), axis=1)
    rank = tl.where(slot < K, rank, slot)
    ordered = tl.sum(tl.where(rank[:, None] == slot[None, :], places[:, None], 0), axis=0)
    is_member = slot < K
    index = index_of(group, tl.where(is_member, ordered, 0), layer, 0)
    d = centred(x, mu, index, is_member, layer, INPUT, CENTRE, HOW, False)
    tl.store(members + group * K + slot, ordered, mask=is_member)
    write(signs, group * K + slot, sign_of(d), is_member)
    return tl.where(is_member, d & MAGNITUDE64, 0)


@triton.jit
def few_sum(
    few, group, own, layer, SITE: tl.constexpr, K: tl.constexpr, MEMBERS: tl.constexpr, LANES: tl.constexpr,
    BLOCKED: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """Return the sum of K numbers held in a vector: a row of a matrix of K columns, which places its random bits."""
    total, slot = own * 0, tl.arange(0, MEMBERS)
    steps, span = tiling(K, layer, LANES, BLOCKED)
    for base in range(0, K, span):
        lanes = tl.zeros([LANES], tl.int64)
        for t in range(steps):
            position, inside = tile(base, t, K, layer, LANES, BLOCKED)
            addend = tl.sum(tl.where(position[:, None] == slot[None, :], few[None, :], 0), axis=1)
            index = index_of(group, position, layer, K)
            lanes = add_to_lanes(lanes, addend, t, index, inside, layer, SITE, HOW)
        total = joined(total, lanes, base, group, K, layer, SITE, HOW, LANES, BLOCKED, K)
    return total
