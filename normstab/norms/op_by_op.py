"""Normalization of tensors in an Arithmetic, forward and backward, op by op: the oracle of the fused kernels.

Which axes are reduced is the only difference between batch, layer, group, instance and RMS norm. Tensors in,
tensors out; `functional` chooses between this and a fused kernel.

Sites. Forward: `input gamma beta mean.sum mean.div centre`, then of the scale `square power max dispersion.sum
dispersion.div variance sqrt root constant eps`, then `reciprocal divide scale shift`; on the way to a running
statistic and in evaluation `running_mean running_var`; constants are cast at `constant.const` and `eps.const`.
Backward: `grad`; `scale` (g = gamma grad); `mean.sum mean.div centre` (h = g - mean(g)); `product` (g y) with
`product.sum product.div`; `power` (lp); `constant`, `slope` and `slope.*` (ds/dx, or sg - mean(sg));
`project` (the two multiplied); `subtract` (h minus that); `divide` (by s); `dgamma.product dgamma.sum dgamma`
and `dbeta.sum dbeta`. The order is fixed, so that s^3 is never formed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from normstab.norms.catalogue import Scheme
from normstab.norms.dispersion import DISPERSIONS, Centred, Flow, scale_of_stored
from normstab.norms.noise.perturbation import disturbed
from normstab.norms.reduction import Reduction
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.sums.means import welford

__all__ = ["Forward", "Gradients", "Saved", "backward", "evaluate", "forward"]


class Saved(NamedTuple):
    """What backward needs, all tensors or None: y, d and s as computed, gamma as cast, and the members.

    `centred` is None where s does not depend on the input: in evaluation. `scale` is None for mean-only
    normalization.
    """

    normalized: Tensor
    centred: Tensor | None
    scale: Tensor | None
    gamma: Tensor | None
    members: Tensor | None


class Forward(NamedTuple):
    """The output, the mean, the scale and the statistic to be stored, and what backward needs.

    `mean`, `scale` and `stored` have the view's shape with the reduced axes of size 1, or are None where there is
    none. `saved` is a named tuple of tensors and None, of the type that the backward pass beside it takes: here Saved.
    """

    output: Tensor
    mean: Tensor | None
    scale: Tensor | None
    stored: Tensor | None
    saved: Any


class Gradients(NamedTuple):
    """The gradients of input, gamma and beta; None where not needed."""

    input: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None


def forward(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, scheme: Scheme, reduction: Reduction, ar: Arithmetic
) -> Forward:
    """Return z = gamma (x - mu) / s + beta with the statistics of `x` itself.

    `x` has any shape of `reduction.view`'s size, and so has the output; gamma and beta are reshaped to
    `reduction.parameters`. The result is in the carrier dtype: float32, or float64 for wide formats and inputs.
    """
    if scheme.spec is not None:
        scheme.spec.require_values(reduction.n)
    viewed = ar.cast(x, "input").reshape(reduction.view)
    gamma, beta = cast_parameters(gamma, beta, reduction, ar)
    mean, centred = centre(viewed, scheme, reduction, ar)
    d = centred.d
    if scheme.spec is None:
        return Forward(affine(d, gamma, beta, ar).reshape(x.shape), mean, None, None, Saved(d, d, None, gamma, None))
    measured = DISPERSIONS[scheme.spec.kind].measure(centred, scheme, reduction, ar)
    scale = disturbed(measured.scale, scheme.noise, ar, "scale")
    y = divide_by_scale(d, scale, ar)
    z = affine(y, gamma, beta, ar).reshape(x.shape)
    return Forward(z, mean, scale, measured.stored, Saved(y, d, scale, gamma, measured.members))


def evaluate(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    statistics: tuple[Tensor | None, Tensor | None],
    scheme: Scheme,
    reduction: Reduction,
    ar: Arithmetic,
) -> Forward:
    """Return z with given `statistics`, the running mean and what is stored of the scale: evaluation.

    They have one value per row of the reduction, or per channel for instance norm, and are cast on use.
    """
    viewed = ar.cast(x, "input").reshape(reduction.view)
    gamma, beta = cast_parameters(gamma, beta, reduction, ar)
    mean, stored = statistics
    d = viewed
    if mean is not None:
        mean = ar.cast(mean.detach(), "running_mean").reshape(reduction.parameters)
        mean = disturbed(mean, scheme.noise, ar, "mean")
        d = ar.sub(viewed, mean, operation="centre")
    if stored is None:
        z = affine(d, gamma, beta, ar).reshape(x.shape)
        return Forward(z, mean, None, None, Saved(d, None, None, gamma, None))
    role = "variance" if scheme.spec is not None and scheme.spec.kind == "l2" else None
    stored = ar.in_format(role).cast(stored.detach(), "running_var").reshape(reduction.parameters)
    scale = disturbed(scale_of_stored(stored, scheme, ar), scheme.noise, ar, "scale")
    y = divide_by_scale(d, scale, ar)
    z = affine(y, gamma, beta, ar).reshape(x.shape)
    return Forward(z, mean, scale, stored, Saved(y, None, scale, gamma, None))


def centre(x: Tensor, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> tuple[Tensor | None, Centred]:
    """Return mu and d = x - mu, or x itself where nothing is centred; Welford's mean of l2 brings M2 along."""
    if not scheme.centres:
        return None, Centred(x, x)
    m2 = None
    is_l2 = scheme.spec is not None and scheme.spec.kind == "l2"
    if ar.precision.mean == "welford" and is_l2 and reduction.shared is None:
        mean, m2 = (reduction.keepdim(value) for value in welford(ar, x, reduction.axes, operation="mean"))
    else:
        mean = reduction.mean(x, ar, "mean")
    # What is stored of the mean stays undisturbed, as the statistic that `measure` stores does.
    used = disturbed(mean, scheme.noise, ar, "mean")
    return mean, Centred(ar.sub(x, used, operation="centre"), x, m2)


