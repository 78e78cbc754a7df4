"""The gradient of l1 depends on a value by its sign alone: four classes, -1, 0, 1 and NaN.

    d        [ 0.3  -1.2  0.7  0.0 ... ]        n values
    class    [  +     -    +    0  ... ]
    flow     C1 mean(g y) (sg - mean(sg))       four numbers, each counted as often as its class occurs

On the float32 path, where rounding is deterministic, each class is computed once: n values of one class would round
n times to the same number, and count the same n times. Else every value is computed on its own.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.norms.cpu.block_operations import operate
from normstab.norms.cpu.block_steps import MUL, SUB
from normstab.norms.cpu.environment import SLOTS, context_at, field, floats, integers, slot
from normstab.norms.cpu.group_memory import fill
from normstab.norms.cpu.group_sums import finish_sum
from normstab.norms.cpu.scalars import add_scalars, div_scalars, mul_scalars
from normstab.norms.fused.layer_table import BACKWARD, BLOCK, FIELDS
from normstab.numerics.kernels.cpu.compile import device, outside, view
from normstab.numerics.kernels.cpu.counting import COUNTED
from normstab.numerics.kernels.cpu.sums.steps import SCRATCH_AT

__all__ = ["flow_of_signs", "sign_block", "slopes_of_signs"]

N, CENTRES, IS_FAST = (FIELDS.index(name) for name in ("n", "centres", "is_fast"))
AT_CONSTANTS, AT_KEPT = SLOTS.index("constants"), SLOTS.index("kept")
CONSTANT, SLOPE_SUM, SLOPE_DIV, SLOPE, PROJECT = (
    BACKWARD.index(name) for name in ("constant", "slope.sum", "slope.div", "slope", "project")
)
ZERO, ONE, LEAST = np.float32(0.0), np.float32(1.0), np.float32(-1.0)

# The flow through s of the classes -1, 0, 1 and NaN; C1 mean(g y); mean(sg).
BELOW, LEVEL, ABOVE, MISSING, FACTOR, DRIFT = range(6)
BYTES = 4 * BLOCK


@outside
def sign_block(d, y, n):  # pragma: no cover - compiled
    """Set y = sign(d), NaN of NaN."""
    x, signs = floats(d, n), floats(y, n)
    for i in range(n):
        s = ONE if x[i] > ZERO else (LEAST if x[i] < ZERO else ZERO)
        signs[i] = x[i] if x[i] != x[i] else s


@outside
def slopes_of_signs(weight, group, stream, slopes, env):  # pragma: no cover - compiled
    """Fill `slopes` from mean(g y): the flow through s of the four classes, then C1 mean(g y) and mean(sg)."""
    n, found = field(env, N), view(slopes, 6, np.float64)
    factor = mul_scalars(view(slot(env, AT_CONSTANTS), 1, np.float64)[0], weight, group, CONSTANT, env)
    drift = 0.0
    if field(env, CENTRES):
        total = finish_sum(stream, group, n, SLOPE_SUM, env)
        drift = div_scalars(total, np.float64(n), group, SLOPE_DIV, env)
    found[FACTOR], found[DRIFT] = factor, drift
    if field(env, IS_FAST) == 0:
        return
    below, above, missing, d = np.int32(0), np.int32(0), np.int32(0), floats(slot(env, AT_KEPT), n)
    for i in range(n):
        below += np.int32(d[i] < ZERO)
        above += np.int32(d[i] > ZERO)
        missing += np.int32(d[i] != d[i])
    found[BELOW] = slope_of_class(-1.0, below, factor, drift, env)
    found[LEVEL] = slope_of_class(0.0, n - below - above - missing, factor, drift, env)
    found[ABOVE] = slope_of_class(1.0, above, factor, drift, env)
    found[MISSING] = slope_of_class(np.nan, missing, factor, drift, env)


@outside
def slope_of_class(sg, n, factor, drift, env):  # pragma: no cover - compiled
    """Return factor (sg - drift), the subtraction left out where nothing is centred; counted n times."""
    # A class that does not occur is not computed, for it would be counted.
    if n == 0:
        return 0.0
    before = np.empty(COUNTED, np.int64)
    if field(env, CENTRES):
        counts = integers(context_at(env, SLOPE) + 8 * SCRATCH_AT, COUNTED)
        keep(counts, before)
        sg = add_scalars(sg, -drift, 0, SLOPE, env)
        times(counts, before, n)
    counts = integers(context_at(env, PROJECT) + 8 * SCRATCH_AT, COUNTED)
    keep(counts, before)
    found = mul_scalars(factor, sg, 0, PROJECT, env)
    times(counts, before, n)
    return found


@device
def keep(counts, before):
    """Copy the counters to `before`."""
    for j in range(COUNTED):
        before[j] = counts[j]


@device
def times(counts, before, n):
    """Count what was counted since `before` n times instead of once."""
    for j in range(COUNTED):
        counts[j] = before[j] + (counts[j] - before[j]) * n


@outside
def flow_of_signs(d, slopes, blocks, group, first, n, env):  # pragma: no cover - compiled
    """Leave the flow through s of a block in block 2; blocks 1, 3 and 5 are room."""
    found = view(slopes, 6, np.float64)
    if field(env, IS_FAST):
        # Four numbers known before the loop; choosing among them is no branch.
        x, y = floats(d, n), floats(blocks + 2 * BYTES, n)
        below, level = np.float32(found[BELOW]), np.float32(found[LEVEL])
        above, missing = np.float32(found[ABOVE]), np.float32(found[MISSING])
        for i in range(n):
            v = above if x[i] > ZERO else (below if x[i] < ZERO else level)
            y[i] = missing if x[i] != x[i] else v
        return
    signs = blocks + BYTES
    sign_block(d, signs, n)
    if field(env, CENTRES):
        fill(blocks + 5 * BYTES, found[DRIFT])
        operate(SUB, signs, blocks + 5 * BYTES, blocks + 3 * BYTES, group, first, n, SLOPE, env)
        signs = blocks + 3 * BYTES
    fill(blocks + 5 * BYTES, found[FACTOR])
    operate(MUL, blocks + 5 * BYTES, signs, blocks + 2 * BYTES, group, first, n, PROJECT, env)
