"""The scale s of each scheme, and its derivative: one definition per row of DISPERSIONS, op by op.

`measure` forms s from the centred values d. `correct` forms the part of the gradient that flows through s.
Both work in whatever Arithmetic they are given; what they mean is Hoffer et al. 2018. Which sites
they round at is listed in `op_by_op`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from normstab.norms.catalogue import Scheme
from normstab.norms.reduction import Ratio, Reduction
from normstab.numerics.arithmetic import Arithmetic

__all__ = ["DISPERSIONS", "Centred", "Flow", "Measured", "scale_of_stored", "slopes"]


class Measured(NamedTuple):
    """The scale, what a running statistic stores of it, and the members of a maximum or a top k.

    `scale` and `stored` have the reduced axes of size 1; `stored` is the unbiased variance for l2, s without
    eps for the others, None where nobody tracks it. `members` holds indices into the rows of the reduction,
    shape (R, K), or None.
    """

    scale: Tensor
    stored: Tensor | None
    members: Tensor | None = None


class Centred(NamedTuple):
    """The centred values d, the input, and its sum of squared deviations M2 where Welford's mean gave that too."""

    d: Tensor
    x: Tensor
    m2: Tensor | None = None


Measure = Callable[[Centred, Scheme, Reduction, Arithmetic], Measured]
Correct = Callable[[Tensor, "Flow", Scheme, Reduction, Arithmetic], Tensor]


class Flow(NamedTuple):
    """What the gradient through s is made of: g, the centred and the normalized values, and the members."""

    gradient: Tensor
    centred: Tensor
    normalized: Tensor
    members: Tensor | None


@dataclass(frozen=True)
class Dispersion:
    """The two halves of a scheme: `measure` returns a Measured, `correct` returns h minus the flow through s."""

    measure: Measure
    correct: Correct


# ---------------------------------------------------------------------------------------------- l2 and lp


