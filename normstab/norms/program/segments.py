"""Passes of a program joined into segments: what a device's kernel does group by group, between whole tensors of torch.

    segment 0   walks of pass 0, 1 and what each group takes of their sums    d, mean, moment written to memory
      whole     root(moment), by plain torch                                  one number per group
    segment 1   walks of pass 2                                               d and root read again

A segment ends only where a later walk needs what plain torch makes; all else that is whole is done at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from normstab.norms.passes import VIEWS, Pass, Passes, split
from normstab.norms.program.known_formats import Known, fitting_loads, formats_of, has_number, is_within
from normstab.norms.program.layer_outline import Outline
from normstab.norms.reduction import Reduction
from normstab.norms.trace import Program, Step, Value
from normstab.numerics.precision import Precision

__all__ = ["Plan", "Segment", "plan_of"]


@dataclass(frozen=True)
class Segment:
    """Passes that a kernel runs, the numbers of what it writes to memory, and the whole steps after it."""

    passes: tuple[Pass, ...]
    written: tuple[int, ...]
    whole: tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """A program cut into segments.

    `views` makes the view of a number out of what it views. The loads of sums at `fitting` operations cast nothing.
    `is_uniform`: what walks round or add up is all in the format of results, as kernels in float32 need it.
    """

    program: Program
    reduction: Reduction
    parts: Passes
    segments: tuple[Segment, ...]
    views: dict[int, Step]
    shapes: dict[int, tuple[int, ...]]
    fitting: frozenset[str]
    is_uniform: bool

    def origin(self, value: Value) -> int:
        """Return the number of what a value views, its own where it views nothing."""
        return self.parts.viewed[value.number]

    @property
    def runs_in_order(self) -> bool:
        """Whether the steps that count at one operation run in the order in which their calls are made."""
        place = {id(step): i for i, step in enumerate(steps_in_order(self))}
        made = [step for step in self.program.steps if id(step) in place and step.calls and step.again is None]
        last: dict[str, int] = {}
        for step in made:
            for called in step.calls:
                if place[id(step)] < last.get(called.operation, -1):
                    return False
                last[called.operation] = place[id(step)]
        return True


def steps_in_order(plan: Plan) -> list[Step]:
    """Return the steps in the order in which they are counted: a segment counts its own in the order of the program."""
    rank = {id(step): i for i, step in enumerate(plan.program.steps)}
    found = list(plan.parts.before)
    for segment in plan.segments:
        found += sorted(walked(segment), key=lambda step: rank[id(step)])
        found += segment.whole
    return found


def plan_of(program: Program, outline: Outline, known: Mapping[str, Known]) -> Plan:
    """Return the program cut into segments, given what is known of the formats of its inputs."""
    parts = split(program, outline.reduction)
    segments = cut(parts)
    written = [Segment(s.passes, written_by(segments[i:], parts, program), s.whole) for i, s in enumerate(segments)]
    return Plan(
        program,
        outline.reduction,
        parts,
        tuple(written),
        views={step.results[0].number: step for step in program.steps if step.kind in VIEWS},
        shapes={result.number: result.shape for step in program.steps for result in step.results},
        fitting=fitting_loads(program, known),
        is_uniform=is_uniform(program, parts, outline.precision, known),
    )


def cut(parts: Passes) -> list[Segment]:
    """Return the segments of passes; what they write is not known yet."""
    needed = whole_for_walks(parts)
    found: list[tuple[list[Pass], list[Step]]] = [([], [])]
    at_end: list[Step] = []
    for part in parts.passes:
        found[-1][0].append(part)
        for step in part.whole:
            (found[-1][1] if id(step) in needed else at_end).append(step)
        if found[-1][1]:
            found.append(([], []))
    if len(found) > 1 and not found[-1][0]:
        found.pop()
    found[-1][1].extend(at_end)
    return [Segment(tuple(passes), (), tuple(whole)) for passes, whole in found]


def whole_for_walks(parts: Passes) -> set[int]:
    """Return the ids of the whole steps out of which a walk, or a number of a group, is made."""
    wanted = read_by((step for part in parts.passes for step in (*part.elements, *part.between)), parts)
    needed = set()
    for step in reversed([step for part in parts.passes for step in part.whole]):
        if any(parts.viewed[x.number] in wanted for x in step.results):
            needed.add(id(step))
            wanted |= read_by([step], parts)
    return needed


def read_by(steps: Iterable[Step], parts: Passes) -> set[int]:
    """Return the numbers of what steps read, a view as what it views."""
    return {parts.viewed[x.number] for step in steps for x in step.operands if isinstance(x, Value)}


def written_by(segments: Sequence[Segment], parts: Passes, program: Program) -> tuple[int, ...]:
    """Return the numbers of what the first segment makes for whole steps, later segments and outputs, in order."""
    own, *later = segments
    read = read_by((step for segment in later for step in walked(segment)), parts)
    read |= read_by((step for segment in segments for step in segment.whole), parts)
    read |= {parts.viewed[value.number] for value in program.outputs.values() if value is not None}
    made = dict.fromkeys(result.number for step in walked(own) for result in step.results)
    return tuple(number for number in made if number in read)


def walked(segment: Segment) -> list[Step]:
    """Return the steps of a segment that its kernel runs."""
    return [step for part in segment.passes for step in (*part.elements, *part.between)]


def is_uniform(program: Program, parts: Passes, precision: Precision, inputs: Mapping[str, Known]) -> bool:
    """Whether all that walks round or add up, numbers beside values too, is in the format of results."""
    known, format = formats_of(program, inputs), precision.format()
    for step in (step for part in parts.passes for step in part.elements):
        if not step.calls or step.kind == "cast":
            continue
        for x in step.operands:
            if isinstance(x, Value):
                found = known.get(x.number)
                if found is None or not is_within(found.format, format):
                    return False
            elif x is not None and not has_number(format, x):
                return False
    return True
