"""The backward pass of a layer in Triton: one program per group sums in a first pass, writes dL/dx in a second.

    1.  x, grad --> y, g --> sums of g, g y, sign(d), for gamma and beta     open sums in registers
    2.  x, grad --> y, g --> ((g - mean(g)) - flow) / s --> dx

A group does not fit in registers, so that nothing but its sums is kept. The centred and the normalized values are
computed once more from the input in either pass, uncounted, with the same random bits; g once more in the second.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from normstab.norms.cuda.cuda_members import sign_of
from normstab.norms.cuda.cuda_parts import (
    FIRST_SITE,
    RECIPROCAL_FORM,
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
    share,
    tile,
    tiling,
    write,
)
from normstab.norms.fused.layer_table import BACKWARD, FIELDS, KINDS
from normstab.numerics.kernels.cuda.cuda_kernels import CODES, read

__all__ = ["backward_kernel"]

N, LEAST = tl.constexpr(FIELDS.index("n")), tl.constexpr(-(2**63))
NONE, L2, L1, LINF, TOPK, RANGE = (tl.constexpr(code) for code in KINDS.values())
SUB, MUL, DIV = (tl.constexpr(CODES[name]) for name in ("sub", "mul", "div"))
GRAD, DB_SUM, D_BETA, DG_PRODUCT, DG_SUM, D_GAMMA, SCALE, MEAN_SUM, MEAN_DIV, CENTRE = (
    tl.constexpr(BACKWARD.index(name))
    for name in (
        "grad", "dbeta.sum", "dbeta", "dgamma.product", "dgamma.sum", "dgamma", "scale", "mean.sum", "mean.div",
        "centre",
    )
)  # fmt: skip
PRODUCT, PRODUCT_SUM, PRODUCT_DIV, CONSTANT, SLOPE_SUM, SLOPE_DIV, SLOPE, PROJECT, ELSEWHERE, SUBTRACT, DIVIDE = (
    tl.constexpr(BACKWARD.index(name))
    for name in (
        "product", "product.sum", "product.div", "constant", "slope.sum", "slope.div", "slope", "project",
        "project.elsewhere", "subtract", "divide",
    )
)  # fmt: skip
AGAIN_INPUT, AGAIN_CENTRE, AGAIN_DIVIDE = (
    tl.constexpr(BACKWARD.index(name)) for name in ("silent.input", "silent.centre", "silent.divide")
)


@triton.jit
def backward_kernel(
    grad, x, gamma, mean, scale, reciprocal, members, slope, dx, d_gamma, d_beta, product, grad_cast, layer,
    KIND: tl.constexpr, K: tl.constexpr, MEMBERS: tl.constexpr, LANES: tl.constexpr, BLOCKED: tl.constexpr,
    BLOCK: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the group of this program, each as its int32 bits; None where one is not needed.

    `slope` (R, K + 1) holds ds/dx at the members and elsewhere. Where the parameters' sums run over several
    groups, `grad_cast` and `product` are written instead, to be summed afterwards.
    """
    group = tl.program_id(0).to(tl.int64)
    own = group + tl.arange(0, 1)
    always = own >= 0
    mu, s = read(mean, own, always), read(scale, own, always)
    divisor = s
    if (HOW & RECIPROCAL_FORM) > 0:
        divisor = read(reciprocal, own, always)
    db, dg, of_g, of_gy, of_sign = first_pass(
        grad, x, gamma, mu, divisor, product, grad_cast, group, own, layer, KIND, LANES, BLOCKED, HOW
    )
    if (HOW >> (FIRST_SITE + D_BETA)) & 1:
        write(d_beta, own, cast(db, own, always, layer, D_BETA, HOW, True), always)
    if (HOW >> (FIRST_SITE + D_GAMMA)) & 1:
        write(d_gamma, own, cast(dg, own, always, layer, D_GAMMA, HOW, True), always)
    if dx is not None:
        drift, weight = own * 0, of_gy
        if (HOW >> (FIRST_SITE + CENTRE)) & 1:
            of_g = share(of_g, count_of(layer), own, layer, MEAN_SUM, MEAN_DIV, HOW)
        if (KIND == L2) | (KIND == L1):
            weight = share(of_gy, count_of(layer), own, layer, PRODUCT_SUM, PRODUCT_DIV, HOW)
        # C1 mean(g y), of which the flow of every value is a multiple.
        if KIND == L1:
            weight = operate(own * 0 + constant(layer, 0), weight, own, always, layer, MUL, CONSTANT, HOW, True)
        if (HOW >> (FIRST_SITE + SLOPE_SUM)) & 1:
            drift = share(of_sign, count_of(layer), own, layer, SLOPE_SUM, SLOPE_DIV, HOW)
        second_pass(
            grad, x, gamma, members, slope, dx, mu, s, divisor, of_g, weight, drift, group, own, layer,
            KIND, K, MEMBERS, BLOCK, HOW,
        )  # fmt: skip


