"""What a recorded step does on the host, where a replay does nothing: it is done again, or it is undone.

Counts that the host makes, stamps of events, the clock, which parameters are cast, where gradients lie. What a step
leaves on the device is the graph's own.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from normstab.numerics.call import Call
from normstab.numerics.ledger import Noted
from normstab.numerics.philox import signed_step
from normstab.numerics.steps.replay import Moment
from normstab.simulation.around.parameters import Held
from normstab.simulation.run import Run

__all__ = ["Before", "Effects"]

Cast = tuple[Held, Tensor | None, Call]


class Effects(NamedTuple):
    """What the recorded step does on the host, which each replay does again, or which tells whether one may.

    `first_casts` are the parameters that it casts in the step in which it begins, `casts` those that are cast at its
    end as they are then.
    """

    begin: Moment
    end: Moment
    stamp: int
    stamps: int
    noted: list[Noted]
    unrecognised: dict[str, int]
    results: int
    ignored_upcasts: dict[str, int]
    first_casts: list[Held]
    casts: list[Cast]
    gradients: list[tuple[Tensor, Tensor | None]]

    def happen(self, run: Run, *, stamps: int, steps: int) -> None:
        """Do all this, so much later than it was recorded."""
        for noted in self.noted:
            run.ledger.add(noted._replace(stamp=noted.stamp + stamps, step=noted.step + steps))
        run.ledger.pass_over(self.stamps)
        run.unrecognised.add(self.unrecognised, self.results)
        for name, n in self.ignored_upcasts.items():
            run.ignored_upcasts[name] = run.ignored_upcasts.get(name, 0) + n
        run.arithmetic.clock.turn_to(Moment(self.end.step + steps, self.end.calls))
        for held, copy, call in self.casts:
            held.take_over(copy, _later(call, stamps, steps))
        for parameter, gradient in self.gradients:
            parameter.grad = gradient


class Before(NamedTuple):
    """What a simulation had counted and noted before a step was recorded."""

    begin: Moment
    stamp: int
    unrecognised: dict[str, int]
    results: int
    ignored_upcasts: dict[str, int]
    casts: list[Cast]

    @staticmethod
    def of(run: Run) -> Before:
        """Return what there is now."""
        unknown, clock = run.unrecognised, run.arithmetic.clock
        return Before(
            clock.moment(), run.ledger.stamped, dict(unknown), unknown.results, dict(run.ignored_upcasts), casts_of(run)
        )

    def effects(self, run: Run, noted: list[Noted], gradients: list[tuple[Tensor, Tensor | None]]) -> Effects:
        """Return what has changed since."""
        return Effects(
            begin=self.begin,
            end=run.arithmetic.clock.moment(),
            stamp=self.stamp,
            stamps=run.ledger.stamped - self.stamp,
            noted=noted,
            unrecognised=_beyond(run.unrecognised, self.unrecognised),
            results=run.unrecognised.results - self.results,
            ignored_upcasts=_beyond(run.ignored_upcasts, self.ignored_upcasts),
            first_casts=[held for held in run.parameters if self._is_begun_with(held)],
            casts=casts_of(run),
            gradients=gradients,
        )

    def _is_begun_with(self, held: Held) -> bool:
        """Whether a parameter was cast since, in the same step."""
        call = held.call
        return call is not None and call.stamp > self.stamp and call.step == signed_step(self.begin.step)

    def restore(self, run: Run) -> None:
        """Let it be so again."""
        run.arithmetic.clock.turn_to(self.begin)
        run.ledger.pass_over(self.stamp - run.ledger.stamped)
        _restore(run.unrecognised, self.unrecognised)
        run.unrecognised.results = self.results
        _restore(run.ignored_upcasts, self.ignored_upcasts)
        for held, copy, call in self.casts:
            held.take_over(copy, call)


def casts_of(run: Run) -> list[Cast]:
    """Return the parameters that are cast as they are now, with their copies."""
    return [(held, held.copy, held.call) for held in run.parameters if held.is_cast and held.call is not None]


def _later(call: Call, stamps: int, steps: int) -> Call:
    """Return a call as it is in a later step."""
    draw = None if call.draw is None else call.draw._replace(step=call.draw.step + steps)
    return call._replace(stamp=call.stamp + stamps, step=call.step + steps, draw=draw)


def _beyond(counts: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    """Return what has been added to counts."""
    return {name: n - before.get(name, 0) for name, n in counts.items() if n != before.get(name, 0)}


def _restore(counts: dict[str, int], before: dict[str, int]) -> None:
    """Let counts be what they were."""
    counts.clear()
    counts.update(before)
