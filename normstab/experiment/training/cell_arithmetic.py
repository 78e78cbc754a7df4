"""The arithmetic of a cell around its network: a simulation, a recording of exponents, or nothing at all.

The rest of an experiment asks nothing else of the simulation: pause, step, ledger, what was not understood.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from normstab.experiment.scenario.spec import NumericsSpec
from normstab.numerics.arithmetic import Arithmetic
from normstab.numerics.ledger import Ledger
from normstab.numerics.precision import Precision
from normstab.numerics.sums.kernels_of_sums import are_losses_cheap
from normstab.simulation.ranks.team import network_of
from normstab.simulation.run import Run
from normstab.simulation.simulate import simulate
from normstab.simulation.taken_back import Mark, go_back, mark
from normstab.torch_private import modes_off

__all__ = ["Simulated", "simulated"]


class Simulated:
    """What runs around the network: `run` is the simulation, or the recording of exponents (`is_recording`).

    Without a run plain torch computes. `tells_losses`: its sums can count what they lose in little time. `remarks` are
    sentences on how the steps ran, which stand beside the simulation's notes.
    """

    def __init__(
        self,
        run: Run | None = None,
        *,
        is_recording: bool = False,
        rounds_optimizer: bool = False,
        tells_losses: bool = False,
    ) -> None:
        self.run = run
        self.ledger = None if run is None else run.ledger
        self.is_recording = is_recording
        self.rounds_optimizer = rounds_optimizer
        self.tells_losses = tells_losses
        self.remarks: list[str] = []

    def paused(self) -> AbstractContextManager[object]:
        """Return a context in which plain torch computes: the experiment's own bookkeeping."""
        return contextlib.nullcontext() if self.ledger is None else modes_off()

    def rounding_float32(self) -> AbstractContextManager[object]:
        """Return a context in which the experiment's own float32 results are rounded: how test images are scaled."""
        return contextlib.nullcontext() if self.run is None else self.run.rounding_float32()

    def counting_losses(self) -> AbstractContextManager[object]:
        """Return a context in which what additions absorb and cancel is counted, where kernels count it.

        Elsewhere, on a GPU or inside emulated products, that would take minutes for a step.
        """
        if self.ledger is None or not self.tells_losses:
            return contextlib.nullcontext()
        return self.ledger.counting_losses()

    def begin_step(self, step: int) -> None:
        """Set the step that keys random bits and dates offences."""
        if self.run is not None:
            self.run.arithmetic.clock.set(step)

    def cast_names(self, step: int) -> list[str]:
        """Return the names of the parameters that `step`, which comes next, will not cast, nor count, again.

        An evaluation is keyed by the step that follows it: its rounded copies are those of that step.
        """
        if self.run is None or self.run.step != step:
            return []
        return self.run.parameters.cast_names()

    def scales(self) -> dict[str, dict[int, float]]:
        """Return the largest magnitudes of earlier steps, from which later scales follow."""
        return {} if self.run is None else self.run.arithmetic.scales.state()

    def go_on(self, step: int, cast: Sequence[str], scales: Mapping[str, Mapping[int, float]]) -> None:
        """Be where a checkpoint before `step` was made; what was counted so far was counted then."""
        self.begin_step(step)
        if self.run is not None:
            self.run.arithmetic.scales.restore(scales)
            self.run.parameters.cast(cast)
            self.run.ledger.drain()

    def mark(self) -> Mark | None:
        """Return what `take_back` needs; what the ledger counted has to have been collected before."""
        return None if self.run is None else mark(self.run)

    def take_back(self, to: Mark | None) -> None:
        """Forget what was counted and noted since."""
        if self.run is not None:
            assert to is not None, "the same run was marked"
            go_back(self.run, to)

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic of the whole network; native where plain torch computes."""
        if self.run is None or self.is_recording:
            return Arithmetic("native")
        return self.run.arithmetic

    @property
    def unrecognised(self) -> Mapping[str, int]:
        """The operations that passed unrounded, and how often."""
        return {} if self.run is None or self.is_recording else dict(sorted(self.run.unrecognised.items()))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the simulation says of itself."""
        if self.run is None or self.is_recording:
            return ()
        # In a record a note stands once: how many there were, the run itself says at its end.
        said = ("casts=ignore: casts to a wider type changed nothing",) if self.run.ignored_upcasts else ()
        return (*self.run.notes, *said, *self.remarks)


@contextlib.contextmanager
def simulated(
    model: nn.Module, numerics: NumericsSpec, *, optimizer: torch.optim.Optimizer, seed: int
) -> Iterator[Simulated]:
    """Run the body in the arithmetic of `numerics`."""
    is_native = Precision.parse(numerics.precision).is_native and not numerics.rules
    if is_native and not numerics.histogram:
        yield Simulated()
        return
    if is_native:
        from normstab.simulation.record import record

        with record(network_of(model)) as log:  # each process's own, joined where it is collected
            yield Simulated(log, is_recording=True)
        return
    ledger = Ledger(histogram=numerics.histogram)
    with simulate(
        model,
        numerics.precision,
        optimizer=optimizer if numerics.round_optimizer else None,
        seed=seed,
        rules=dict(numerics.rules) or None,
        ledger=ledger,
        master_weights=None if numerics.master_weights else False,
        expand=numerics.expand,
    ) as run:
        precisions = [numerics.precision, *numerics.rules.values()]
        device = next((p.device.type for p in model.parameters()), "cpu")
        tells_losses = all(are_losses_cheap(Precision.parse(each), device) for each in precisions)
        yield Simulated(run, rounds_optimizer=numerics.round_optimizer, tells_losses=tells_losses)
