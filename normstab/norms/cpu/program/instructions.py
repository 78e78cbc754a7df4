"""A segment of a program as a table of instructions for the interpreter; no numba here.

    LOAD    numbers of a group, from memory          once per group
    FILL    a block with such a number               once per walk
    LOOP    k   the k rows that follow, block by block:
            GATHER, CAST, SUB, MUL, ..., SUM, SCATTER
    FINISH  close a sum; then DIV, ADD, ... on numbers; STORE

A row names its operands by places (blocks) inside a loop and by numbers outside it. A place is a block of its own,
values of the whole group that stay for a later walk, or the values of a tensor where they lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from normstab.norms.cpu.program.instruction_codes import CODES
from normstab.norms.fused.layer_table import BLOCK
from normstab.norms.fused.plan_of_layer import where
from normstab.norms.passes import Extent, Pass, scalars_of
from normstab.norms.program.segments import Plan, Segment
from normstab.norms.reduction import Reduction
from normstab.norms.trace import Step, Value

__all__ = ["Instructions", "Place", "compiled"]


class Place(NamedTuple):
    """Where a block lies: block number `which`, row `which` of what stays of a group, or in tensor `which`.

    A tensor is `direct` where a block of a group's values lies in it as it is; else blocks are gathered and scattered.
    """

    kind: str
    which: int


@dataclass
class Instructions:
    """The rows of a segment, and what they name."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)
    sites: list[Step | None] = field(default_factory=list)
    scalars: dict[int, int] = field(default_factory=dict)
    blocks: int = 0
    kept: int = 0
    streams: int = 0

    def add(self, code: str, a: int = 0, b: int = 0, c: int = 0, y: int = 0, site: int = 0) -> None:
        """Append a row."""
        self.rows.append((CODES[code], a, b, c, y, site))

    def place(self, kind: str, which: int) -> int:
        """Return the index of a place, a new one where it is unknown."""
        wanted = Place(kind, which)
        if wanted not in self.places:
            self.places.append(wanted)
        return self.places.index(wanted)

    def number(self, value: float = 0.0) -> int:
        """Return the index of a new number."""
        self.numbers.append(value)
        return len(self.numbers) - 1

    def site(self, step: Step) -> int:
        """Return the place of a step's calls; a sum has three: additions, loads, and none."""
        self.sites += [step, None, None] if step.kind == "accumulate" else [step]
        return len(self.sites) - (3 if step.kind == "accumulate" else 1)


def compiled(plan: Plan, segment: Segment) -> Instructions:
    """Return the instructions of a segment."""
    return Writer(plan, segment).done()


