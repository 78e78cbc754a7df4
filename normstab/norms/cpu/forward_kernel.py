"""The fused forward pass of linf, topK and range: three passes over the values of a group, which stay in the cache.

    x, a group --gather, cast--> values            1. the sum for mu        a block of 1024 values at a time
                                 values - mu       2. the largest
                                 values / s --> z  3. gamma, beta, written where x lay

Every operation is the one that `op_by_op` makes, rounded and counted at its own site: only the order in which values
are visited differs, and neither sums nor counters depend on that. The tensor is read once and written once.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.norms.cpu.block_operations import operate
from normstab.norms.cpu.block_steps import ADD, CAST, DIV, EVERY, MUL, SUB
from normstab.norms.cpu.environment import SLOTS, field, floats, integers, slot
from normstab.norms.cpu.group_memory import copy, fill, gather, gather_parameters, scatter
from normstab.norms.cpu.group_sums import add_to_sum, finish_sum
from normstab.norms.cpu.members import first_ends, largest_members
from normstab.norms.cpu.scalars import add_scalars, div_scalars, mul_scalars
from normstab.norms.fused.layer_table import BLOCK, FIELDS, FORWARD, KINDS
from normstab.numerics.kernels.cpu.compile import kernel, outside, view

__all__ = ["forward_groups"]

N, KIND, K, CENTRES, RECIPROCAL_FORM, HAS_GAMMA, HAS_BETA, HAS_EPS = (
    FIELDS.index(name) for name in ("n", "kind", "k", "centres", "reciprocal", "has_gamma", "has_beta", "has_eps")
)
INPUT, MEAN_SUM, MEAN_DIV, CENTRE, MAX, TOTAL, SHARE = (
    FORWARD.index(name)
    for name in ("input", "mean.sum", "mean.div", "centre", "max", "dispersion.sum", "dispersion.div")
)
CONSTANT, EPS, RECIPROCAL, DIVIDE, SCALE, SHIFT = (
    FORWARD.index(name) for name in ("constant", "eps", "reciprocal", "divide", "scale", "shift")
)
AT_X, AT_Z, AT_GAMMA, AT_BETA, AT_MEAN, AT_SCALE, AT_RECIPROCAL, AT_STORED, AT_MEMBERS, AT_SIGNS = (
    SLOTS.index(name)
    for name in ("x", "z", "gamma", "beta", "mean", "scale", "reciprocal", "stored", "members", "signs")
)
AT_VALUES, AT_BLOCK, AT_FOUND, AT_CONSTANTS = (SLOTS.index(name) for name in ("values", "block", "found", "constants"))
LENGTH, GROUP_STRIDE = FIELDS.index("length"), FIELDS.index("group_stride")
LINF, RANGE = KINDS["linf"], KINDS["range"]
OF_MEAN, OF_FEW = 0, 1
BYTES = 4 * BLOCK


@kernel
def forward_groups(env, first, last):  # pragma: no cover - compiled
    """Normalize groups first .. last - 1 of x into z."""
    n, values, block = field(env, N), slot(env, AT_VALUES), slot(env, AT_BLOCK)
    for group in range(first, last):
        for j in range(0, n, BLOCK):
            m = min(BLOCK, n - j)
            gather(slot(env, AT_X), group, j, m, block, env)
            # A cast has one operand, whose address stands for both.
            operate(CAST, block, block, values + 4 * j, group, j, m, INPUT, env)
            if field(env, CENTRES):
                add_to_sum(OF_MEAN, values + 4 * j, EVERY, group, j, m, n, MEAN_SUM, env)
        # Before the mean is taken away: range is of x itself.
        spread, mu = range_of(group, env), 0.0
        if field(env, CENTRES):
            mu = div_scalars(finish_sum(OF_MEAN, group, n, MEAN_SUM, env), np.float64(n), group, MEAN_DIV, env)
            floats(slot(env, AT_MEAN), group + 1)[group] = mu
        centre(mu, group, env)
        s = scale_of(spread, group, env)
        floats(slot(env, AT_SCALE), group + 1)[group] = s
        if field(env, RECIPROCAL_FORM):
            s = div_scalars(1.0, s, group, RECIPROCAL, env)
            floats(slot(env, AT_RECIPROCAL), group + 1)[group] = s
        # s, or 1 / s, as a whole block: the other operand of the divisions to come.
        fill(block, s)
        note_signs(group, env)
        for j in range(0, n, BLOCK):
            m = min(BLOCK, n - j)
            finish(values + 4 * j, group, j, m, env)
            scatter(values + 4 * j, group, j, m, slot(env, AT_Z), env)


@outside
def range_of(group, env):  # pragma: no cover - compiled
    """Return max x - min x, and note where both are; 0 for another norm than range."""
    if field(env, KIND) != RANGE:
        return 0.0
    values, members = slot(env, AT_VALUES), slot(env, AT_MEMBERS) + 16 * group
    first_ends(values, field(env, N), members)
    ends = integers(members, 2)
    x = floats(values, field(env, N))
    return add_scalars(np.float64(x[ends[0]]), -np.float64(x[ends[1]]), group, MAX, env)


@outside
def centre(mu, group, env):  # pragma: no cover - compiled
    """Replace the values by d = x - mu."""
    if field(env, CENTRES) == 0:
        return
    n, block = field(env, N), slot(env, AT_BLOCK)
    result = block + BYTES
    fill(block, mu)
    for j in range(0, n, BLOCK):
        m, d = min(BLOCK, n - j), slot(env, AT_VALUES) + 4 * j
        # A result is not written over its operands, which a recount would still ask for.
        operate(SUB, d, block, result, group, j, m, CENTRE, env)
        copy(result, d, m)


@outside
def scale_of(spread, group, env):  # pragma: no cover - compiled
    """Return s, and store the statistic that running averages keep, which has no eps in it."""
    constants = view(slot(env, AT_CONSTANTS), 2, np.float64)
    magnitude = spread if field(env, KIND) == RANGE else largest(group, env)
    magnitude = mul_scalars(constants[0], magnitude, group, CONSTANT, env)
    floats(slot(env, AT_STORED), group + 1)[group] = magnitude
    return add_scalars(magnitude, constants[1], group, EPS, env) if field(env, HAS_EPS) else magnitude


@outside
def largest(group, env):  # pragma: no cover - compiled
    """Return the largest abs(d), or the mean of the k largest; their sum is that of a row of k addends."""
    k, found = field(env, K), slot(env, AT_FOUND)
    largest_members(slot(env, AT_VALUES), field(env, N), slot(env, AT_MEMBERS) + 8 * k * group, found, k)
    if field(env, KIND) == LINF:
        return np.float64(floats(found, 1)[0])
    # For this sum the addends are a row of a tensor of k columns, which places their random bits.
    row = integers(env, len(FIELDS))
    length, stride = row[LENGTH], row[GROUP_STRIDE]
    row[LENGTH], row[GROUP_STRIDE] = k, k
    add_to_sum(OF_FEW, found, EVERY, group, 0, k, k, TOTAL, env)
    total = finish_sum(OF_FEW, group, k, TOTAL, env)
    row[LENGTH], row[GROUP_STRIDE] = length, stride
    return div_scalars(total, np.float64(k), group, SHARE, env)


@outside
def note_signs(group, env):  # pragma: no cover - compiled
    """Keep sign(d) at the members."""
    k = field(env, K)
    members, d = integers(slot(env, AT_MEMBERS) + 8 * k * group, k), floats(slot(env, AT_VALUES), field(env, N))
    signs = floats(slot(env, AT_SIGNS) + 4 * k * group, k)
    for i in range(k):
        x = d[members[i]]
        # NaN where d is NaN, 0 where it is zero.
        signs[i] = x if x != x else np.float32(x > 0) - np.float32(x < 0)


@outside
def finish(d, group, first, n, env):  # pragma: no cover - compiled
    """Replace a block of d by z = gamma (d / s) + beta; block 0 holds s, or its reciprocal."""
    block = slot(env, AT_BLOCK)
    result, gamma, beta = block + BYTES, block + 2 * BYTES, block + 3 * BYTES
    operate(MUL if field(env, RECIPROCAL_FORM) else DIV, d, block, result, group, first, n, DIVIDE, env)
    copy(result, d, n)
    if field(env, HAS_GAMMA):
        gather_parameters(slot(env, AT_GAMMA), group, first, n, gamma, env)
        operate(MUL, gamma, d, result, group, first, n, SCALE, env)
        copy(result, d, n)
    if field(env, HAS_BETA):
        gather_parameters(slot(env, AT_BETA), group, first, n, beta, env)
        operate(ADD, d, beta, result, group, first, n, SHIFT, env)
        copy(result, d, n)
