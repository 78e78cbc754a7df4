"""What a backward pass computes once more of the forward pass: y and d, out of the input and numbers of groups.

    forward    x --cast--> . - mu --> d --/ s--> y --gamma, beta--> z     mu and s: one number per group
    kept       x                mu          s                             nothing else is as large as x
    backward   x --cast--> . - mu --> d --/ s--> y, uncounted, then its own steps

Writing d and y to memory would cost more than computing them again: the random bits are those of the first time, so
that they come out as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from normstab.norms.passes import ROUNDED, Extent, Passes
from normstab.norms.trace import Program, Step, Value
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call
from normstab.numerics.philox import Draw

__all__ = ["Again", "SavedAgain", "again_of", "draws_of", "groups_kept", "joined", "silent_calls", "slimmed"]

OUTPUTS = ("normalized", "centred")  # what is computed once more, by its name in Saved
CARRIED = (*ROUNDED, "abs", "sign")  # kinds of steps that can be: they need nothing but their operands


class SavedAgain(NamedTuple):
    """What such a backward pass needs: the input in its own dtype, s, gamma, the members, and numbers of groups.

    `groups` has a row for each number that y or d is made of, shape (k, R); `draws`, shape (k, 2), says for each step
    where its random bits came from: Philox key and step.
    """

    input: Tensor
    scale: Tensor | None
    gamma: Tensor | None
    members: Tensor | None
    groups: Tensor
    draws: Tensor


@dataclass(frozen=True)
class Again:
    """Steps of a forward pass that make y and d out of its input, and the numbers of groups that they read.

    `origins` has for the number of every element's value that of what it views.
    """

    program: Program
    steps: tuple[Step, ...]
    groups: tuple[Value, ...]
    origins: Mapping[int, int]

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which the numbers of groups come into the backward program."""
        return tuple(f"again.{i}" for i in range(len(self.groups)))

    def made(self, name: str) -> int | None:
        """Return the number of y or d, as it was made; None where the forward pass has none."""
        value = self.program.outputs[name]
        return None if value is None else self.origins.get(value.number, value.number)

    def needed(self, numbers: Iterable[int]) -> list[Step]:
        """Return the steps that make the values of these numbers, in their order."""
        wanted, found = set(numbers), []
        for step in reversed(self.steps):
            if wanted & {result.number for result in step.results}:
                found.append(step)
                wanted |= {self.origins.get(x.number, x.number) for x in values_of([step])}
        return found[::-1]


def again_of(program: Program, parts: Passes) -> Again | None:
    """Return what makes y and d of a forward program; None where that takes more than walks over the input."""
    made = {result.number: step for step in program.steps for result in step.results}
    walked = {id(step) for part in parts.passes for step in part.elements}
    wanted = [value for name in OUTPUTS if (value := program.outputs[name]) is not None]
    steps: set[int] = set()
    groups: dict[int, Value] = {}
    while wanted:
        value = wanted.pop()
        origin, extent = parts.viewed[value.number], parts.extents[value.number]
        step = made.get(origin)
        if extent == Extent.GROUP:
            groups[value.number] = value
        elif extent != Extent.ELEMENT or (step is None and origin != program.inputs["x"].number):
            return None
        elif step is not None and id(step) not in steps:
            if step.kind not in CARRIED or id(step) not in walked:
                return None
            steps.add(id(step))
            wanted += values_of([step])
    origins = {x: origin for x, origin in parts.viewed.items() if parts.extents[x] == Extent.ELEMENT}
    return Again(program, tuple(s for s in program.steps if id(s) in steps), tuple(groups.values()), origins)


def joined(backward: Program, again: Again) -> Program | None:
    """Return the backward program with what makes y and d before it, silent; None where one value is both.

    It takes `x` and the numbers of groups in the place of y and d.
    """
    read = {x.number for x in values_of(backward.steps)}
    wanted = {name: x.number for name in OUTPUTS if (x := backward.inputs.get(name)) is not None and x.number in read}
    inputs = {name: value for name, value in backward.inputs.items() if name not in OUTPUTS}
    known = {number: given for name, given in wanted.items() if (number := again.made(name)) is not None}
    if len(known) < len(wanted):
        return None
    if not wanted:
        return replace(backward, inputs=inputs)
    first = 1 + max(x.number for x in (*values_of(backward.steps), *backward.inputs.values()))
    first = max(first, 1 + max(result.number for step in backward.steps for result in step.results))

    def value(x: Value) -> Value:
        origin = again.origins.get(x.number, x.number)
        return x._replace(number=known.get(origin, first + origin))

    def values(given: Sequence[Value | float | None]) -> tuple[Any, ...]:
        return tuple(value(x) if isinstance(x, Value) else x for x in given)

    place = {id(step): i for i, step in enumerate(again.steps)}
    silent = [
        replace(step, operands=values(step.operands), results=values(step.results), again=place[id(step)])
        for step in again.needed(known)
    ]
    inputs["x"] = value(again.program.inputs["x"])
    inputs |= {name: value(x) for name, x in zip(again.names, again.groups, strict=True)}
    return Program((*silent, *backward.steps), inputs, backward.outputs)


def values_of(steps: Iterable[Step]) -> list[Value]:
    """Return the operands of steps that are values."""
    return [x for step in steps for x in step.operands if isinstance(x, Value)]


def slimmed(again: Again) -> Program:
    """Return the forward program without y and d among what comes out; numbers of groups that they need come out."""
    kept = {name: value for name, value in again.program.outputs.items() if name not in OUTPUTS}
    return replace(again.program, outputs=kept | dict(zip(again.names, again.groups, strict=True)))


def groups_kept(again: Again, outputs: Mapping[str, Tensor]) -> Tensor:
    """Return the numbers of groups that came out, as the rows of one tensor, shape (k, R)."""
    rows = [outputs[name].reshape(-1) for name in again.names]
    return torch.stack(rows) if rows else torch.empty(0, 0, device="cpu")


def draws_of(again: Again, made: Mapping[int, Sequence[Call]], ar: Arithmetic) -> Tensor:
    """Return where the random bits of each step came from, to draw them again; int64, shape (k, 2), or none."""
    if not ar.precision.rounding.is_stochastic:
        return torch.empty(0, 2, dtype=torch.int64, device="cpu")
    draws = [calls[0].draw if (calls := made.get(id(step))) else None for step in again.steps]
    words = np.array([(0, 0) if draw is None else draw[:2] for draw in draws], np.uint64).reshape(-1, 2)
    return torch.from_numpy(words.view(np.int64))


def silent_calls(program: Program, draws: Tensor, ar: Arithmetic) -> dict[int, tuple[Call, ...]]:
    """Return the uncounted calls of the steps that are done again, with their random bits, by the ids of the steps."""
    rounding, found = ar.precision.rounding, {}
    words = draws.numpy().view(np.uint64).tolist() if rounding.is_stochastic else []
    for step in program.steps:
        if step.again is not None:
            draw = Draw(*words[step.again]) if words else None
            found[id(step)] = tuple(Call(called.format, rounding, draw=draw) for called in step.calls)
    return found
