"""A traced program split at its reductions into passes over memory: what each element takes, what each group takes.

    pass 0     x -> cast -> sum          one walk over the values
    between    sum / n                   one number per group (the values that share a mean)
    pass 1     x - mean -> square -> sum the next walk
    ...
    whole      sort, gather, scatter     what is no walk: plain torch on whole tensors, after its pass

A step goes into the earliest pass in which all it needs is there. A sum closes at the end of its pass, so what
depends on it begins the next one. Nothing here runs anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import torch

from normstab.norms.reduction import Ratio, Reduction
from normstab.norms.trace import Program, Step, Value

__all__ = ["COMPARED", "EXACT", "ROUNDED", "VIEWS", "Extent", "Pass", "Passes", "scalars_of", "split"]

# The same values in the same row-major order under another shape.
VIEWS = ("aten::view", "aten::_unsafe_view", "aten::detach", "aten::alias")
# What is computed element by element: rounded once, or exact and uncounted.
ROUNDED = ("cast", "add", "sub", "mul", "div", "sqrt")
COMPARED = ("aten::eq.Scalar", "aten::lt.Scalar", "aten::gt.Scalar")
EXACT = ("sign", "abs", "aten::neg", "aten::where.self", *COMPARED)


class Extent(Enum):
    """How many numbers a value has: one per element, group or parameter, or one; or it is a tensor of its own kind."""

    ELEMENT = "element"
    GROUP = "group"
    PARAMETER = "parameter"
    NUMBER = "number"
    WHOLE = "whole"


@dataclass
class Pass:
    """One walk over memory with its sums; then what each group takes of them, then what needs whole tensors."""

    elements: list[Step] = field(default_factory=list)
    between: list[Step] = field(default_factory=list)
    whole: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class Passes:
    """What is done with what comes in, then the passes; for the number of each value its extent, and what it views."""

    before: tuple[Step, ...]
    passes: tuple[Pass, ...]
    extents: dict[int, Extent]
    viewed: dict[int, int]

    @property
    def is_fusable(self) -> bool:
        """Whether nothing but walks and numbers of groups is left, so that a group can stay in the cache."""
        return not any(part.whole for part in self.passes)


def split(program: Program, reduction: Reduction) -> Passes:
    """Return the passes of a program over groups as `reduction` says."""
    splitting = Splitting(reduction)
    for name, value in program.inputs.items():
        splitting.see(value, extent_of_input(name, value, reduction), -1)
    for step in program.steps:
        splitting.take(step)
    return Passes(tuple(splitting.before), tuple(splitting.passes), splitting.extents, splitting.viewed)


def extent_of_input(name: str, value: Value, reduction: Reduction) -> Extent:
    """Return the extent of what comes in; gamma, beta and the running statistics have that of parameters."""
    if name in ("gamma", "beta", "running_mean", "running_var"):
        return Extent.PARAMETER
    return extent_of_shape(value.shape, reduction)


def extent_of_shape(shape: tuple[int, ...], reduction: Reduction) -> Extent:
    """Return what a tensor of this shape is, where no operation says it: every element's, or every group's."""
    if shape == reduction.view:
        return Extent.ELEMENT
    if shape == ():
        return Extent.NUMBER
    return Extent.GROUP if shape == shape_of_groups(reduction) else Extent.WHOLE


def shape_of_groups(reduction: Reduction) -> tuple[int, ...]:
    """Return the shape of one number of every group: the view's, with the reduced axes of size 1."""
    return tuple(1 if axis in reduction.axes else size for axis, size in enumerate(reduction.view))


def is_plain(step: Step) -> bool:
    """Whether a step is one of those above on float32 and on numbers that float32 has, or chooses by a comparison."""
    numbers = [x for x in (*step.operands, *scalars_of(step)) if not isinstance(x, Value)]
    values = [x for x in step.operands if isinstance(x, Value)]
    if step.kind == "aten::where.self":
        is_chosen, values = values[0].dtype == torch.bool, values[1:]
    else:
        is_chosen = step.kind in ROUNDED + EXACT or isinstance(step.detail, Ratio)
    made = torch.bool if step.kind in COMPARED else torch.float32
    return (
        is_chosen
        and all(x.dtype == torch.float32 for x in values)
        and all(x.dtype == made for x in step.results)
        and all(isinstance(x, int | float) and has_float32(x) for x in numbers)
    )


def scalars_of(step: Step) -> tuple[float, ...]:
    """Return the numbers that torch's comparison, or a ratio, is given beside its tensor."""
    if isinstance(step.detail, Ratio):
        return float(step.detail.n), float(step.detail.m)
    return tuple(step.detail[1][1:]) if step.kind in COMPARED else ()


def has_float32(x: float) -> bool:
    """Whether float32 has this number."""
    return x != x or float(np.float32(x)) == x


