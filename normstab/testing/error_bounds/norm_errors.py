"""What the roundings inside a norm layer may do to its output, and to the gradient of its input.

Letters: R rows of values that share a mean and a scale, N values in a row. Everything is relative to the largest
magnitude of the result. The mean, the deviations and the scale are computed anew in float64 from the layer's input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from normstab.norms.catalogue import NormSpec, Scheme, parse_norm
from normstab.norms.reduction import Reduction
from normstab.numerics.bounds import Step, roundoff
from normstab.numerics.precision import Precision
from normstab.numerics.sums.steps_of_sums import mean_steps, sum_steps
from normstab.search.bound_cases import MAGNITUDES, scale_steps
from normstab.testing.error_bounds.relative_steps import largest, relative_to, size_of

__all__ = ["Normed", "norm_backward_steps", "norm_steps"]

FLOAT32 = Precision.parse("fp32")
L1 = parse_norm("l1")
Steps = list[Step]


@dataclass(frozen=True)
class Normed:
    """One call of a norm: its operands and which values share a scale.

    `fixed` is the mean of evaluation, `inverse` 1 / s of each row (any shape of R values) where it is known, as in
    torch's backward operations.
    """

    x: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    scheme: Scheme
    reduction: Reduction
    fixed: Tensor | None = None
    inverse: Tensor | None = None

    def rows(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x as rows (R, N) in float64."""
        return self.reduction.rows(x.detach().reshape(self.reduction.view).double())

    def times_gamma(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the normalized values, in the reduction's view."""
        viewed = gradient.detach().reshape(self.reduction.view).double()
        return viewed if self.gamma is None else viewed * self.gamma.detach().double().view(self.reduction.parameters)

    def scaled(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the deviations d, the scale s before its root, eps included, the factor 1 / s and y = d / s."""
        x_RN = self.rows(self.x)
        d_RN = x_RN - x_RN.mean(1, keepdim=True) if self.scheme.centres else x_RN
        spec = self.scheme.spec
        if spec is None:
            ones_R = torch.ones(len(x_RN), dtype=torch.float64)
            return d_RN, ones_R, ones_R, d_RN
        measure = MAGNITUDES.get(spec.kind, MAGNITUDES["linf"])
        factor = 1.0 if spec.kind == "l2" else self.scheme.constant(self.reduction.n)
        s_R = factor * measure(d_RN, spec.k) + self.scheme.eps
        rooted_R = s_R.sqrt() if spec.kind == "l2" else s_R
        inverse_R = torch.where(rooted_R > 0, 1.0 / rooted_R, 0.0)
        if self.inverse is not None:
            inverse_R = self.inverse.detach().double().reshape(-1)
        return d_RN, s_R, inverse_R, inverse_R.unsqueeze(1) * d_RN


def norm_steps(normed: Normed, output: Tensor, precision: Precision) -> Steps:
    """Return the steps of z = gamma (x - mean) / s + beta; in a wide norm those are of float32, and one of its own.

    An error of the mean is one of every deviation: relative to them it is conditioned by mean |x| / s. The root of l2
    halves what came before it. What follows is relative to z without beta, which may be larger than z.
    """
    size = largest(output)
    if normed.fixed is not None:
        return _of_evaluation(normed, size, precision)
    inner = FLOAT32 if precision.norm == "wide" else precision
    own, n = roundoff(inner.format(), inner.rounding), normed.reduction.n
    d_RN, s_R, inverse_R, y_RN = normed.scaled()
    stretch = largest(inverse_R)  # what the quanta of x's units become in those of y
    steps: Steps = []
    if normed.scheme.centres:
        means_R = normed.rows(normed.x).abs().mean(1)
        ratio_R = torch.where(d_RN.abs().amax(1) > 0, means_R * y_RN.abs().amax(1) / d_RN.abs().amax(1), 0.0)
        of_mean = [step.scaled(stretch) for step in mean_steps(n, inner) or ()]
        steps += relative_to(of_mean, largest(ratio_R), largest(y_RN))
        steps += relative_to([Step.of(own).scaled(stretch)], largest(y_RN), largest(y_RN))
    if normed.scheme.spec is not None:
        least = float(s_R[s_R > 0].min()) if bool((s_R > 0).any()) else 0.0
        is_squared = normed.scheme.spec.kind == "l2"
        found = relative_to(_of_scale(normed.scheme, inner, n), least, least)
        steps += [replace(step, unit=step.unit / 2, bias=step.bias / 2) for step in found] if is_squared else found
        steps += relative_to([Step.of(own, 2)], largest(y_RN), largest(y_RN))
    shift = 0.0 if normed.beta is None else largest(normed.beta)
    steps = relative_to(steps, size + shift, size)
    affine = (normed.gamma is not None) + (normed.beta is not None)
    return [*steps, *_last(precision, own.unit, affine, size)]


def norm_backward_steps(normed: Normed, gradient: Tensor, result: Tensor | None, precision: Precision) -> Steps:
    """Return the steps of ((g - mean(g)) - sum(g y) ds/dx) / s with g = gamma grad, or of gamma's and beta's sums.

    Whichever of the three gradients has the larger steps stands for the call; `result` is that of the input, None
    where it was not asked for.
    """
    inner = FLOAT32 if precision.norm == "wide" else precision
    if normed.fixed is not None:
        own, size = roundoff(inner.format(), inner.rounding), 0.0 if result is None else largest(result)
        return [*relative_to([Step.of(own, 2)], size, size), *_last(precision, own.unit, 0, size)]
    _, _, inverse_R, y_RN = normed.scaled()
    found = [] if result is None else _of_input(normed, gradient, largest(result), precision, (inverse_R, y_RN))
    return max([found, *_of_parameters(normed, gradient, y_RN, inner)], key=size_of)


def _of_input(
    normed: Normed, gradient: Tensor, size: float, precision: Precision, scaled: tuple[Tensor, Tensor]
) -> Steps:
    """Return the steps of the gradient of the input, whose largest magnitude is `size`; `scaled` is 1 / s and y.

    All terms are conditioned together: by (|g| + mean |g| + sum |g y| |ds/dx|) / s over the largest result.
    """
    inner = FLOAT32 if precision.norm == "wide" else precision
    own, n, spec = roundoff(inner.format(), inner.rounding), normed.reduction.n, normed.scheme.spec
    g_RN, (inverse_R, y_RN) = normed.reduction.rows(normed.times_gamma(gradient)), scaled
    terms_RN = g_RN.abs() + (g_RN.abs().mean(1, keepdim=True) if normed.scheme.centres else 0.0)
    if spec is not None:
        terms_RN = terms_RN + (g_RN * y_RN).abs().sum(1, keepdim=True) * _slope(spec, normed.scheme, y_RN)
        terms_RN = inverse_R.unsqueeze(1) * terms_RN
    # Quanta of what is divided by s afterwards grow as it does.
    steps = [step.scaled(max(1.0, largest(inverse_R))) for step in (*(mean_steps(n, inner) or ()) * 2, Step.of(own, 7))]
    return [*relative_to(steps, largest(terms_RN), size), *_last(precision, own.unit, 0, size)]


def _of_parameters(normed: Normed, gradient: Tensor, y_RN: Tensor, precision: Precision) -> list[Steps]:
    """Return the steps of the gradients of gamma, sum(grad y), and of beta, sum(grad)."""
    if normed.gamma is None:
        return []
    axes = normed.reduction.parameter_axes
    viewed = gradient.detach().reshape(normed.reduction.view).double()
    found = []
    for summed in (viewed * normed.reduction.unrows(y_RN), viewed):
        steps = sum_steps(summed.numel() // max(normed.gamma.numel(), 1), precision) or []
        one = [Step.of(roundoff(precision.format(), precision.rounding))]
        found.append(relative_to([*one, *steps], largest(summed.abs().sum(axes)), largest(summed.sum(axes))))
    return found


def _of_evaluation(normed: Normed, size: float, precision: Precision) -> Steps:
    """Return the steps of a norm by running statistics: their casts, eps, the root, and one per operation on x."""
    inner = FLOAT32 if precision.norm == "wide" else precision
    own = roundoff(inner.format(), inner.rounding)
    assert normed.fixed is not None
    centred = normed.x.detach() - normed.fixed.detach().view(normed.reduction.parameters).reshape(
        (1, -1, *[1] * (normed.x.dim() - 2))
    )
    of_mean = relative_to([Step.of(own)], largest(normed.fixed), largest(centred))
    shift = 0.0 if normed.beta is None else largest(normed.beta)
    affine = (normed.gamma is not None) + (normed.beta is not None)
    steps = [*of_mean, *relative_to([Step.of(own, 6)], size, size)]
    return [*relative_to(steps, size + shift, size), *_last(precision, own.unit, affine, size)]


def _of_scale(scheme: Scheme, precision: Precision, n: int) -> Steps:
    """Return the steps to the scale before its root; of a range and of lp those of l1, and P products."""
    assert scheme.spec is not None
    known = scheme if scheme.spec.kind in MAGNITUDES else replace(scheme, spec=L1)
    own = roundoff(precision.format(), precision.rounding)
    factor = 1.0 if known.spec is not None and known.spec.kind == "l2" else scheme.constant(n)
    products = [Step.of(own, math.ceil(scheme.spec.p) + 1)] if scheme.spec.kind == "lp" else []
    return [*products, *(scale_steps(known, precision, n, factor) or ())]


def _last(precision: Precision, inside: float, count: int, size: float) -> Steps:
    """Return `count` roundings after the division, and that of a wide norm's result."""
    own = roundoff(precision.format(), precision.rounding)
    if precision.norm == "wide":
        return [Step(count, inside), *relative_to([Step.of(own)], size, size)]
    return relative_to([Step.of(own, count)], size, size) if count else []


def _slope(spec: NormSpec, scheme: Scheme, y_RN: Tensor) -> Tensor:
    """Return by how much the scale may move with one value: |ds / dx_j| at most."""
    n = y_RN.shape[1]
    constant = scheme.constant(n)
    slopes: dict[str, Callable[[], Tensor]] = {
        "l2": lambda: y_RN.abs() / n,
        "l1": lambda: torch.full_like(y_RN, 2.0 * constant / n),
        "topk": lambda: torch.full_like(y_RN, 2.0 * constant / max(spec.k, 1)),
        "lp": lambda: y_RN.abs() ** (spec.p - 1.0) / n,
    }
    return slopes.get(spec.kind, lambda: torch.full_like(y_RN, constant))()
