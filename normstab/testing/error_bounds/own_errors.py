"""What the own rounding of one operation may do to its result, relative to the largest magnitude of that result.

Each operation has the steps of its bound (`numerics.bounds`): with its own reduction length n, order of accumulation
and unit roundoff. A step of a sum is relative to the sum of the addends' magnitudes: it is multiplied by the condition
number max sum |x_i| / max |sum x_i|, which is measured on the operands that the operation had. What quanta of
subnormals or of fixed point add is a relative error too once it is divided by the largest magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from normstab.numerics.bounds import Step, roundoff
from normstab.numerics.formats import FORMATS
from normstab.numerics.precision import NEAREST
from normstab.numerics.sums.steps_of_sums import mean_steps, product_steps, sum_steps
from normstab.simulation.aten.operation import Operation
from normstab.simulation.aten.round_and_attribute import floating_tensors
from normstab.simulation.aten.wide import ATTENTION
from normstab.testing.error_bounds.norm_operations import OWN_OF_NORMS
from normstab.testing.error_bounds.operand_units import operand_unit
from normstab.testing.error_bounds.relative_steps import largest, relative_to, size_of

__all__ = ["own_steps"]

FLOAT32 = roundoff(FORMATS["fp32"], NEAREST)
FACTORS = ("alpha", "beta")  # of a product and of its addend
Steps = list[Step]


def own_steps(op: Operation, result: Any) -> Steps:
    """Return the steps of an operation, relative to its result's largest magnitude; of several results, the worst."""
    results = [x for x in floating_tensors(result if isinstance(result, list | tuple) else [result]) if x.numel()]
    if not results or op.ar.is_native:
        return []
    found = OWN.get(op.name, one_rounding)(op, results)
    scaled = op.roles is not None and operand_unit(op.ar.precision)
    return [*found, Step(2, float(scaled))] if scaled else found


def one_rounding(op: Operation, results: Sequence[Tensor]) -> Steps:
    """Return the steps of an operation that is exact, or wide, but for one rounding of each result."""
    return rounded_once(op, results, 1)


def rounded_once(op: Operation, results: Sequence[Tensor], count: int, role: str | None = None) -> Steps:
    """Return `count` roundings of a result to the format of a role, in the place's own format else."""
    format = op.ar.format if role is None or getattr(op.ar.precision, role) is None else op.ar.precision.format(role)
    size = max(largest(x) for x in results)
    return relative_to([Step.of(roundoff(format, op.ar.precision.rounding), count)], size, size)


def power(op: Operation, results: Sequence[Tensor]) -> Steps:
    """A whole power is n - 1 products, of which the relative error of an earlier one is carried by all that follow."""
    n = op.args[1] if len(op.args) > 1 else 2
    is_products = isinstance(n, int | float) and n in (2, 3, 4, 5, 6, 7, 8)
    return rounded_once(op, results, int(n) - 1 if is_products else 1, "square" if is_products else None)


def reciprocal(op: Operation, results: Sequence[Tensor]) -> Steps:
    """1 / x and 1 / sqrt(x)."""
    return rounded_once(op, results, 1, "reciprocal")


def product(op: Operation, results: Sequence[Tensor]) -> Steps:
    """mm, bmm, mv, dot: sums of k products."""
    return _of_products(op, results, op.args[:2], op.args[0].shape[-1])


def product_with_addend(op: Operation, results: Sequence[Tensor]) -> Steps:
    """addmm, baddbmm, addmv, addbmm: beta addend + alpha products. The addend is one more number of the sum.

    addbmm adds the products of its batch up as well. A factor is one rounding of what it multiplies.
    """
    steps = _of_products(op, results, op.args, op.args[1].shape[-1], has_addend=True)
    condition, size = largest(_of_magnitudes(op, op.args)), largest(results[0])
    if op.name == "addbmm":
        batch = sum_steps(op.args[1].shape[0], op.ar.precision, op.ar.precision.format("sum"))
        steps = [*steps, *_of_sum(op, batch, condition, size)]
    factors = sum(op.kwargs.get(name, 1) != 1 for name in FACTORS)
    return [*steps, *relative_to([Step.of(roundoff(op.ar.format, op.ar.precision.rounding), factors)], condition, size)]


def convolution(op: Operation, results: Sequence[Tensor]) -> Steps:
    """Arguments: input, weight, bias, stride, padding, dilation, transposed, output_padding, groups."""
    weight, bias, is_transposed, groups = op.args[1], op.args[2], op.args[6], op.args[8]
    channels = weight.shape[0] // groups if is_transposed else weight.shape[1]
    k = channels * math.prod(weight.shape[2:])
    return _of_products(op, results, op.args, k, has_addend=bias is not None)