class Writer:
    """The instructions while they are written, and where each value is."""

    def __init__(self, plan: Plan, segment: Segment) -> None:
        self.plan, self.segment, self.made = plan, segment, Instructions()
        self.extents = plan.parts.extents
        self.tensor = "direct" if lies_in_blocks(plan.reduction) else "tensor"
        self.numbers: dict[int, int] = {}  # of a group's value: its index
        self.kept: dict[int, int] = {}  # of an element's value that stays for a later walk: its row
        self.own = {x.number for part in segment.passes for s in (*part.elements, *part.between) for x in s.results}
        self.sites: dict[int, int] = {}
        order = {id(step): i for i, step in enumerate(plan.program.steps)}
        steps = [step for part in segment.passes for step in (*part.elements, *part.between) if step.calls]
        for step in sorted(steps, key=lambda step: order[id(step)]):
            self.sites[id(step)] = self.made.site(step)

    def done(self) -> Instructions:
        """Write all passes."""
        for part in self.segment.passes:
            for number in self.read(part, (Extent.GROUP,)):
                if number not in self.own and number not in self.numbers:
                    self.numbers[number] = self.made.number()
                    self.made.add("LOAD", self.made.place("tensor", number), y=self.numbers[number])
        for i, part in enumerate(self.segment.passes):
            later = {number for after in self.segment.passes[i + 1 :] for number in self.read(after, (Extent.ELEMENT,))}
            Walk(self, part, later).write()
            for step in part.between:
                self.between(step)
        self.made.add("END")
        return self.made

    def read(self, part: Pass, extents: Sequence[Extent]) -> list[int]:
        """Return the numbers of what a pass reads of some extents, a view as what it views."""
        values = [x for step in (*part.elements, *part.between) for x in values_of(step)]
        return list(dict.fromkeys(self.plan.origin(x) for x in values if self.extents[x.number] in extents))

    def between(self, step: Step) -> None:
        """Write what is computed of numbers of a group."""
        operands = [self.number_of(x) for x in (*step.operands, *scalars_of(step))]
        a, b, c = (*operands, 0, 0, 0)[:3]
        self.made.add(step.kind, a, b, c, self.result(step), self.sites.get(id(step), 0))
        self.store(step)

    def result(self, step: Step) -> int:
        """Return the index of a new number of a group."""
        index = self.numbers[step.results[0].number] = self.made.number()
        return index

    def store(self, step: Step) -> None:
        """Write a number of a group to memory, where it is read after the segment."""
        number = step.results[0].number
        if number in self.segment.written:
            self.made.add("STORE", self.numbers[number], y=self.made.place("tensor", number))

    def number_of(self, x: Value | float | None) -> int:
        """Return the index of a number: of a group, one that a tensor holds for all, or a constant."""
        if not isinstance(x, Value):
            assert x is not None
            return self.made.number(float(x))
        number = self.plan.origin(x)
        if self.extents[x.number] != Extent.NUMBER:
            return self.numbers[number]
        if number not in self.made.scalars:
            self.made.scalars[number] = self.made.number()
        return self.made.scalars[number]