def cast_parameters(
    gamma: Tensor | None, beta: Tensor | None, reduction: Reduction, ar: Arithmetic
) -> tuple[Tensor | None, Tensor | None]:
    """Return gamma and beta cast and in the shape of the reduction's parameters."""
    return (
        None if gamma is None else ar.cast(gamma, "gamma").reshape(reduction.parameters),
        None if beta is None else ar.cast(beta, "beta").reshape(reduction.parameters),
    )


def divide_by_scale(d: Tensor, scale: Tensor, ar: Arithmetic) -> Tensor:
    """Return y = d / s, or d r with r = 1 / s in the form `reciprocal`."""
    if ar.precision.divide == "direct":
        return ar.div(d, scale, operation="divide")
    return ar.mul(d, ar.in_format("reciprocal").div(1.0, scale, operation="reciprocal"), operation="divide")


def affine(y: Tensor, gamma: Tensor | None, beta: Tensor | None, ar: Arithmetic) -> Tensor:
    """Return gamma y + beta, two roundings; a parameter that is None is left out."""
    if gamma is not None:
        y = ar.mul(gamma, y, operation="scale")
    return y if beta is None else ar.add(y, beta, operation="shift")


def backward(
    grad: Tensor,
    saved: Saved,
    scheme: Scheme,
    reduction: Reduction,
    ar: Arithmetic,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> Gradients:
    """Return the gradients of input, gamma and beta (where `needs` says) from that of the output.

    Results are in the format of the role `gradient`. The gradients of gamma and beta have the shape
    `reduction.parameters`; that of the input has the shape of `grad`.
    """
    ar = ar.towards("backward").in_format("gradient")
    viewed = ar.cast(grad, "grad").reshape(reduction.view)
    needs_input, needs_gamma, needs_beta = needs
    d_beta = parameter_gradient(viewed, reduction, ar, "dbeta") if needs_beta else None
    d_gamma = None
    if needs_gamma:
        product = ar.mul(viewed, saved.normalized, operation="dgamma.product")
        d_gamma = parameter_gradient(product, reduction, ar, "dgamma")
    if not needs_input:
        return Gradients(None, d_gamma, d_beta)
    g = viewed if saved.gamma is None else ar.mul(saved.gamma, viewed, operation="scale")
    d_input = flow_to_input(g, saved, scheme, reduction, ar)
    return Gradients(d_input.reshape(grad.shape), d_gamma, d_beta)


def flow_to_input(g: Tensor, saved: Saved, scheme: Scheme, reduction: Reduction, ar: Arithmetic) -> Tensor:
    """Return dL/dx from g = dL/dy: ((g - mean(g)) - the flow through s) / s; g / s in evaluation."""
    h = g
    if saved.centred is not None and scheme.centres:
        h = ar.sub(g, reduction.mean(g, ar, "mean"), operation="centre")
    if saved.scale is None:
        return h
    if saved.centred is not None:
        assert scheme.spec is not None
        flow = Flow(g, saved.centred, saved.normalized, saved.members)
        h = DISPERSIONS[scheme.spec.kind].correct(h, flow, scheme, reduction, ar)
    return ar.div(h, saved.scale, operation="divide")


def parameter_gradient(terms: Tensor, reduction: Reduction, ar: Arithmetic, name: str) -> Tensor:
    """Return the sum of `terms` over everything but the parameter's own axes, cast to the gradient's format."""
    total = ar.sum(terms, reduction.parameter_axes, keepdim=True, operation=f"{name}.sum")
    return ar.cast(total, name)
