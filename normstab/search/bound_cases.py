"""What the operations that add up have in common: their exact result, its condition, and the steps of their bound.

One function per kind of torch's operations, and the scale of a norm. Nothing is run or compared here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from normstab.norms.catalogue import Scheme
from normstab.norms.op_by_op import forward
from normstab.norms.reduction import Reduction
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.bounds import (
    NEAREST_MODES,
    ErrorBound,
    Step,
    confidence,
    likely_bound,
    norm_bound,
    roundoff,
    worst_bound,
)
from normstab.numerics.ledger import Ledger
from normstab.numerics.philox import Key
from normstab.numerics.precision import NEAREST, Precision
from normstab.numerics.sums.steps_of_sums import mean_steps, product_steps, sum_steps

__all__ = ["CASES", "MAGNITUDES", "Bounding", "Case", "norm_cases", "scale_steps"]

OF_FLOAT64 = 2.0**-53  # what the float64 reference itself rounds, per addend


@dataclass(frozen=True)
class Case:
    """Results beside what they would be in float64, and how far apart the bounds let them be, element by element.

    `worst` is the deterministic bound and `likely` the probabilistic one, as absolute errors; None where no bound with
    a proven constant is known. `condition` is what the bounds are relative to. `has_overflowed`: something inside did.
    """

    operation: str
    n: int
    found: Tensor
    exact: Tensor
    condition: Tensor
    worst: Tensor | None
    likely: Tensor | None
    has_overflowed: bool = False


@dataclass(frozen=True)
class Bounding:
    """The precision of a run, and the probability with which the probabilistic bound of one result may fail."""

    precision: Precision
    failure: float

    def case(
        self, operation: str, n: int, found: Tensor, exact: Tensor, condition: Tensor, steps: Sequence[Step] | None
    ) -> Case:
        """Return the case of a result with these steps."""
        found = found.detach().double()
        if steps is None:
            return Case(operation, n, found, exact, condition, None, None)
        noise = OF_FLOAT64 * (n + 1) * condition
        worst, likely = (bound.relative * condition + bound.absolute + noise for bound in self.bounds(steps, n))
        return Case(operation, n, found, exact, condition, worst, likely)

    def bounds(self, steps: Sequence[Step], n: int) -> tuple[ErrorBound, ErrorBound]:
        """Return the deterministic and the probabilistic bound; a directed rounding drifts, and has but the first."""
        worst, mode = worst_bound(steps), self.precision.rounding
        has_drift = mode.mode not in NEAREST_MODES and not mode.is_stochastic
        return worst, worst if has_drift else likely_bound(steps, confidence(self.failure, n))


Measure = Callable[[Bounding, Any, Sequence[Any], Mapping[str, Any], Any], list[Case]]


def product(
    bounding: Bounding, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], found: Any
) -> list[Case]:
    """mm, bmm, mv, dot."""
    exact, condition = _in_float64(function, args[:2], {})
    k = args[0].shape[-1]
    return [bounding.case("product", k, found, exact, condition, product_steps(k, bounding.precision))]


def product_with_addend(
    bounding: Bounding, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], found: Any
) -> list[Case]:
    """addmm, baddbmm, addmv, where nothing is scaled."""
    if len(args) > 3 or any(value != 1 for value in kwargs.values()):
        return []
    exact, condition = _in_float64(function, args, {})
    k = args[1].shape[-1]
    steps = product_steps(k, bounding.precision, has_addend=True)
    return [bounding.case("product", k, found, exact, condition, steps)]


def convolution(
    bounding: Bounding, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], found: Any
) -> list[Case]:
    """Arguments: input, weight, bias, stride, padding, dilation, transposed, output_padding, groups."""
    weight, bias, is_transposed, groups = args[1], args[2], args[6], args[8]
    channels = weight.shape[0] // groups if is_transposed else weight.shape[1]
    k = channels * math.prod(weight.shape[2:])
    exact, condition = _in_float64(function, args, kwargs)
    steps = product_steps(k, bounding.precision, has_addend=bias is not None)
    return [bounding.case("convolution", k, found, exact, condition, steps)]


def convolution_backward(
    bounding: Bounding, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], found: Any
) -> list[Case]:
    """Arguments: grad, input, weight, ..., groups, mask; the gradients of input and weight, not of the bias."""
    grad, x, weight, is_transposed, groups = args[0], args[1], args[2], args[7], args[9]
    outputs = weight.shape[1] if is_transposed else weight.shape[0] // groups
    counts = (outputs * math.prod(weight.shape[2:]), grad.shape[0] * math.prod(grad.shape[2:]))
    if is_transposed:
        counts = (counts[0], x.shape[0] * math.prod(x.shape[2:]))
    exact, condition = _in_float64(function, args, kwargs)
    names = ("convolution gradient of input", "convolution gradient of weight")
    return [
        bounding.case(name, k, result, e, c, product_steps(k, bounding.precision))
        for name, k, result, e, c in zip(names, counts, found[:2], exact[:2], condition[:2], strict=True)
        if isinstance(result, Tensor) and k
    ]


def total(bounding: Bounding, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], found: Any) -> list[Case]:
    """Sum."""
    precision = bounding.precision
    n = args[0].numel() // max(found.numel(), 1)
    if not n or kwargs.get("dtype") is not None:
        return []
    exact, condition = _in_float64(function, args, kwargs)
    return [bounding.case("sum", n, found, exact, condition, sum_steps(n, precision, precision.format("sum")))]


def mean(bounding: Bounding, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], found: Any) -> list[Case]:
    """Mean."""
    n = args[0].numel() // max(found.numel(), 1)
    if not n or kwargs.get("dtype") is not None:
        return []
    exact, condition = _in_float64(function, args, kwargs)
    return [bounding.case("mean", n, found, exact, condition, mean_steps(n, bounding.precision))]


def softmax(
    bounding: Bounding, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], found: Any
) -> list[Case]:
    """_softmax, _log_softmax: wide inside and one rounding."""
    exact = function(args[0].double(), *args[1:])
    steps = [Step.of(roundoff(bounding.precision.format(), bounding.precision.rounding))]
    return [bounding.case("softmax", args[0].shape[args[1]], found, exact, exact.abs(), steps)]


CASES: dict[str, Measure] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot"), product),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), product_with_addend),
    "convolution": convolution,
    "convolution_backward": convolution_backward,
    "sum": total,
    "mean": mean,
    "_softmax": softmax,
    "_log_softmax": softmax,
}
"""Name of torch's operation -> its cases, from the function, its arguments as they were used, and its result."""


