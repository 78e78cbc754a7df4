"""The fused backward pass of linf, topK and range: sums over a group in a first pass, gradients of values in a second.

    1.  x, grad  --> y, g = gamma grad --> sums of g, g y, for gamma and beta      g is kept
        sums     --> mean(g), the flow through s of each member and of all others  a few scalars
    2.  g        --> ((g - mean(g)) - flow) / s --> dx

The centred and the normalized values are computed once more from the input, silently and with the same random
bits: writing them to memory in the forward pass would cost more.

    block 0: scratch, then s | 1: grad, results | 2: y, flow | 3: gamma, rest | 4: mu, then mean(g) | 5: s
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from normstab.norms.cpu.block_operations import operate
from normstab.norms.cpu.block_steps import CAST, DIV, EVERY, MUL, SUB
from normstab.norms.cpu.environment import SLOTS, field, floats, integers, slot
from normstab.norms.cpu.group_memory import copy, fill, gather, gather_parameters, scatter
from normstab.norms.cpu.group_sums import add_to_sum, finish_sum
from normstab.norms.cpu.scalars import cast_scalar, div_scalars, mul_scalars
from normstab.norms.fused.layer_table import BACKWARD, BLOCK, FIELDS
from normstab.numerics.kernels.cpu.compile import kernel, outside

__all__ = ["backward_groups"]

N, K, CENTRES, RECIPROCAL_FORM, HAS_GAMMA, SUMS_PARAMETERS, NEEDS_INPUT, NEEDS_GAMMA, NEEDS_BETA = (
    FIELDS.index(name)
    for name in (
        "n", "k", "centres", "reciprocal", "has_gamma", "sums_parameters", "needs_input", "needs_gamma",
        "needs_beta",
    )
)  # fmt: skip
GRAD, DB_SUM, D_BETA, DG_PRODUCT, DG_SUM, D_GAMMA, SCALE, MEAN_SUM, MEAN_DIV, CENTRE = (
    BACKWARD.index(name)
    for name in (
        "grad", "dbeta.sum", "dbeta", "dgamma.product", "dgamma.sum", "dgamma", "scale", "mean.sum", "mean.div",
        "centre",
    )
)  # fmt: skip
PRODUCT, PRODUCT_SUM, PROJECT, ELSEWHERE, SUBTRACT, DIVIDE = (
    BACKWARD.index(name) for name in ("product", "product.sum", "project", "project.elsewhere", "subtract", "divide")
)
AGAIN_INPUT, AGAIN_CENTRE, AGAIN_DIVIDE = (
    BACKWARD.index(name) for name in ("silent.input", "silent.centre", "silent.divide")
)
AT_GRAD, AT_X, AT_GAMMA, AT_MEAN, AT_SCALE, AT_RECIPROCAL, AT_MEMBERS, AT_SLOPE, AT_DX = (
    SLOTS.index(name) for name in ("grad", "x", "gamma", "mean", "scale", "reciprocal", "members", "slope", "dx")
)
AT_D_GAMMA, AT_D_BETA, AT_GRAD_CAST, AT_PRODUCT, AT_VALUES, AT_BLOCK = (
    SLOTS.index(name) for name in ("d_gamma", "d_beta", "grad_cast", "product", "values", "block")
)
BYTES = 4 * BLOCK
OF_BETA, OF_GAMMA, OF_MEAN, OF_PRODUCT = range(4)


@kernel
def backward_groups(env, first, last):  # pragma: no cover - compiled
    """Write the gradients of groups first .. last - 1.

    `slope` (R, K + 1) holds ds/dx at the members and elsewhere. Where the parameters' sums run over several
    groups, `grad_cast` and `product` are written instead, to be summed afterwards.
    """
    n, g, block = field(env, N), slot(env, AT_VALUES), slot(env, AT_BLOCK)
    for group in range(first, last):
        # Scalars of a group as whole blocks, so that operations have operands of one kind.
        fill(block + 4 * BYTES, at_group(env, AT_MEAN, group))
        divisor = AT_RECIPROCAL if field(env, RECIPROCAL_FORM) else AT_SCALE
        fill(block + 5 * BYTES, at_group(env, divisor, group))
        for j in range(0, n, BLOCK):
            m = min(BLOCK, n - j)
            normalize_again(group, j, m, env)
            first_pass(g + 4 * j, group, j, m, env)
        if field(env, SUMS_PARAMETERS):
            sum_parameters(group, env)
        if field(env, NEEDS_INPUT):
            weigh(group, env)
            for j in range(0, n, BLOCK):
                second_pass(g + 4 * j, group, j, min(BLOCK, n - j), env)


@outside
def at_group(env, which, group):  # pragma: no cover - compiled
    """Return the number of a group in one of the layer's tensors."""
    return floats(slot(env, which), group + 1)[group]


@outside
def normalize_again(group, first, n, env):  # pragma: no cover - compiled
    """Leave y in block 2, uncounted; mu is in block 4, and s or 1 / s in block 5."""
    block = slot(env, AT_BLOCK)
    d, y, divisor = block + BYTES, block + 2 * BYTES, block + 5 * BYTES
    gather(slot(env, AT_X), group, first, n, block, env)
    operate(CAST, block, block, d, group, first, n, AGAIN_INPUT, env)
    if field(env, CENTRES):
        operate(SUB, d, block + 4 * BYTES, block, group, first, n, AGAIN_CENTRE, env)
        d = block
    operate(MUL if field(env, RECIPROCAL_FORM) else DIV, d, divisor, y, group, first, n, AGAIN_DIVIDE, env)


