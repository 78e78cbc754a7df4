"""The forward pass of a layer in Triton: one program per group, which goes over its values three times.

    1.  x --cast--> sum for mu                          open sums in registers
    2.  x --cast, centre--> sum for s, or the largest
    3.  x --cast, centre--> / s, gamma, beta --> z      written where x lay

What a later pass needs again of an earlier one, the cast and the centring, it computes once more, uncounted: registers
do not hold a group.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.norms.cuda.cuda_members import at_members, few_sum, range_ends
from normstab.norms.cuda.cuda_parts import (
    FIRST_SITE,
    add_to_lanes,
    add_where_summed,
    cast,
    centred,
    constant,
    count_of,
    field,
    index_of,
    joined,
    operate,
    parameter_of,
    settled,
    share,
    tile,
    tiling,
    write,
)
from normstab.norms.fused.layer_table import FIELDS, FORWARD, KINDS
from normstab.numerics.kernels.cuda.cuda_bits import INF64, MAGNITUDE64, as_float64, as_int64
from normstab.numerics.kernels.cuda.cuda_kernels import CODES, read

__all__ = ["forward_kernel"]

N = tl.constexpr(FIELDS.index("n"))
NONE, L2, L1, LINF, TOPK, RANGE = (tl.constexpr(code) for code in KINDS.values())
ADD, SUB, MUL, DIV, SQRT = (tl.constexpr(CODES[name]) for name in ("add", "sub", "mul", "div", "sqrt"))
INPUT, MEAN_SUM, MEAN_DIV, CENTRE, SQUARE, MAX, TOTAL, SHARE = (
    tl.constexpr(FORWARD.index(name))
    for name in ("input", "mean.sum", "mean.div", "centre", "square", "max", "dispersion.sum", "dispersion.div")
)
CONSTANT, EPS, ROOT, RUNNING_VAR, RECIPROCAL, DIVIDE, SCALE, SHIFT = (
    tl.constexpr(FORWARD.index(name))
    for name in ("constant", "eps", "sqrt", "running_var", "reciprocal", "divide", "scale", "shift")
)
ONE = tl.constexpr(1023 << 52)  # the bits of 1


@triton.jit
def forward_kernel(
    x, z, gamma, beta, mean, scale, reciprocal, stored, members, signs, layer,
    KIND: tl.constexpr, K: tl.constexpr, MEMBERS: tl.constexpr, LANES: tl.constexpr, BLOCKED: tl.constexpr,
    BLOCK: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """Normalize the group of this program: x into z, both as their int32 bits.

    K members, MEMBERS the power of two that holds them; sums in LANES, or in blocks, LANES of them at a time.
    """
    group = tl.program_id(0).to(tl.int64)
    own = group + tl.arange(0, 1)  # the index of the group's own numbers
    mu = mean_of(x, group, own, layer, LANES, BLOCKED, HOW)
    if (HOW >> (FIRST_SITE + CENTRE)) & 1:
        write(mean, own, mu, own >= 0)
    divisor = mu
    if KIND != NONE:
        magnitude = mu
        if (KIND == L2) | (KIND == L1):
            magnitude = dispersion_of(x, mu, group, own, layer, KIND, LANES, BLOCKED, HOW)
        elif KIND == RANGE:
            # Of x itself, before anything is centred.
            first, last = range_ends(x, members, group, own, layer, BLOCK, HOW)
            magnitude = operate(first, last, own, own >= 0, layer, SUB, MAX, HOW, True)
        else:
            magnitude = largest_of(
                x, mu, members, signs, group, own, layer, KIND, K, MEMBERS, LANES, BLOCKED, BLOCK, HOW
            )
        s, statistic = scale_of(magnitude, own, layer, KIND, HOW)
        write(scale, own, s, own >= 0)
        write(stored, own, statistic, own >= 0)
        divisor = s
        if (HOW >> (FIRST_SITE + RECIPROCAL)) & 1:
            divisor = operate(own * 0 + ONE, s, own, own >= 0, layer, DIV, RECIPROCAL, HOW, True)
            write(reciprocal, own, divisor, own >= 0)
    finish(x, z, gamma, beta, mu, divisor, group, layer, KIND, BLOCK, HOW)


@triton.jit
def mean_of(x, group, own, layer, LANES: tl.constexpr, BLOCKED: tl.constexpr, HOW: tl.constexpr):
    """Return mu, or zero where nothing is centred; every value's cast is counted here."""
    n, total = field(layer, N), own * 0
    steps, span = tiling(n, layer, LANES, BLOCKED)
    for base in range(0, n, span):
        lanes = tl.zeros([LANES], tl.int64)
        for t in range(steps):
            position, inside = tile(base, t, n, layer, LANES, BLOCKED)
            index = index_of(group, position, layer, 0)
            value = cast(read(x, index, inside), index, inside, layer, INPUT, HOW, True)
            lanes = add_where_summed(lanes, value, t, index, inside, layer, MEAN_SUM, HOW)
        total = joined(total, lanes, base, group, n, layer, MEAN_SUM, HOW, LANES, BLOCKED, 0)
    if (HOW >> (FIRST_SITE + MEAN_SUM)) & 1:
        total = share(total, count_of(layer), own, layer, MEAN_SUM, MEAN_DIV, HOW)
    return total


