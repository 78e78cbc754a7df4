"""The orders of a sum, and one sum that takes its addends one after another: what the kernels of norms are made of.

    sequential   partial [ total ]
    blocked      partial [ total | block ]                   a full block is added to the total
    lanes        partial [ lane 0 | lane 1 | ... ]           addend p joins lane p % width; lanes are joined at the end
    pairwise     partial [ 8 addends | 4 | 1 ]               of 13: a stack of subtrees, each less than the one before

So a sum in any order needs a few numbers, not its addends. Whole tensors, Kahan's sums too, are summed by `line_sums`
and `sum_tiles`, with the same bits and counters.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from normstab.numerics.kernels.cpu.compile import device, outside
from normstab.numerics.kernels.cpu.sums.steps import add_step

__all__ = [
    "BLOCKED",
    "BLOCKS_ONLY",
    "LANES",
    "LEVELS",
    "ORDERS",
    "PAIRWISE",
    "SEQUENTIAL",
    "finish",
    "fold_lanes",
    "take",
]

# Codes of the orders of a sum.
SEQUENTIAL, PAIRWISE, BLOCKED, LANES, BLOCKS_ONLY = 0, 1, 2, 3, 4
# Name of an order -> its code.
ORDERS = {"sequential": SEQUENTIAL, "pairwise": PAIRWISE, "blocked": BLOCKED, "lanes": LANES}
LEVELS = 64  # of a tree of partial sums: enough for any number of addends


@outside
def fold_lanes(partial, leaves, k, add):  # pragma: no cover - compiled
    """Add partial[:k] pairwise, level by level, into partial[0]."""
    while k > 1:
        for i in range(k // 2):
            # A sum draws by the first leaf of its right operand, and is known further up by that of its left one.
            partial[i] = add_step(partial[2 * i], partial[2 * i + 1], leaves[2 * i + 1], add)
            leaves[i] = leaves[2 * i]
        if k % 2:
            partial[k // 2], leaves[k // 2] = partial[k - 1], leaves[k - 1]
        k = (k + 1) // 2


@outside
def push(partial, leaves, depth, p, x, leaf, add):
    """Push addend number p on the stack of a pairwise tree, joining what is complete; return the depth."""
    partial[depth], leaves[depth] = x, leaf
    # As a binary counter carries: addend p completes as many subtrees as p has ones at its end.
    while p & 1:
        partial[depth - 1] = add_step(partial[depth - 1], partial[depth], leaves[depth], add)
        depth, p = depth - 1, p >> 1
    return depth + 1


@outside
def take(order, width, p, n, x, leaf, partial, leaves, state, add):  # pragma: no cover - compiled
    """Give addend x, number p of n, to the sum in `partial`; state[0] is a tree's depth, state[1] a block's leaf."""
    if order == PAIRWISE:
        state[0] = push(partial, leaves, state[0] if p else 0, p, x, leaf, add)
    elif order == LANES:
        j = p % width
        if p < width:
            partial[j], leaves[j] = x, leaf
        else:
            partial[j] = add_step(partial[j], x, leaf, add)
    elif order == SEQUENTIAL:
        partial[0] = x if p == 0 else add_step(partial[0], x, leaf, add)
    else:
        # The first addend of a block is taken as it is: nothing
        # is added to zero, for that would count as an addition.
        if p % width == 0:
            partial[1], state[1] = x, leaf
        else:
            partial[1] = add_step(partial[1], x, leaf, add)
        if order == BLOCKED and (p % width == width - 1 or p == n - 1):
            partial[0] = partial[1] if p < width else add_step(partial[0], partial[1], state[1], add)


@device
def finish(order, width, n, partial, leaves, state, add):
    """Return the sum of the n addends that `take` was given."""
    if n == 0:
        return 0.0
    if order == LANES:
        fold_lanes(partial, leaves, min(width, n), add)
    elif order == PAIRWISE:
        # What is left of a tree that is not full: from the least subtree on, as odd last elements move up.
        for depth in range(state[0] - 1, 0, -1):
            partial[depth - 1] = add_step(partial[depth - 1], partial[depth], leaves[depth], add)
    return partial[0]