def _in_float64(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the result in float64, and that of the magnitudes: the sums of what is added up, without signs."""
    wide = [x.detach().double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
    magnitudes = [x.abs() if isinstance(x, Tensor) and x.is_floating_point() else x for x in wide]
    return function(*wide, **kwargs), function(*magnitudes, **kwargs)


# ----------------------------------------------------------------------------------------------------- norms


def norm_cases(bounding: Bounding, x: Tensor, scheme: Scheme, reduction: Reduction, key: Key) -> list[Case]:
    """Return the cases of a norm's mean and of its scale s, computed anew from the layer's input, op by op."""
    precision = bounding.precision
    if precision.norm == "wide":
        precision = Precision.parse("fp32")
    ar = Arithmetic(precision, ledger=Ledger(), key=key)
    x = ar.cast(x.detach(), "input")
    done = forward(x, None, None, scheme, reduction, ar)
    values = reduction.rows(x.reshape(reduction.view)).double()
    n, centre = reduction.n, torch.zeros(len(values), dtype=torch.float64)
    cases: list[Case] = []
    shift: tuple[Tensor | None, Tensor | None] = (centre, centre)
    if done.mean is not None and scheme.centres:
        centre = values.mean(1)
        case = bounding.case(
            "mean of a norm", n, done.mean.reshape(-1), centre, values.abs().mean(1), mean_steps(n, precision)
        )
        cases, shift = [case], (case.worst, case.likely)
    if scheme.spec is None or done.saved.scale is None or scheme.spec.kind not in MAGNITUDES:
        return cases
    if shift[0] is None or shift[1] is None:
        return cases
    scale = _Scale(scheme, precision, n, values - centre.unsqueeze(1))
    found, exact = done.saved.scale.reshape(-1).double(), scale.exact()
    errors: list[Tensor | None] = [None, None]
    if (steps := scale_steps(scheme, precision, n, scale.factor)) is not None:
        bounds = bounding.bounds(steps, n)
        errors = [scale.errors(shift_R, bound) for shift_R, bound in zip((shift[0], shift[1]), bounds, strict=True)]
    case = Case(f"{scheme.spec} scale of a norm", n, found, exact, exact, errors[0], errors[1])
    assert ar.ledger is not None
    has_overflowed = ar.ledger.total().overflow > 0
    return [replace(each, has_overflowed=has_overflowed) for each in (*cases, case)]


class _Scale:
    """The exact scale of rows (R, n) of deviations, and what rounding may do to it."""

    def __init__(self, scheme: Scheme, precision: Precision, n: int, deviations_RN: Tensor) -> None:
        assert scheme.spec is not None
        self.eps, self.is_squared = scheme.eps, scheme.spec.kind == "l2"
        self.factor = 1.0 if self.is_squared else scheme.constant(n)
        self.magnitude_R = self.factor * MAGNITUDES[scheme.spec.kind](deviations_RN, scheme.spec.k)
        self.root = roundoff(precision.format(), precision.rounding)
        self.noise = OF_FLOAT64 * (n + 1)

    def exact(self) -> Tensor:
        """Return s."""
        return (self.magnitude_R + self.eps).sqrt() if self.is_squared else self.magnitude_R + self.eps

    def errors(self, shift_R: Tensor, bound: ErrorBound) -> Tensor:
        """Return the errors that a bound of the steps after the mean allows, given those of the means."""
        pairs = zip(self.magnitude_R.tolist(), shift_R.tolist(), strict=True)
        return torch.tensor([self._error(magnitude, shift, bound) for magnitude, shift in pairs], dtype=torch.float64)

    def _error(self, magnitude: float, shift: float, bound: ErrorBound) -> float:
        """Return the error of one scale, its root's own rounding and the reference's included."""
        moved = shift**2 if self.is_squared else self.factor * shift
        error = norm_bound(magnitude, moved, bound, is_squared=self.is_squared, eps=self.eps)
        exact = math.sqrt(magnitude + self.eps) if self.is_squared else magnitude + self.eps
        rooted = self.root.unit * (exact + error) + self.root.quantum if self.is_squared else 0.0
        return error + rooted + self.noise * exact


def scale_steps(scheme: Scheme, precision: Precision, n: int, factor: float) -> list[Step] | None:
    """Return the steps from the deviations to the scale before its root; None where the mean has no bound."""
    assert scheme.spec is not None
    kind, rounding = scheme.spec.kind, precision.rounding
    own, constant = roundoff(precision.format(), rounding), roundoff(precision.format(), NEAREST)
    is_squared = kind == "l2"
    steps = [Step.of(own.of_addition, 2 if is_squared else 1)] if scheme.centres else []
    mean: list[Step] | None = []
    if is_squared:
        steps.append(Step.of(roundoff(precision.format("square"), rounding)))
        mean = mean_steps(n, precision, role="variance", of="square")
    elif kind in ("l1", "topk"):
        mean = mean_steps(n if kind == "l1" else scheme.spec.k, precision)
    if mean is None:
        return None
    steps += [step.scaled(factor) for step in mean]
    if not is_squared:
        steps += [Step.of(constant), Step.of(own)]
    if scheme.eps:
        last = roundoff(precision.format("variance" if is_squared else None), rounding)
        steps += [Step.of(constant), Step.of(last.of_addition)]
    return steps


MAGNITUDES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "l2": lambda d_RN, k: d_RN.square().mean(1),
    "l1": lambda d_RN, k: d_RN.abs().mean(1),
    "linf": lambda d_RN, k: d_RN.abs().amax(1),
    "topk": lambda d_RN, k: d_RN.abs().topk(k, dim=1).values.mean(1),
}
"""Kind of a norm -> what it measures of the deviations (R, n), before its constant."""