@outside
def first_pass(g, group, first, n, env):  # pragma: no cover - compiled
    """Add one block to the sums, y being in block 2; leave g = gamma grad in `g`."""
    total, block = field(env, N), slot(env, AT_BLOCK)
    grad, y = block + BYTES, block + 2 * BYTES
    gather(slot(env, AT_GRAD), group, first, n, block, env)
    operate(CAST, block, block, grad, group, first, n, GRAD, env)
    parameters(grad, y, group, first, n, env)
    if field(env, NEEDS_INPUT) == 0:
        return
    if field(env, HAS_GAMMA):
        gather_parameters(slot(env, AT_GAMMA), group, first, n, block + 3 * BYTES, env)
        operate(MUL, block + 3 * BYTES, grad, g, group, first, n, SCALE, env)
    else:
        copy(grad, g, n)
    if field(env, CENTRES):
        add_to_sum(OF_MEAN, g, EVERY, group, first, n, total, MEAN_SUM, env)
    operate(MUL, g, y, block, group, first, n, PRODUCT, env)
    add_to_sum(OF_PRODUCT, block, EVERY, group, first, n, total, PRODUCT_SUM, env)


@outside
def parameters(grad, y, group, first, n, env):  # pragma: no cover - compiled
    """Add a block to the gradients of gamma and beta, or write its terms."""
    total, block = field(env, N), slot(env, AT_BLOCK)
    if field(env, NEEDS_BETA):
        if field(env, SUMS_PARAMETERS):
            add_to_sum(OF_BETA, grad, EVERY, group, first, n, total, DB_SUM, env)
        else:
            # Several groups share a beta: its terms are summed when all are written.
            scatter(grad, group, first, n, slot(env, AT_GRAD_CAST), env)
    if field(env, NEEDS_GAMMA):
        operate(MUL, grad, y, block, group, first, n, DG_PRODUCT, env)
        if field(env, SUMS_PARAMETERS):
            add_to_sum(OF_GAMMA, block, EVERY, group, first, n, total, DG_SUM, env)
        else:
            scatter(block, group, first, n, slot(env, AT_PRODUCT), env)


@outside
def sum_parameters(group, env):  # pragma: no cover - compiled
    """Write the gradients of a channel's gamma and beta."""
    n = field(env, N)
    if field(env, NEEDS_BETA):
        total = finish_sum(OF_BETA, group, n, DB_SUM, env)
        floats(slot(env, AT_D_BETA), group + 1)[group] = cast_scalar(total, group, D_BETA, env)
    if field(env, NEEDS_GAMMA):
        total = finish_sum(OF_GAMMA, group, n, DG_SUM, env)
        floats(slot(env, AT_D_GAMMA), group + 1)[group] = cast_scalar(total, group, D_GAMMA, env)


@outside
def weigh(group, env):  # pragma: no cover - compiled
    """Close the sums: mean(g) into block 4, the flow through s into `slope`; s into block 0."""
    n, block = field(env, N), slot(env, AT_BLOCK)
    if field(env, CENTRES):
        total = finish_sum(OF_MEAN, group, n, MEAN_SUM, env)
        fill(block + 4 * BYTES, div_scalars(total, np.float64(n), group, MEAN_DIV, env))
    weight = finish_sum(OF_PRODUCT, group, n, PRODUCT_SUM, env)
    k = field(env, K)
    slope = floats(slot(env, AT_SLOPE) + 4 * (k + 1) * group, k + 1)
    # In place of ds/dx at each member, the flow there; last the flow at every other value.
    for i in range(k):
        slope[i] = mul_scalars(weight, np.float64(slope[i]), group * k + i, PROJECT, env)
    slope[k] = mul_scalars(weight, np.float64(slope[k]), group, ELSEWHERE, env)
    # By s itself, even where y is d (1 / s).
    fill(block, at_group(env, AT_SCALE, group))


@outside
def second_pass(g, group, first, n, env):  # pragma: no cover - compiled
    """Write the gradient of one block of values."""
    block = slot(env, AT_BLOCK)
    result, flow, rest = block + BYTES, block + 2 * BYTES, block + 3 * BYTES
    if field(env, CENTRES):
        operate(SUB, g, block + 4 * BYTES, result, group, first, n, CENTRE, env)
        copy(result, g, n)
    place_members(flow, group, first, n, env)
    operate(SUB, g, flow, rest, group, first, n, SUBTRACT, env)
    operate(DIV, rest, block, result, group, first, n, DIVIDE, env)
    scatter(result, group, first, n, slot(env, AT_DX), env)


@outside
def place_members(flow, group, first, n, env):  # pragma: no cover - compiled
    """Fill a block with the flow through s: that of the members in it, and that of all others."""
    k = field(env, K)
    slope, y = floats(slot(env, AT_SLOPE) + 4 * (k + 1) * group, k + 1), floats(flow, BLOCK)
    members = integers(slot(env, AT_MEMBERS) + 8 * k * group, k)
    # Every value but the few members has one and the same flow.
    y[:] = slope[k]
    for i in range(k):
        if first <= members[i] < first + n:
            y[members[i] - first] = slope[i]
