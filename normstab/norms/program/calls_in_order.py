"""The calls of a program's steps at one site: looked up once; a run takes its stamps together, and makes what is asked.

    steps      cast | constant | sub | sum        in the order of stamps
    offset      0        1        2     3, 4      a run's first stamp is added

A norm makes some thirty calls in a pass, most of which no one but a kernel reads: for those the rows of counters and
the offsets are enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from normstab.norms.trace import Program
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.call import Call, Kept
from normstab.numerics.execute import rounded_constant
from normstab.numerics.formats import AnyFormat
from normstab.numerics.ledger import Noted, Row
from normstab.numerics.philox import signed_step
from normstab.numerics.precision import Rounding
from normstab.numerics.readable.event_counts import Counts

__all__ = ["Calls", "Listed", "listed"]


class Constant(NamedTuple):
    """A constant that is cast: the offset of its stamp, where it is counted, and what."""

    offset: int
    row: Row | None
    counts: Counts


class Listed:
    """What every run of a program at a site has in common; `kept` is what a device keeps with it.

    By the id of a step: the offset of its first stamp, with the format and row of each call; and the calls of what is
    done again, which no one counts.
    """

    def __init__(self, program: Program, ar: Arithmetic) -> None:
        self.program, self.ar = program, ar  # a program that lives keeps the ids of its steps
        self.steps: dict[int, tuple[int, tuple[tuple[AnyFormat, Row | None], ...]]] = {}
        self.silent: dict[int, tuple[Call, ...]] = {}
        self.constants: list[Constant] = []
        self.kept = Kept()
        self.stamps = 0
        rounding = ar.precision.rounding
        for step in program.steps:
            if step.again is not None:
                self.silent[id(step)] = tuple(Call(called.format, rounding) for called in step.calls)
            elif step.kind == "constant":
                value, name = step.detail
                row = ar.place(f"{name}.const")[0]
                self.constants.append(Constant(self._take(1), row, rounded_constant(value, ar.precision.format())[1]))
            elif step.calls:
                found = tuple((c.format, ar.in_format(c.role).place(c.operation)[0]) for c in step.calls)
                self.steps[id(step)] = self._take(len(found)), found

    def _take(self, number: int) -> int:
        """Return the offset of the next stamp, and take so many."""
        self.stamps += number
        return self.stamps - number


class Calls(Mapping[int, tuple[Call, ...]]):
    """The calls of one run, by the id of a step; `first` is the stamp at offset 0."""

    __slots__ = ("first", "inexact", "listed", "rounding", "step")

    def __init__(self, listed: Listed, first: int, step: int) -> None:
        self.listed, self.first, self.step = listed, first, step
        self.rounding = listed.ar.precision.rounding
        self.inexact = listed.ar.ledger is not None and listed.ar.ledger.counts_inexact

    @staticmethod
    def of_run(listed: Listed) -> Calls:
        """Return the calls of a run that begins now: take its stamps, and count its constants."""
        ledger = listed.ar.ledger
        if ledger is None:
            return Calls(listed, 0, 0)
        made = Calls(listed, ledger.stamp(listed.stamps), signed_step(listed.ar.clock.step))
        for offset, row, (counts, largest, smallest, _) in listed.constants:
            assert row is not None, "there is a ledger"
            ledger.add(Noted(row, counts, largest, smallest, made.first + offset, made.step))
        return made

    def from_zero(self) -> Calls:
        """Return the same calls with the offsets for stamps."""
        return Calls(self.listed, 0, self.step)

    def __getitem__(self, key: int) -> tuple[Call, ...]:
        found = self.listed.silent.get(key)
        if found is not None:
            return found
        offset, made = self.listed.steps[key]
        return tuple([self._call(format, row, offset + i) for i, (format, row) in enumerate(made)])

    def get(self, key: int, default: Any = None) -> Any:
        """Return the calls of a step, `default` of one without any."""
        return self[key] if key in self.listed.steps or key in self.listed.silent else default

    def __iter__(self) -> Iterator[int]:
        yield from self.listed.silent
        yield from self.listed.steps

    def __len__(self) -> int:
        return len(self.listed.silent) + len(self.listed.steps)

    def _call(self, format: AnyFormat, row: Row | None, offset: int) -> Call:
        if row is None:
            return Call(format, self.rounding)
        return Call(format, self.rounding, row, self.first + offset, self.step, None, self.inexact)


def listed(program: Program, ar: Arithmetic) -> Listed | None:
    """Return what the runs of a program here share; None where each call is its own.

    That is where random bits are drawn, where a rule gives single operations another precision, and where a forward
    pass is recomputed, which is counted elsewhere.
    """
    rounding: Rounding = ar.precision.rounding
    if rounding.is_stochastic or ar.rules is not None or ar.clock.replay.follow():
        return None
    found: Listed | None = ar.kept.get(id(program))
    if found is None:
        found = ar.kept[id(program)] = Listed(program, ar)
    return found