class Walk:
    """One pass over the blocks of a group: its rows, and which blocks are free at each of them."""

    def __init__(self, writer: Writer, part: Pass, later: set[int]) -> None:
        self.writer, self.part, self.later, self.made = writer, part, later, writer.made
        self.free: list[int] = []
        self.blocks = 0
        self.at: dict[object, int] = {}  # of a value or number: its place
        self.summed = self.magnitudes_of_sums()
        self.last = {number: i for i, step in enumerate(part.elements) for number in self.elements_of(step)}
        self.body = Instructions(places=self.made.places)
        self.sums: list[Step] = []

    def write(self) -> None:
        """Write the fills, the loop over blocks, and the ends of sums."""
        for i, step in enumerate(self.part.elements):
            self.take(step)
            for number in dict.fromkeys((*self.elements_of(step), *(x.number for x in step.results))):
                if number in self.at and self.last.get(number, i) <= i:
                    self.release(number)
        self.made.add("LOOP", len(self.body.rows))
        self.made.rows += self.body.rows
        self.made.blocks = max(self.made.blocks, self.blocks)
        self.made.streams = max(self.made.streams, len(self.sums))
        for stream, step in enumerate(self.sums):
            self.made.add("FINISH", stream, y=self.writer.result(step), site=self.writer.sites[id(step)])
            self.writer.store(step)

    def magnitudes_of_sums(self) -> dict[int, Value]:
        """Return the magnitudes that a sum alone reads, which takes them of their values: number -> value."""
        plan, found = self.writer.plan, {}
        sums = {plan.origin(x) for s in self.part.elements if s.kind == "accumulate" for x in values_of(s)}
        read = Counter(plan.origin(x) for s in plan.program.steps for x in values_of(s))
        for step in self.part.elements:
            number = step.results[0].number
            is_read_once = read[number] == 1 and number in sums and number not in self.writer.segment.written
            if step.kind == "abs" and is_read_once:
                found[number] = values_of(step)[0]
        return found

    def value_of(self, x: Value) -> Value:
        """Return the value that is read for another: for a magnitude that a sum takes, what it is the magnitude of."""
        return self.summed.get(self.writer.plan.origin(x), x)

    def elements_of(self, step: Step) -> list[int]:
        """Return the numbers of the operands of every element."""
        values = [self.value_of(x) for x in values_of(step)]
        return [self.writer.plan.origin(x) for x in values if self.writer.extents[x.number] == Extent.ELEMENT]

    def take(self, step: Step) -> None:
        """Write the row of a step, with what brings its operands and takes its result away."""
        site = self.writer.sites.get(id(step), 0)
        if step.kind == "accumulate":
            addend = values_of(step)[0]
            place = self.operand(self.value_of(addend))
            self.body.add("SUM", place, c=int(self.value_of(addend) != addend), y=len(self.sums), site=site)
            self.sums.append(step)
            return
        if step.results[0].number in self.summed:
            return
        operands = [self.operand(x) for x in step.operands]
        a, b, c = (*operands, *(self.writer.number_of(x) for x in scalars_of(step)), 0, 0, 0)[:3]
        number = step.results[0].number
        is_written = number in self.writer.segment.written
        self.at[number] = self.place_of_result(number, is_written)
        self.body.add(step.kind, a, b, c, self.at[number], site)
        if is_written and self.made.places[self.at[number]].kind != "direct":
            self.body.add("SCATTER", self.at[number], y=self.made.place("tensor", number))

    def place_of_result(self, number: int, is_written: bool) -> int:
        """Return where a result goes: to its tensor, to what stays of the group, or to a block."""
        if is_written and self.writer.tensor == "direct":
            return self.made.place("direct", number)
        if number in self.later and not is_written:
            row = self.writer.kept.setdefault(number, len(self.writer.kept))
            self.made.kept = max(self.made.kept, row + 1)
            return self.made.place("kept", row)
        return self.block()

    def operand(self, x: Value | float | None) -> int:
        """Return the place of an operand, brought there where it is not yet."""
        extent = self.writer.extents[x.number] if isinstance(x, Value) else Extent.NUMBER
        key: object = self.writer.plan.origin(x) if isinstance(x, Value) else repr(x)  # -0.0 is another than 0.0
        if key in self.at:
            return self.at[key]
        if isinstance(key, int) and key in self.writer.kept:
            self.at[key] = self.made.place("kept", self.writer.kept[key])
        elif extent == Extent.ELEMENT and self.writer.tensor == "direct":
            assert isinstance(key, int)
            self.at[key] = self.made.place("direct", key)
        else:
            self.at[key] = self.block() if extent == Extent.ELEMENT else self.fresh_block()
            self.bring(x, extent, key)
        return self.at[key]

    def bring(self, x: Value | float | None, extent: Extent, key: object) -> None:
        """Write what fills a block: once per walk a number, block by block the values of a tensor."""
        if extent in (Extent.GROUP, Extent.NUMBER):
            self.made.add("FILL", self.writer.number_of(x), y=self.at[key])
            return
        assert isinstance(key, int)
        code = "GATHER" if extent == Extent.ELEMENT else "PARAMETERS"
        self.body.add(code, self.made.place("tensor", key), y=self.at[key])

    def block(self) -> int:
        """Return the place of a block that is free."""
        return self.free.pop() if self.free else self.fresh_block()

    def fresh_block(self) -> int:
        """Return the place of a block that no row has used: what is filled before the loop stays as it is."""
        self.blocks += 1
        return self.made.place("block", self.blocks - 1)

    def release(self, number: int) -> None:
        """Let the block of a value that nobody reads any more be used again."""
        place = self.at.pop(number)
        if self.made.places[place].kind == "block":
            self.free.append(place)


def values_of(step: Step) -> list[Value]:
    """Return the operands of a step that are values."""
    return [x for x in step.operands if isinstance(x, Value)]


def lies_in_blocks(reduction: Reduction) -> bool:
    """Whether every block of a group's values is one stretch of memory."""
    length = where(reduction)["length"]
    return length >= reduction.n or length % BLOCK == 0