@triton.jit
def dispersion_of(
    x, mu, group, own, layer, KIND: tl.constexpr, LANES: tl.constexpr, BLOCKED: tl.constexpr, HOW: tl.constexpr
):
    """Return mean(d d) of l2, mean(abs d) of l1."""
    n, total = field(layer, N), own * 0
    steps, span = tiling(n, layer, LANES, BLOCKED)
    for base in range(0, n, span):
        lanes = tl.zeros([LANES], tl.int64)
        for t in range(steps):
            position, inside = tile(base, t, n, layer, LANES, BLOCKED)
            index = index_of(group, position, layer, 0)
            d = centred(x, mu, index, inside, layer, INPUT, CENTRE, HOW, True)
            # The magnitude by its bits: abs is exact, and no operation.
            addend = d & MAGNITUDE64
            if KIND == L2:
                addend = operate(d, d, index, inside, layer, MUL, SQUARE, HOW, True)
            lanes = add_to_lanes(lanes, addend, t, index, inside, layer, TOTAL, HOW)
        total = joined(total, lanes, base, group, n, layer, TOTAL, HOW, LANES, BLOCKED, 0)
    return share(total, count_of(layer), own, layer, TOTAL, SHARE, HOW)


@triton.jit
def largest_of(
    x, mu, members, signs, group, own, layer,
    KIND: tl.constexpr, K: tl.constexpr, MEMBERS: tl.constexpr, LANES: tl.constexpr, BLOCKED: tl.constexpr,
    BLOCK: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """Return the largest abs(d), or the mean of the K largest, and note where they are and their signs."""
    largest = at_members(x, mu, members, signs, group, layer, K, MEMBERS, BLOCK, HOW)
    # One member: the sum of its vector, zeros but for it, is itself.
    if KIND == LINF:
        magnitude = own * 0 + tl.sum(largest, axis=0)
    else:
        total = few_sum(largest, group, own, layer, TOTAL, K, MEMBERS, LANES, BLOCKED, HOW)
        k = (own * 0 + K).to(tl.float64).to(tl.int64, bitcast=True)
        magnitude = share(total, k, own, layer, TOTAL, SHARE, HOW)
    return magnitude


@triton.jit
def scale_of(magnitude, own, layer, KIND: tl.constexpr, HOW: tl.constexpr):
    """Return s, and the statistic that running averages keep."""
    always = own >= 0
    if KIND != L2:
        magnitude = operate(own * 0 + constant(layer, 0), magnitude, own, always, layer, MUL, CONSTANT, HOW, True)
    s = magnitude
    if (HOW >> (FIRST_SITE + EPS)) & 1:
        s = operate(s, own * 0 + constant(layer, 1), own, always, layer, ADD, EPS, HOW, True)
    if KIND == L2:
        s = operate(s, s, own, always, layer, SQRT, ROOT, HOW, True)
        if (HOW >> (FIRST_SITE + RUNNING_VAR)) & 1:
            magnitude = unbiased(magnitude, own, layer, HOW)
    return s, magnitude


@triton.jit
def unbiased(v, own, layer, HOW: tl.constexpr):
    """Return (v n) / (n - 1), formed in float64 and rounded once."""
    # In float64, where n is exact: counts are never cast to a format.
    n, a = field(layer, N).to(tl.float64), v & MAGNITUDE64
    x = as_int64((as_float64(v) * n) / (n - 1))
    return settled(x, own, a > INF64, a == INF64, a < 0, own >= 0, layer, RUNNING_VAR, HOW, True)


@triton.jit
def finish(x, z, gamma, beta, mu, divisor, group, layer, KIND: tl.constexpr, BLOCK: tl.constexpr, HOW: tl.constexpr):
    """Write z = gamma (d / s) + beta; `divisor` is s, or 1 / s in that form."""
    n = field(layer, N)
    for first in range(0, n, BLOCK):
        position = first + tl.arange(0, BLOCK).to(tl.int64)
        inside = position < n
        index = index_of(group, position, layer, 0)
        # Only the sums of l2 and l1 have centred, and counted it, before.
        y = centred(x, mu, index, inside, layer, INPUT, CENTRE, HOW, (KIND != L2) & (KIND != L1))
        if (HOW >> (FIRST_SITE + RECIPROCAL)) & 1:
            y = operate(y, divisor, index, inside, layer, MUL, DIVIDE, HOW, True)
        elif KIND != NONE:
            y = operate(y, divisor, index, inside, layer, DIV, DIVIDE, HOW, True)
        if (HOW >> (FIRST_SITE + SCALE)) & 1:
            y = operate(
                parameter_of(gamma, group, position, inside, layer), y, index, inside, layer, MUL, SCALE, HOW, True
            )
        if (HOW >> (FIRST_SITE + SHIFT)) & 1:
            y = operate(
                y, parameter_of(beta, group, position, inside, layer), index, inside, layer, ADD, SHIFT, HOW, True
            )
        write(z, index, y, inside)