def measure_l2(centred: Centred, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Measured:
    """Form s = sqrt(mean(d d) + eps); with Welford's M2 the variance is M2 / n, and d d is never formed."""
    wide = ar.in_format("variance")
    if centred.m2 is not None:
        variance = wide.div(centred.m2, float(reduction.n), operation="variance")
    else:
        square = ar.in_format("square").mul(centred.d, centred.d, operation="square")
        variance = reduction.mean(square, wide, "dispersion")
    with reduction.alike(ar):
        scale = ar.sqrt(add_eps(variance, scheme, ar, wide), operation="sqrt")
        return Measured(scale, unbiased(variance, reduction.n, wide) if scheme.tracks else None)


def unbiased(variance: Tensor, n: int, ar: Arithmetic) -> Tensor:
    """Return (v n) / (n - 1), formed in float64 and rounded once at `running_var`; v itself for n = 1."""
    if n == 1:
        return variance
    return ar.apply(Ratio(n, n - 1), variance, operation="running_var")


def correct_mean_square(h: Tensor, flow: Flow, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Tensor:
    """Return h - y mean(g y): l2."""
    product = ar.mul(flow.gradient, flow.normalized, operation="product")
    mean_product = reduction.mean(product, ar, "product")
    return ar.sub(h, ar.mul(flow.normalized, mean_product, operation="project"), operation="subtract")


def measure_lp(centred: Centred, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Measured:
    """Form s = root_p(mean(abs(d)^p) + eps)."""
    assert scheme.spec is not None
    p = scheme.spec.p
    wide = ar.in_format("variance")
    power = ar.in_format("square").power(ar.abs(centred.d), exponent(p), operation="power")
    moment = reduction.mean(power, wide, "dispersion")
    with reduction.alike(ar):
        scale = ar.root(add_eps(moment, scheme, ar, wide), exponent(p), operation="root")
        stored = scale
        if scheme.tracks and scheme.eps != 0:
            stored = ar.root(moment, exponent(p), operation="running_var")
        return Measured(scale, stored)


def correct_lp(h: Tensor, flow: Flow, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Tensor:
    """Return h - mean(g y) (t - mean(t)) with t = sign(d) abs(y)^(p - 1)."""
    assert scheme.spec is not None
    power = ar.power(ar.abs(flow.normalized), exponent(scheme.spec.p - 1), operation="power")
    t = signed(power, ar.sign(flow.centred))
    product = ar.mul(flow.gradient, flow.normalized, operation="product")
    mean_product = reduction.mean(product, ar, "product")
    t = centred_sign(t, scheme, reduction, ar)
    return ar.sub(h, ar.mul(mean_product, t, operation="project"), operation="subtract")


# ------------------------------------------------------------------------------------------------------ l1


def measure_l1(centred: Centred, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Measured:
    """Form s = C1 mean(abs d) + eps."""
    magnitude = reduction.mean(ar.abs(centred.d), ar, "dispersion")
    with reduction.alike(ar):
        return with_constant(magnitude, None, scheme, reduction, ar)


def correct_l1(h: Tensor, flow: Flow, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Tensor:
    """Return h - (C1 mean(g y)) (sg - mean(sg)) with sg = sign(d)."""
    product = ar.mul(flow.gradient, flow.normalized, operation="product")
    mean_product = reduction.mean(product, ar, "product")
    factor = ar.constant(scheme.constant(reduction.n), operation="constant")
    weight = ar.mul(factor, mean_product, operation="constant")
    sg = centred_sign(ar.sign(flow.centred), scheme, reduction, ar)
    return ar.sub(h, ar.mul(weight, sg, operation="project"), operation="subtract")


# --------------------------------------------------------------------------- linf, topk, range: few members


def measure_linf(centred: Centred, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Measured:
    """Form s = Cinf max(abs d) + eps; the member is the first place of the maximum."""
    rows_RN = reduction.rows(ar.abs(centred.d))
    members = first_largest(rows_RN)
    magnitude = reduction.keepdim(rows_RN.gather(1, members))
    return with_constant(magnitude, members, scheme, reduction, ar)


def measure_topk(centred: Centred, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Measured:
    """Form s = Cinf mean(the k largest abs d) + eps, the members summed in the order of their indices."""
    assert scheme.spec is not None
    rows_RN = reduction.rows(ar.abs(centred.d))
    # A stable descending sort puts NaN first and keeps the lowest index first among equals.
    order = rows_RN.detach().sort(dim=1, descending=True, stable=True).indices
    members = order[:, : scheme.spec.k].sort(dim=1).values
    magnitude = ar.mean(rows_RN.gather(1, members), 1, keepdim=True, operation="dispersion")
    return with_constant(reduction.keepdim(magnitude), members, scheme, reduction, ar)


def measure_range(centred: Centred, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Measured:
    """Form s = C (max x - min x) + eps; the members are the first places of the maximum and the minimum."""
    rows_RN = reduction.rows(centred.x)
    members = torch.cat([first_largest(rows_RN), first_largest(-rows_RN)], dim=1)
    ends = rows_RN.gather(1, members)
    spread = ar.sub(ends[:, :1], ends[:, 1:], operation="max")
    return with_constant(reduction.keepdim(spread), members, scheme, reduction, ar)


def correct_members(h: Tensor, flow: Flow, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Tensor:
    """Return h - sum(g y) ds/dx; ds/dx has one value at each member and one at all other places of a row.

    Both are formed once per row, left to right as written here.
    """
    assert flow.members is not None
    product = ar.mul(flow.gradient, flow.normalized, operation="product")
    total = ar.sum(product, reduction.axes, keepdim=True, operation="product.sum")
    sign_RK = ar.sign(reduction.rows(flow.centred).gather(1, flow.members))
    slope = slopes(sign_RK, flow.members, scheme, reduction, ar)
    total_R1 = total.reshape(-1, 1)
    at_members = ar.mul(total_R1, slope.at_members, operation="project")
    elsewhere = ar.mul(total_R1, slope.elsewhere, operation="project")
    flow_RN = elsewhere.expand(-1, reduction.n).scatter(1, flow.members, at_members)
    return ar.sub(h, reduction.unrows(flow_RN), operation="subtract")


class Slopes(NamedTuple):
    """ds/dx at the members, shape (R, K), and at every other place, shape (R, 1)."""

    at_members: Tensor
    elsewhere: Tensor


def slopes(sign_RK: Tensor, members: Tensor, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Slopes:
    """Return ds/dx of linf, topk or range from sign(d) at the members, each operation rounded."""
    assert scheme.spec is not None
    factor = ar.constant(scheme.constant(reduction.n), operation="constant")
    kind = scheme.spec.kind
    if kind == "range":
        return range_slopes(sign_RK, members, factor, ar)
    one_R1 = torch.ones_like(sign_RK[:, :1])
    # Without centring ds/dx is zero outside the members: the share 1/n that flows through the mean is none.
    share = ar.div(one_R1, float(reduction.n), operation="slope.count") if scheme.centres else torch.zeros_like(one_R1)
    if kind == "linf":
        # Cinf sg_k (1[j = k] - 1/n)
        signed_factor = ar.mul(factor, sign_RK, operation="constant")
        inside, outside = one_R1, torch.zeros_like(one_R1)
    else:
        # (Cinf / K) (sg_j 1[j in T] - (1/n) sum of sg over T)
        signed_factor = ar.div(torch.full_like(one_R1, factor), float(sign_RK.shape[1]), operation="constant")
        inside, outside = sign_RK, torch.zeros_like(one_R1)
        share = ar.mul(share, ar.sum(sign_RK, 1, keepdim=True, operation="slope.sum"), operation="slope.count")
    return Slopes(
        ar.mul(signed_factor, ar.sub(inside, share, operation="slope"), operation="slope"),
        ar.mul(signed_factor, ar.sub(outside, share, operation="slope"), operation="slope"),
    )


def range_slopes(sign_RK: Tensor, members: Tensor, factor: float, ar: Arithmetic) -> Slopes:
    """Return C (1[j = argmax] - 1[j = argmin]), which is zero where both are the same place."""
    is_same = members[:, :1] == members[:, 1:]
    one_R1 = torch.ones_like(sign_RK[:, :1])
    ends = torch.where(is_same, 0.0, torch.cat([one_R1, -one_R1], 1))
    return Slopes(
        ar.mul(factor, ends, operation="slope"), ar.mul(factor, torch.zeros_like(ends[:, :1]), operation="slope")
    )


# ------------------------------------------------------------------------------------------- shared pieces


def with_constant(
    magnitude: Tensor, members: Tensor | None, scheme: Scheme, reduction: Reduction, ar: Arithmetic
) -> Measured:
    """Return C magnitude + eps as the scale, and C magnitude as what is stored."""
    factor = ar.constant(scheme.constant(reduction.n), operation="constant")
    stored = ar.mul(factor, magnitude, operation="constant")
    return Measured(add_eps(stored, scheme, ar, ar), stored, members)


def add_eps(value: Tensor, scheme: Scheme, ar: Arithmetic, wide: Arithmetic) -> Tensor:
    """Return value + eps, a result of `wide`; eps = 0 skips the addition."""
    if scheme.eps == 0:
        return value
    return wide.add(value, ar.constant(scheme.eps, operation="eps"), operation="eps")


def centred_sign(t: Tensor, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Tensor:
    """Return t - mean(t), or t where nothing is centred."""
    if not scheme.centres:
        return t
    mean = reduction.mean(t, ar, "slope")
    return ar.sub(t, mean, operation="slope")


def signed(magnitude: Tensor, sign: Tensor) -> Tensor:
    """Return the magnitude with a sign, +0 where the sign is zero; exact."""
    return torch.where(sign == 0, 0.0, torch.where(sign < 0, -magnitude, magnitude))


def first_largest(rows_RN: Tensor) -> Tensor:
    """Return the index, shape (R, 1), of each row's largest value; the lowest among equals, NaN greatest."""
    largest = rows_RN.detach().amax(dim=1, keepdim=True)
    is_largest = torch.where(largest.isnan(), rows_RN.isnan(), rows_RN == largest)
    return is_largest.to(torch.int8).argmax(dim=1, keepdim=True)


def exponent(p: float) -> float:
    """Return p as an int where it is whole, for then it is a chain of products."""
    return int(p) if p == int(p) else p


def scale_of_stored(stored: Tensor, scheme: Scheme, ar: Arithmetic) -> Tensor:
    """Return the scale of evaluation from a running statistic, in the shape of `stored`.

    sqrt(var + eps) for l2; root_p(stored^p + eps) for lp; stored + eps for the others.
    """
    assert scheme.spec is not None
    wide = ar.in_format("variance")
    if scheme.spec.kind == "l2":
        return ar.sqrt(add_eps(stored, scheme, ar, wide), operation="sqrt")
    if scheme.spec.kind == "lp" and scheme.eps != 0:
        power = wide.power(stored, exponent(scheme.spec.p), operation="power")
        return ar.root(add_eps(power, scheme, ar, wide), exponent(scheme.spec.p), operation="root")
    return add_eps(stored, scheme, ar, ar)


# Kind of a scheme -> its scale s and the derivative of s.
DISPERSIONS: dict[str, Dispersion] = {
    "l2": Dispersion(measure_l2, correct_mean_square),
    "l1": Dispersion(measure_l1, correct_l1),
    "linf": Dispersion(measure_linf, correct_members),
    "topk": Dispersion(measure_topk, correct_members),
    "range": Dispersion(measure_range, correct_members),
    "lp": Dispersion(measure_lp, correct_lp),
}