class Splitting:
    """The passes so far, and in which of them each value is made: -1 for what comes in."""

    def __init__(self, reduction: Reduction) -> None:
        self.reduction = reduction
        self.before: list[Step] = []
        self.passes: list[Pass] = []
        self.extents: dict[int, Extent] = {}
        self.viewed: dict[int, int] = {}
        self._made: dict[int, int] = {}
        self._is_whole: set[int] = set()

    def see(self, value: Value, extent: Extent, made: int) -> None:
        """Note the extent of a value, and the pass after or in which it is made."""
        self.extents[value.number], self._made[value.number] = extent, made
        self.viewed.setdefault(value.number, value.number)

    def take(self, step: Step) -> None:
        """Put a step into its pass."""
        operands = [x for x in step.operands if isinstance(x, Value)]
        if step.kind in VIEWS:
            self._view(operands[0], step.results[0])
            return
        extents = {self.extents[x.number] for x in operands} - {Extent.NUMBER}
        if self._is_sum_of_group(step, extents):
            self._put(step, "elements", self._pass_of_element(operands), Extent.GROUP)
        elif self._is_walked(step, extents) and self._have_shapes(step, operands):
            self._put(step, "elements", self._pass_of_element(operands), Extent.ELEMENT)
        elif is_plain(step) and extents == {Extent.GROUP} and self._are_alike(step) and not self._reads_whole(operands):
            self._put(step, "between", self._last(operands), Extent.GROUP)
        elif step.kind in ROUNDED and extents == {Extent.PARAMETER}:
            self._put(step, "whole", self._last(operands), Extent.PARAMETER)
        elif step.results:
            self._put(step, "whole", self._last(operands), None)

    def _view(self, source: Value, view: Value) -> None:
        """Note that one value is another under another shape."""
        extent = self.extents[source.number]
        if extent == Extent.WHOLE or (extent == Extent.ELEMENT and view.shape != self.reduction.view):
            extent = extent_of_shape(view.shape, self.reduction)
        self.see(view, extent, self._made[source.number])
        self.viewed[view.number] = self.viewed[source.number]
        if source.number in self._is_whole:
            self._is_whole.add(view.number)

    def _is_sum_of_group(self, step: Step, extents: set[Extent]) -> bool:
        """Whether a step adds up the elements of every group."""
        is_sum = step.kind == "accumulate" and extents == {Extent.ELEMENT}
        addends = [x.dtype for x in step.operands if isinstance(x, Value)]
        return is_sum and addends == [torch.float32] and tuple(step.detail[0]) == self.reduction.axes

    def _is_walked(self, step: Step, extents: set[Extent]) -> bool:
        """Whether a step computes one of the above of every element; ratios are taken of groups alone."""
        return is_plain(step) and Extent.ELEMENT in extents and not isinstance(step.detail, Ratio)

    def _have_shapes(self, step: Step, operands: list[Value]) -> bool:
        """Whether each element of a result is that of the operands at its place, its group and its parameter."""
        shapes = {
            Extent.ELEMENT: self.reduction.view,
            Extent.GROUP: shape_of_groups(self.reduction),
            Extent.PARAMETER: self.reduction.parameters,
            Extent.NUMBER: (),
        }
        results = [x.shape for x in step.results]
        return results == [self.reduction.view] and all(shapes.get(self.extents[x.number]) == x.shape for x in operands)

    def _are_alike(self, step: Step) -> bool:
        """Whether operands and results are one number of every group each, all in one shape."""
        shapes = {x.shape for x in (*step.operands, *step.results) if isinstance(x, Value) and x.shape != ()}
        return len(shapes) == 1 and math.prod(shapes.pop()) == math.prod(shape_of_groups(self.reduction))

    def _pass_of_element(self, operands: list[Value]) -> int:
        """Return the first pass in which every operand is there: after the sums and the whole tensors among them."""
        first = 0
        for x in operands:
            is_of_walk = self.extents[x.number] == Extent.ELEMENT and x.number not in self._is_whole
            first = max(first, self._made[x.number] + (0 if is_of_walk else 1))
        return first

    def _reads_whole(self, operands: list[Value]) -> bool:
        """Whether an operand is made by plain torch, which runs after the numbers of groups."""
        return any(x.number in self._is_whole for x in operands)

    def _last(self, operands: list[Value]) -> int:
        """Return the pass after which every operand is there; -1 where all of them come in."""
        return max((self._made[x.number] for x in operands), default=-1)

    def _put(self, step: Step, part: str, number: int, extent: Extent | None) -> None:
        """Append a step to a part of a pass; what needs only what comes in, and no walk, is done before them all."""
        is_before = number < 0
        if is_before:
            self.before.append(step)
        else:
            while len(self.passes) <= number:
                self.passes.append(Pass())
            getattr(self.passes[number], part).append(step)
        for result in step.results:
            found = extent_of_shape(result.shape, self.reduction) if extent is None else extent
            self.see(result, found, number)
            if part == "whole" and not is_before:
                self._is_whole.add(result.number)