@triton.jit
def first_pass(
    grad, x, gamma, mu, divisor, product, grad_cast, group, own, layer,
    KIND: tl.constexpr, LANES: tl.constexpr, BLOCKED: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """Return the sums of grad and grad y for beta and gamma, and of g, g y and sign(d); unused ones are zero."""
    n, nothing = field(layer, N), own * 0
    db, dg, of_g, of_gy, of_sign = nothing, nothing, nothing, nothing, nothing
    steps, span = tiling(n, layer, LANES, BLOCKED)
    for base in range(0, n, span):
        # A sum that has no call keeps its zeros, and costs nothing: HOW is known to the compiler.
        none = tl.zeros([LANES], tl.int64)
        db_lanes, dg_lanes, g_lanes, gy_lanes, sign_lanes = none, none, none, none, none
        for t in range(steps):
            position, inside = tile(base, t, n, layer, LANES, BLOCKED)
            index = index_of(group, position, layer, 0)
            d = centred(x, mu, index, inside, layer, AGAIN_INPUT, AGAIN_CENTRE, HOW, False)
            y = normalized(d, divisor, index, inside, layer, HOW)
            g = cast(read(grad, index, inside), index, inside, layer, GRAD, HOW, True)
            if grad_cast is not None:
                write(grad_cast, index, g, inside)
            db_lanes = add_where_summed(db_lanes, g, t, index, inside, layer, DB_SUM, HOW)
            if (HOW >> (FIRST_SITE + DG_PRODUCT)) & 1:
                term = operate(g, y, index, inside, layer, MUL, DG_PRODUCT, HOW, True)
                if product is not None:
                    write(product, index, term, inside)
                dg_lanes = add_where_summed(dg_lanes, term, t, index, inside, layer, DG_SUM, HOW)
            g = scaled(g, gamma, group, position, index, inside, layer, HOW, True)
            g_lanes = add_where_summed(g_lanes, g, t, index, inside, layer, MEAN_SUM, HOW)
            if (HOW >> (FIRST_SITE + PRODUCT)) & 1:
                gy = operate(g, y, index, inside, layer, MUL, PRODUCT, HOW, True)
                gy_lanes = add_to_lanes(gy_lanes, gy, t, index, inside, layer, PRODUCT_SUM, HOW)
            sign_lanes = add_where_summed(sign_lanes, sign_of(d), t, index, inside, layer, SLOPE_SUM, HOW)
        db = joined(db, db_lanes, base, group, n, layer, DB_SUM, HOW, LANES, BLOCKED, 0)
        dg = joined(dg, dg_lanes, base, group, n, layer, DG_SUM, HOW, LANES, BLOCKED, 0)
        of_g = joined(of_g, g_lanes, base, group, n, layer, MEAN_SUM, HOW, LANES, BLOCKED, 0)
        of_gy = joined(of_gy, gy_lanes, base, group, n, layer, PRODUCT_SUM, HOW, LANES, BLOCKED, 0)
        of_sign = joined(of_sign, sign_lanes, base, group, n, layer, SLOPE_SUM, HOW, LANES, BLOCKED, 0)
    return db, dg, of_g, of_gy, of_sign


@triton.jit
def normalized(d, divisor, index, inside, layer, HOW: tl.constexpr):
    """Return y = d / s once more."""
    y = d
    if (HOW >> (FIRST_SITE + AGAIN_DIVIDE)) & 1:
        if (HOW & RECIPROCAL_FORM) > 0:
            y = operate(d, divisor, index, inside, layer, MUL, AGAIN_DIVIDE, HOW, False)
        else:
            y = operate(d, divisor, index, inside, layer, DIV, AGAIN_DIVIDE, HOW, False)
    return y


@triton.jit
def scaled(g, gamma, group, position, index, inside, layer, HOW: tl.constexpr, COUNTS: tl.constexpr):
    """Return gamma grad, or grad where there is no gamma or its product is not needed."""
    if (HOW >> (FIRST_SITE + SCALE)) & 1:
        parameter = parameter_of(gamma, group, position, inside, layer)
        g = operate(parameter, g, index, inside, layer, MUL, SCALE, HOW, COUNTS)
    return g


@triton.jit
def second_pass(
    grad, x, gamma, members, slope, dx, mu, s, divisor, mean_g, weight, drift, group, own, layer,
    KIND: tl.constexpr, K: tl.constexpr, MEMBERS: tl.constexpr, BLOCK: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """Write dL/dx: ((g - mean(g)) - the flow through s) / s."""
    n = field(layer, N)
    if (KIND != NONE) & (KIND != L2) & (KIND != L1):
        places, at_places, elsewhere = flows_of_members(members, slope, weight, group, own, layer, K, MEMBERS, HOW)
    for first in range(0, n, BLOCK):
        position = first + tl.arange(0, BLOCK).to(tl.int64)
        inside = position < n
        index = index_of(group, position, layer, 0)
        g = cast(read(grad, index, inside), index, inside, layer, GRAD, HOW, False)
        h = scaled(g, gamma, group, position, index, inside, layer, HOW, False)
        if (HOW >> (FIRST_SITE + CENTRE)) & 1:
            h = operate(h, mean_g, index, inside, layer, SUB, CENTRE, HOW, True)
        if KIND != NONE:
            if (KIND == L2) | (KIND == L1):
                d = centred(x, mu, index, inside, layer, AGAIN_INPUT, AGAIN_CENTRE, HOW, False)
                flow = flow_of(d, divisor, weight, drift, index, inside, layer, KIND, HOW)
            else:
                # Members are few: each position is compared with all of them, and takes the flow of the one that it is.
                is_there = position[:, None] == places[None, :]
                found = tl.max(tl.where(is_there, at_places[None, :], LEAST), axis=1)
                flow = tl.where(tl.sum(is_there.to(tl.int64), axis=1) > 0, found, elsewhere)
            h = operate(h, flow, index, inside, layer, SUB, SUBTRACT, HOW, True)
            h = operate(h, s, index, inside, layer, DIV, DIVIDE, HOW, True)
        write(dx, index, h, inside)


@triton.jit
def flow_of(d, divisor, weight, drift, index, inside, layer, KIND: tl.constexpr, HOW: tl.constexpr):
    """Return y mean(g y) of l2, or C1 mean(g y) (sg - mean(sg)) of l1."""
    if KIND == L2:
        y = normalized(d, divisor, index, inside, layer, HOW)
        flow = operate(y, weight, index, inside, layer, MUL, PROJECT, HOW, True)
    else:
        sg = sign_of(d)
        if (HOW >> (FIRST_SITE + SLOPE)) & 1:
            sg = operate(sg, drift, index, inside, layer, SUB, SLOPE, HOW, True)
        flow = operate(weight, sg, index, inside, layer, MUL, PROJECT, HOW, True)
    return flow


@triton.jit
def flows_of_members(
    members, slope, weight, group, own, layer, K: tl.constexpr, MEMBERS: tl.constexpr, HOW: tl.constexpr
):
    """Return the positions of the members, sum(g y) ds/dx there, and at every other place."""
    slot = tl.arange(0, MEMBERS).to(tl.int64)
    is_member, index = slot < K, group * K + slot
    places = tl.load(members + index, mask=is_member, other=-1)
    slope_there = read(slope, group * (K + 1) + slot, is_member)
    at_places = operate(weight, slope_there, index, is_member, layer, MUL, PROJECT, HOW, True)
    slope_elsewhere = read(slope, own * (K + 1) + K, own >= 0)
    elsewhere = operate(weight, slope_elsewhere, own, own >= 0, layer, MUL, ELSEWHERE, HOW, True)
    return places, at_places, elsewhere
