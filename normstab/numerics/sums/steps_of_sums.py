"""Which roundings lie between an addend and a sum, a mean, a product or a norm's scale in a Precision.

What `accumulate`, `means` and `matmul` do, told as steps of `bounds`; nothing is computed here.
"""

from __future__ import annotations

import math

from normstab.numerics.bounds import NEAREST_MODES, Roundoff, Step, roundoff
from normstab.numerics.formats import FORMATS, AnyFormat, FixedFormat, Format
from normstab.numerics.precision import NEAREST, Accumulation, Precision

__all__ = ["chunks", "height", "mean_steps", "product_steps", "sum_steps"]

FP32 = roundoff(FORMATS["fp32"], NEAREST)  # torch's own sums and products are in float32, in any order


def height(n: int, sums: Accumulation) -> int:
    """Return how many additions lie between an addend and the sum of `n`, at most."""
    if n <= 1 or sums.kind == "exact":
        return 0
    if sums.kind == "native" or sums.order == "sequential":
        return n - 1
    if sums.order == "pairwise":
        return _levels(n)
    width = min(n, sums.width)
    if sums.order == "blocked":
        return width - 1 + math.ceil(n / width) - 1
    return math.ceil(n / width) - 1 + _levels(width)


def chunks(n: int, sums: Accumulation) -> tuple[int, ...]:
    """Return the lengths of the sums one after another of which a sum of `n` is made, the inner one first."""
    if n <= 1 or sums.kind != "rounded" or sums.order == "sequential":
        return (n,)
    if sums.order == "pairwise":
        return (2,) * _levels(n)
    width = min(n, sums.width)
    if sums.order == "blocked":
        return (width, math.ceil(n / width))
    return (math.ceil(n / width), *(2,) * _levels(width))


def _levels(n: int) -> int:
    """Return ceil(log2 n), exactly."""
    return (n - 1).bit_length()


def sum_steps(n: int, precision: Precision, to: AnyFormat | None = None) -> list[Step] | None:
    """Return the steps of a sum of `n` numbers of the compute format, cast to `to` (the compute format) at its end.

    None where no bound with a proven constant is known: compensated sums, whose 2 u + O(n u^2) has none.
    """
    steps = _accumulated(n, precision, precision.format())
    if steps is None:
        return None
    result = precision.format() if to is None else to
    has_result = precision.accumulation.kind == "rounded" and _holds(result, precision.accumulation.format)
    return steps if has_result else [*steps, Step.of(roundoff(result, precision.rounding))]


def mean_steps(n: int, precision: Precision, *, role: str | None = None, of: str | None = None) -> list[Step] | None:
    """Return the steps of a mean of `n` numbers of the role `of`, a result in the format of `role`.

    None as for `sum_steps`; Welford's running mean has no bound either.
    """
    if precision.mean == "welford":
        return None
    result = roundoff(precision.format(role), precision.rounding)
    if precision.mean_block:
        return _blockwise(n, precision, role, of)
    steps = _accumulated(n, precision, precision.format(of))
    if steps is None:
        return None
    if precision.sum is not None:
        steps.append(Step.of(roundoff(precision.sum, precision.rounding)))
    return [*(step.scaled(1.0 / n) for step in steps), Step.of(result)]


def _blockwise(n: int, precision: Precision, role: str | None, of: str | None) -> list[Step] | None:
    """Return the steps of block means of block means: loads, additions and a division a level, a correction."""
    result = roundoff(precision.format(role), precision.rounding)
    block = Accumulation("rounded", precision.accumulation.format, "sequential", 0)
    sums = block if precision.accumulation.kind == "rounded" else precision.accumulation
    steps: list[Step] = []
    m, product = n, 1
    while m > 1:
        width = min(precision.mean_block, m)
        level = _accumulated(width, precision, precision.format(of if m == n else role), sums)
        if level is None or precision.accumulation.kahan:
            return None
        steps += [*(step.scaled(1.0 / width) for step in level), Step.of(result)]
        m, product = math.ceil(m / width), product * width
    # The last blocks are divided by the full width too: what is corrected grows by D / n.
    steps = [step.scaled(product / n) for step in steps]
    return steps if product == n else [*steps, Step.of(result)]


def product_steps(k: int, precision: Precision, *, has_addend: bool = False) -> list[Step] | None:
    """Return the steps of a sum of `k` products, as in a matrix product or a convolution, with an addend or without."""
    sums, result = precision.matmul, roundoff(precision.format(), precision.rounding)
    if sums.kind == "native":
        return [Step.of(FP32, k + has_addend, tiny=k), Step.of(result)]
    own = [Step.of(result)] * (1 + has_addend)
    if sums.kind == "exact":
        return own
    if sums.kahan:
        return None
    assert sums.format is not None
    inside = roundoff(sums.format, precision.rounding)
    first = Step(1, inside.unit, inside.bias, inside.quantum * k)
    if sums.fused:  # each product but the first is rounded with its addition, and may be tiny
        return [first, Step(height(k, sums), inside.unit, inside.bias, inside.quantum * k), *own]
    return [first, *_additions(k, sums, inside, is_nearest=precision.rounding.mode in NEAREST_MODES), *own]


def _accumulated(
    n: int, precision: Precision, addends: AnyFormat, sums: Accumulation | None = None
) -> list[Step] | None:
    """Return the steps of a sum before it is cast: its loads and additions."""
    sums = precision.accumulation if sums is None else sums
    if sums.kahan:
        return None
    if sums.kind != "rounded":
        return [Step.of(FP32.of_addition, height(n, sums))]
    assert sums.format is not None
    inside = roundoff(sums.format, precision.rounding)
    loads = [] if _holds(sums.format, addends) else [Step(1, inside.unit, inside.bias, n * inside.quantum)]
    return [*loads, *_additions(n, sums, inside, is_nearest=precision.rounding.mode in NEAREST_MODES)]


def _additions(n: int, sums: Accumulation, inside: Roundoff, *, is_nearest: bool) -> list[Step]:
    """Return the additions of a sum in a format; where a format has no subnormals, each may flush its result."""
    has_flushed = isinstance(sums.format, Format) and not sums.format.has_subnormals
    absolute = (n - 1) * inside.quantum if has_flushed else 0.0
    return [Step(height(n, sums), inside.unit, inside.bias, absolute, n, is_nearest and not has_flushed)]


def _holds(outer: AnyFormat, inner: AnyFormat | None) -> bool:
    """Return whether every number of `inner` is one of `outer`."""
    if inner is None or isinstance(outer, FixedFormat) != isinstance(inner, FixedFormat):
        return False
    is_finer = outer.min_subnormal <= inner.min_subnormal and outer.max >= inner.max
    return is_finer and outer.precision >= inner.precision
