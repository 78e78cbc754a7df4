"""What a batch norm costs: operations for each element, walks over memory, and bytes kept for the backward pass.

The operations are those of the traced program of the readable layer, so they are what the emulation rounds. The bytes
are what autograd is seen to keep of a native layer, each storage counted once.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normstab.norms.passes import Passes
    from normstab.norms.trace import Program

__all__ = ["NORMS", "NormCost", "norm_cost"]

NORMS = ("l2", "l1", "linf", "top10", "range")
"""The norms that are compared."""
SHAPE = (16, 8, 16, 16)
"""Images, channels and sides of what is counted: each channel's own numbers are one in 4,096 there."""

# Of the kinds of steps, what each is for one element; signs and comparisons are cheap, a sort is not.
ADDITIONS, PRODUCTS, DIVISIONS = ("accumulate", "add", "sub"), ("mul",), ("div",)
COMPARISONS = ("abs", "sign", "aten::amax", "aten::argmax", "aten::where.self", "aten::eq.Scalar")
SORTS = ("aten::sort", "aten::sort.stable")


@dataclass(frozen=True)
class NormCost:
    """Of one norm: operations per element, forward and backward together; roots per channel, walks, kept bytes."""

    norm: str
    additions: int
    products: int
    divisions: int
    comparisons: int
    sorts: int
    roots: int
    walks: tuple[int, int]
    kept_bytes: float


def norm_cost(norm: str) -> NormCost:
    """Return what batch normalization by `norm` costs, with gamma and beta, in training."""
    from normstab.norms.catalogue import Scheme, parse_norm
    from normstab.norms.passes import split
    from normstab.norms.program.layer_outline import Outline
    from normstab.norms.reduction import Reduction
    from normstab.norms.trace import trace_backward, trace_forward
    from normstab.numerics.precision import Precision

    reduction = Reduction.of_batch(SHAPE)
    outline = Outline(Scheme(parse_norm(norm)), reduction, Precision.parse("fp32/nearest/fp32"))
    programs = trace_forward(outline), trace_backward(outline)
    passes = [split(program, reduction) for program in programs]
    per_element: Counter[str] = Counter()
    roots = 0
    for program, parts in zip(programs, passes, strict=True):
        per_element += _per_element(program)
        roots += sum(step.kind == "sqrt" for part in parts.passes for step in part.between)
    kinds = (ADDITIONS, PRODUCTS, DIVISIONS, COMPARISONS, SORTS)
    additions, products, divisions, comparisons, sorts = (sum(per_element[kind] for kind in each) for each in kinds)
    walks = (_walks(passes[0]), _walks(passes[1]))
    return NormCost(norm, additions, products, divisions, comparisons, sorts, roots, walks, _kept_bytes(norm))


def _per_element(program: Program) -> Counter[str]:
    """Return how many operations of each kind have an operand with as many numbers as the input."""
    from normstab.norms.trace import Value

    size = math.prod(SHAPE)
    return Counter(
        step.kind
        for step in program.steps
        if any(isinstance(x, Value) and math.prod(x.shape) == size for x in step.operands)
    )


def _walks(parts: Passes) -> int:
    """Return over how many passes the elements are read."""
    return sum(bool(part.elements) for part in parts.passes)


def _kept_bytes(norm: str) -> float:
    """Return the bytes for each element that a native layer keeps between its passes."""
    import torch

    from normstab.norms.modules import BatchNorm2d

    storages: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    x = torch.linspace(-1, 1, math.prod(SHAPE)).view(SHAPE).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        output = BatchNorm2d(SHAPE[1], norm=norm)(x)
    del output
    return sum(storages.values()) / x.numel()
