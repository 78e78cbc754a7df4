"""Native l1, linf, top k and range in plain torch, in few passes over memory: what serves where nothing is compiled.

Backward needs x, the mean and s alone, as torch's l2 does; d and y are formed again. A factor that a group shares
is one number: gamma / s multiplies once, where `op_by_op` divides and then multiplies. Below s = gamma / 2^128, which
takes an eps of 0, that number is infinite, as 1 / s is in torch's l2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from normstab.norms.catalogue import Scheme
from normstab.norms.dispersion import Centred, Measured, measure_topk, slopes, with_constant
from normstab.norms.fused.plan_of_layer import where
from normstab.norms.reduction import Reduction
from normstab.numerics.arithmetic import Arithmetic

__all__ = ["Gradients", "SavedNative", "backward", "forward"]

NATIVE = Arithmetic("native")
INDEX_BITS = 32


class SavedNative(NamedTuple):
    """What backward needs: the input, per row the mean and s, gamma, and the members of a maximum or a top k."""

    input: Tensor
    mean: Tensor | None
    scale: Tensor
    gamma: Tensor | None
    members: Tensor | None


class Gradients(NamedTuple):
    """The gradients of the input, and of gamma and beta in the shape of the parameters."""

    input: Tensor | None
    gamma: Tensor
    beta: Tensor


def forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, scheme: Scheme, reduction: Reduction
) -> tuple[Tensor, Tensor, SavedNative]:
    """Return the output, the statistic to be stored, and what backward needs."""
    viewed = x.reshape(reduction.view)
    mean = viewed.mean(reduction.axes, keepdim=True) if scheme.centres else None
    d = viewed if mean is None else viewed - mean
    measured = measure(d, viewed, scheme, reduction)
    assert measured.stored is not None
    factor = measured.scale.reciprocal() if gamma is None else gamma.reshape(reduction.parameters) / measured.scale
    z = d * factor if beta is None else torch.addcmul(beta.reshape(reduction.parameters), d, factor)
    return z.reshape(x.shape), measured.stored, SavedNative(x, mean, measured.scale, gamma, measured.members)


def measure(d: Tensor, x: Tensor, scheme: Scheme, reduction: Reduction) -> Measured:
    """Return the scale with its members, as `dispersion` defines them."""
    assert scheme.spec is not None
    kind = scheme.spec.kind
    if kind == "l1":
        if d.is_cuda:  # one pass; on a CPU it adds up one value after the other, and loses digits
            magnitude = torch.linalg.vector_norm(d, 1, reduction.axes, keepdim=True) / reduction.n
        else:
            magnitude = d.abs().mean(reduction.axes, keepdim=True)
        return with_constant(magnitude, None, scheme, reduction, NATIVE)
    if kind == "range":
        rows_RN = reduction.rows(x)
        # torch: "the indices of the first maximal value are returned"; a NaN is the greatest and the least.
        (most, at_most), (least, at_least) = rows_RN.max(1, keepdim=True), rows_RN.min(1, keepdim=True)
        members = torch.cat([at_most, at_least], 1)
        return with_constant(reduction.keepdim(most - least), members, scheme, reduction, NATIVE)
    rows_RN = reduction.rows(d.abs())
    if kind == "linf":
        most, members = rows_RN.max(1, keepdim=True)
        return with_constant(reduction.keepdim(most), members, scheme, reduction, NATIVE)
    if rows_RN.dtype != torch.float32:
        return measure_topk(Centred(d, x), scheme, reduction, NATIVE)
    members = first_largest(rows_RN, scheme.spec.k)
    return with_constant(
        reduction.keepdim(rows_RN.gather(1, members).mean(1, keepdim=True)), members, scheme, reduction, NATIVE
    )


def first_largest(rows_RN: Tensor, k: int) -> Tensor:
    """Return the indices, ascending, of the k largest magnitudes of each row; the lowest indices among equals.

    torch.topk chooses any among equals. So what it sees is never equal: the bits of a magnitude, which order as
    magnitudes do, and behind them the place counted from the end.
    """
    n = rows_RN.shape[1]
    from_end = torch.arange(n - 1, -1, -1, device=rows_RN.device)
    keys = (rows_RN.view(torch.int32).to(torch.int64) << INDEX_BITS).bitwise_or_(from_end)
    found = keys.topk(k, dim=1, sorted=False).values
    return (n - 1 - (found & ((1 << INDEX_BITS) - 1))).sort(1).values


def backward(grad: Tensor, saved: SavedNative, scheme: Scheme, reduction: Reduction, *, needs_input: bool) -> Gradients:
    """Return the gradients of the input, and of gamma and beta in the shape of the parameters."""
    axes, scale = reduction.axes, saved.scale
    gamma = None if saved.gamma is None else saved.gamma.reshape(reduction.parameters)
    g, x = grad.reshape(reduction.view), saved.input.reshape(reduction.view)
    y = (x if saved.mean is None else x - saved.mean) / scale
    product = g * y
    is_shared = all(reduction.parameters[axis] == 1 for axis in axes)
    if not is_shared:
        d_gamma, d_beta = (value.sum(reduction.parameter_axes, keepdim=True) for value in (product, g))
        if gamma is not None:
            g, product, gamma = g * gamma, product * gamma, None
    # Where gamma is one number of a row, these are its gradients too: two passes less.
    total, sum_of_g = (value.sum(axes, keepdim=True) for value in (product, g))
    if is_shared:
        d_gamma, d_beta = (value.sum_to_size(reduction.parameters) for value in (total, sum_of_g))
    if not needs_input:
        return Gradients(None, d_gamma, d_beta)
    if gamma is not None:
        total, sum_of_g = total * gamma, sum_of_g * gamma
    mean = sum_of_g / reduction.n if scheme.centres else torch.zeros_like(scale)
    factor = scale.reciprocal() if gamma is None else gamma / scale
    flow = _flow_of_few if saved.members is not None else _flow_of_l1
    dx = flow(Flowing(g, y, total, mean, factor), saved, scheme, reduction)
    return Gradients(dx.reshape(grad.shape), d_gamma, d_beta)


class Flowing(NamedTuple):
    """What the gradient of the input is made of: g and y, and per row sum(g y), mean(g), and what multiplies g."""

    g: Tensor
    y: Tensor
    total: Tensor
    mean: Tensor
    factor: Tensor


def _flow_of_l1(flowing: Flowing, saved: SavedNative, scheme: Scheme, reduction: Reduction) -> Tensor:
    """Return ((g - mean(g)) - C1 mean(g y) (sg - mean(sg))) / s with sg = sign(d)."""
    weight = scheme.constant(reduction.n) * (flowing.total / reduction.n)
    sign, shift = flowing.y.sign(), flowing.mean
    if scheme.centres:
        shift = shift - weight * sign.mean(reduction.axes, keepdim=True)
    dx = torch.addcmul(-shift / saved.scale, flowing.g, flowing.factor)
    return dx.addcmul_(sign, -weight / saved.scale)


def _flow_of_few(flowing: Flowing, saved: SavedNative, scheme: Scheme, reduction: Reduction) -> Tensor:
    """Return ((g - mean(g)) - sum(g y) ds/dx) / s, where ds/dx has a value of its own at each member only."""
    assert saved.members is not None
    places_RK = places_of(saved.members, reduction)
    sign_RK = flowing.y.reshape(-1)[places_RK].sign()
    slope = slopes(sign_RK, saved.members, scheme, reduction, NATIVE)
    total_R1, scale_R1, mean_R1 = (value.reshape(-1, 1) for value in (flowing.total, saved.scale, flowing.mean))
    elsewhere = reduction.keepdim(total_R1 * slope.elsewhere)
    # As if no value were a member: the few that are get their own gradients afterwards.
    dx = torch.addcmul(-(flowing.mean + elsewhere) / saved.scale, flowing.g, flowing.factor).contiguous()
    of_g_RK = flowing.g.reshape(-1)[places_RK] * flowing.factor.expand_as(saved.scale).reshape(-1, 1)
    at_members = of_g_RK - (mean_R1 + total_R1 * slope.at_members) / scale_R1
    dx.view(-1)[places_RK.flatten()] = at_members.flatten()
    return dx


def places_of(members_RK: Tensor, reduction: Reduction) -> Tensor:
    """Return where the members of each row lie in the whole tensor, row-major."""
    place = where(reduction)
    rows = torch.arange(len(members_RK), device=members_RK.device).unsqueeze(1) * place["group_stride"]
    return rows + members_RK // place["length"] * place["run_stride"] + members_RK % place["length"]