def convolution_backward(op: Operation, results: Sequence[Tensor]) -> Steps:
    """Arguments: grad, input, weight, ..., groups, mask: the gradients of input, weight and bias, the worst of them."""
    grad, weight, is_transposed, groups, needs = op.args[0], op.args[2], op.args[7], op.args[9], op.args[10]
    outputs = weight.shape[1] if is_transposed else weight.shape[0] // groups
    if not grad.numel() or not op.args[1].numel():
        return []
    over, area = grad.shape[0], math.prod(grad.shape[2:])
    of_weight = over * math.prod((op.args[1] if is_transposed else grad).shape[2:])
    sums = (outputs * math.prod(weight.shape[2:]), of_weight, over * area)
    counts = [k for k, is_needed in zip(sums, needs, strict=True) if is_needed]
    magnitudes = [x for x in _of_magnitudes(op, op.args) if isinstance(x, Tensor)]
    found = [
        _of_sum(op, product_steps(k, op.ar.precision), largest(condition), largest(result))
        for k, condition, result in zip(counts, magnitudes, results, strict=True)
    ]
    return max(found, key=size_of, default=[])


def total(op: Operation, results: Sequence[Tensor]) -> Steps:
    """Sum; that of nothing is +0."""
    if not op.args[0].numel():
        return one_rounding(op, results)
    n = op.args[0].numel() // results[0].numel()
    precision = op.ar.precision
    condition = largest(_of_magnitudes(op, op.args)) if n > 1 else largest(results[0])
    return _of_sum(op, sum_steps(n, precision, precision.format("sum")), condition, largest(results[0]))


def mean(op: Operation, results: Sequence[Tensor]) -> Steps:
    """Mean; that of nothing is NaN."""
    if not op.args[0].numel():
        return one_rounding(op, results)
    n = op.args[0].numel() // results[0].numel()
    return _of_sum(op, mean_steps(n, op.ar.precision), largest(_of_magnitudes(op, op.args)), largest(results[0]))


def spread(op: Operation, results: Sequence[Tensor]) -> Steps:
    """var, std, var_mean, std_mean: x - mean twice, its square, a sum of positive numbers, a division; a root halves.

    The error of the mean adds its square alone, since the deviations add up to zero (arXiv 2304.05177).
    """
    n, precision = max(1, op.args[0].numel() // results[0].numel()), op.ar.precision
    own = roundoff(precision.format(), precision.rounding)
    squared = [Step.of(own, 2), Step.of(roundoff(precision.format("square"), precision.rounding))]
    steps = [*squared, *(mean_steps(n, precision, role="variance", of="square") or ()), Step.of(own)]
    return relative_to(steps, largest(results[0]), largest(results[0]))


def attention(op: Operation, results: Sequence[Tensor]) -> Steps:
    """The kernel of torch: sums over the width of a head and over the keys, in float32, and one rounding."""
    query, key = op.args[0], op.args[1]
    size = largest(results[0])
    inside = [Step.of(FLOAT32, query.shape[-1] + key.shape[-2], tiny=0.0)]
    return [*relative_to(inside, size, size), *one_rounding(op, results[:1])]


def _of_products(
    op: Operation, results: Sequence[Tensor], operands: Sequence[Any], k: int, *, has_addend: bool = False
) -> Steps:
    """Return the steps of sums of `k` products, conditioned by the same operation on magnitudes."""
    steps = product_steps(k, op.ar.precision, has_addend=has_addend)
    return _of_sum(op, steps, largest(_of_magnitudes(op, operands)), largest(results[0]))


def _of_sum(op: Operation, steps: Sequence[Step] | None, condition: float, size: float) -> Steps:
    """Return the steps of a sum: its additions relative to the condition, its last rounding to the result itself."""
    if steps is None:
        format = op.ar.precision.matmul.format or op.ar.precision.accumulation.format or op.ar.format
        inside: Sequence[Step] = [Step.of(roundoff(format, op.ar.precision.rounding), 2, tiny=0.0)]
        last = [Step.of(roundoff(op.ar.format, op.ar.precision.rounding))]
    else:
        inside, last = (steps[:-1], list(steps[-1:])) if len(steps) > 1 else (steps, [])
    return [*relative_to(inside, condition, size), *relative_to(last, size, size)]


def _of_magnitudes(op: Operation, args: Sequence[Any]) -> Any:
    """Return the operation on the magnitudes of its operands, as torch computes it."""
    absolute = [x.detach().abs() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
    factors = {name: abs(op.kwargs[name]) for name in FACTORS if name in op.kwargs}
    return op.function(*absolute, **{**op.kwargs, **factors})


# Name of torch's operation -> its steps; any other is one rounding.
OWN: dict[str, Callable[[Operation, Sequence[Tensor]], Steps]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), product),
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "addbmm"), product_with_addend),
    **dict.fromkeys(("convolution", "_convolution"), convolution),
    "convolution_backward": convolution_backward,
    "sum": total,
    "mean": mean,
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), spread),
    "pow": power,
    **dict.fromkeys(("reciprocal", "rsqrt"), reciprocal),
    **dict.fromkeys(sorted(ATTENTION), attention),
    **OWN_OF_NORMS,
}
