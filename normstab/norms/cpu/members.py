"""The few members of a maximum or a top k: found in one pass, block by block, ties to the lowest index.

    values   [ block: all below the least found? skipped ][ block: searched ][ ... ]
    found    greatest first, k of them; a value goes in behind its equals, which have lower indices

Bits of magnitudes order as magnitudes do, NaN above all, so that whole numbers are compared.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.norms.cpu.environment import floats, integers
from normstab.norms.fused.layer_table import BLOCK
from normstab.numerics.kernels.cpu.bits import INF32, MAGNITUDE32, U0
from normstab.numerics.kernels.cpu.compile import as_float32, as_uint32, device, outside, view

__all__ = ["first_ends", "largest_members"]

u32, i32 = np.uint32, np.int32


@outside
def largest_members(values, n, places, magnitudes, k):  # pragma: no cover - compiled
    """Put the indices of the k largest abs(d) at `places`, in index order, and abs(d) there at `magnitudes`.

    A NaN is the greatest. All three are addresses.
    """
    d, members, found = view(values, n, u32), integers(places, k), floats(magnitudes, k)
    kept = 0  # of the list, which is sorted: greatest first, the lower index first among equals
    for base in range(0, n, BLOCK):
        m = min(BLOCK, n - base)
        top, part = U0, view(values + 4 * base, m, u32)
        for i in range(m):
            top = max(top, u32(part[i] & MAGNITUDE32))
        # Most blocks hold nothing larger than what was found: their maximum is taken in lanes.
        if kept == k and top <= u32(as_uint32(found[k - 1])):
            continue
        for i in range(base, base + m):
            a = u32(d[i] & MAGNITUDE32)
            if kept == k and a <= u32(as_uint32(found[k - 1])):
                continue
            # Behind all that are as large; what falls off the end was the least.
            at = min(kept, k - 1)
            while at > 0 and u32(as_uint32(found[at - 1])) < a:
                found[at], members[at] = found[at - 1], members[at - 1]
                at -= 1
            found[at], members[at] = as_float32(a), i
            kept = min(kept + 1, k)
    for i in range(1, k):  # by insertion: k is small
        index, value, at = members[i], found[i], i
        while at > 0 and members[at - 1] > index:
            members[at], found[at] = members[at - 1], found[at - 1]
            at -= 1
        members[at], found[at] = index, value


@device
def order_of(x, negated):
    """Return an int32 that orders x, or -x, as numbers: the zeros are equal, NaN is greatest."""
    bits = as_uint32(x)
    a = i32(bits & MAGNITUDE32)
    if a > i32(INF32):
        return i32(0x7FFFFFFF)
    # The sign bit is set, or the order is turned round: either reverses it, both together do not.
    return -a if (bits != u32(a)) != negated else a


@outside
def first_ends(values, n, places):  # pragma: no cover - compiled
    """Put the first index of the largest and that of the smallest value at `places`; NaN is both."""
    members = integers(places, 2)
    for end in range(2):
        negated = end == 1
        best, index = i32(-0x80000000), 0
        for base in range(0, n, BLOCK):
            m = min(BLOCK, n - base)
            top, part = i32(-0x80000000), floats(values + 4 * base, m)
            for i in range(m):
                top = max(top, order_of(part[i], negated))
            if top <= best:
                continue
            best = top
            for i in range(m):
                if order_of(part[i], negated) == best:
                    index = base + i
                    break
        members[end] = index
