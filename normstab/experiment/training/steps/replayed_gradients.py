"""The gradients of a run's steps: computed operation by operation or, on a GPU, as a CUDA graph that is replayed.

    steps of one kind    1 2 3      as ever, so that everything is compiled
                         4 5        both ways from the same state, and taken back: every bit and count has to be alike
                         4 5 6 ...  as ever until that is proven, then replayed

A kind is the shape of a batch and what the loss is multiplied by. Where a step cannot be recorded, or is not alike, all
of the run's are computed as ever, and the run says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normstab.errors import NormstabError
from normstab.experiment.training.batch_loss import Inputs, batch_loss, outputs
from normstab.experiment.training.cell_arithmetic import Simulated
from normstab.experiment.training.steps.return_point import ReturnPoint
from normstab.numerics.dispatch import LATER
from normstab.numerics.ledger import COUNTERS, LOSSES
from normstab.simulation.captured.cuda_graph import has_room, refusing_waits
from normstab.simulation.loss_scale import LossScaler
from normstab.simulation.run import Captured, Run

__all__ = ["Gradients"]

BEFORE, PROOFS, TRIES = 3, 2, 6
MOST_SHAPES, MOST_GRAPHS = 8, 4

REPLAYED = "training steps were replayed as CUDA graphs, after two had the same bits and counts both ways"


@dataclass
class Graph:
    """A step of one kind that is recorded, and how often it was found to be as it has to be, of how many tries."""

    step: Captured
    proofs: int = 0
    tries: int = 0


class Left(NamedTuple):
    """What the gradients of a step leave: numbers, and what was counted."""

    numbers: list[Tensor]
    counted: Any


class Gradients:
    """Computes the loss, the logits and the gradients of `trained`, in a simulation that is set when there is one."""

    def __init__(self, trained: nn.Module, scaler: LossScaler, label_smoothing: float) -> None:
        self.simulated = Simulated()
        self._trained, self._scaler, self._label_smoothing = trained, scaler, label_smoothing
        self._device = next((p.device for p in trained.parameters()), torch.device("cpu"))
        self._seen: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, Graph] = {}
        self._kind: Hashable = None
        self._way = ""
        self._is_refused = False

    def __call__(self, x: Inputs, y: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits of a batch, and leave the gradients of the scaled loss times `factor`.

        Parameters have none before. The next call may overwrite everything.
        """
        tensors = (*x, y) if isinstance(x, tuple) else (x, y)
        shapes = tuple((each.shape, each.dtype) for each in tensors)
        self._kind = shapes, factor, self._scaler.scale_factor
        if self._way == "as ever":
            with refusing_waits(self._device):
                return self._compute(x, y, factor)
        graph = self._graphs.get(self._kind)
        if graph is not None and (graph.proofs >= PROOFS or self._way == "replayed"):
            found: tuple[Tensor, Tensor] = graph.step(*tensors)
            return found
        if self._run is not None and not self._way:
            self._see(self._run, isinstance(x, tuple), factor)
        return self._compute(x, y, factor)

    @property
    def wants_proof(self) -> bool:
        """Whether, before the next step, the gradients are to be computed both ways."""
        graph = self._graphs.get(self._kind)
        return graph is not None and graph.proofs < PROOFS

    def prove(self, start: ReturnPoint, take: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Compute the gradients both ways by `take`, and go back to `start`; what differs is replayed no more."""
        run, kind, graph = self._run, self._kind, self._graphs[self._kind]
        assert run is not None, "a run was captured"
        found, replays, reason = [], graph.step.replays, ""
        for self._way in ("as ever", "replayed"):
            stamp = run.ledger.stamped
            try:
                loss, logits = take()
                with self.simulated.paused():
                    found.append(self._left(run, loss, logits, stamp))
                # What autograd holds of a step as ever belongs to the stream of that.
                del loss, logits
            except (NormstabError, RuntimeError) as error:
                reason = str(error).partition("\n")[0]
            with self.simulated.paused(), torch.no_grad():
                start.go_back(self._scaler, self.simulated)
            if reason:
                break
        self._way = ""
        graph.tries += 1
        if not reason and self._kind == kind and graph.step.replays > replays:
            graph.proofs += 1
            reason = _difference(*found)
        if reason or graph.tries == TRIES > graph.proofs:
            self._refuse(reason or "what a step finds in place changes from one to the next")
        elif graph.proofs == PROOFS:
            self._say(REPLAYED)

    @property
    def _run(self) -> Run | None:
        """The simulation whose steps may be recorded; None: there is none, nobody would gain, or it was refused."""
        is_simulated = self.simulated.run is not None and not self.simulated.is_recording
        return self.simulated.run if is_simulated and self._device.type in LATER and not self._is_refused else None

    def _see(self, run: Run, is_tuple: bool, factor: float) -> None:
        """Count a step as ever; make a graph of the kind that has come often."""
        kind = self._kind
        if kind not in self._seen and len(self._seen) >= MOST_SHAPES and not self._graphs:
            self._refuse("batches come in many shapes")
            return
        self._seen[kind] += 1
        if self._seen[kind] != BEFORE:
            return
        if not has_room(self._device):
            self._refuse("the device has too little memory left for what one keeps")
            return

        def step(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            return self._compute(tensors[:-1] if is_tuple else tensors[0], tensors[-1], factor)

        try:
            self._graphs[kind] = Graph(run.capture(step, warm_up=0))
        except NormstabError as error:
            self._refuse(str(error))
        while len(self._graphs) > MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]

    def _compute(self, x: Inputs, y: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """Compute it, operation by operation."""
        logits = outputs(self._trained, x)
        loss = batch_loss(logits, y, self._label_smoothing)
        # The loss times a factor and its scale; both reach the gradient unrounded.
        scaled = self._scaler.scale(loss)
        if factor == 1.0:
            scaled.backward()
        else:
            with self.simulated.paused():
                multiplier = torch.full_like(scaled, factor)
            scaled.backward(multiplier)
        return loss, logits

    def _left(self, run: Run, loss: Tensor, logits: Tensor, stamp: int) -> Left:
        """Return copies of what there is after a step, and what was counted since the event `stamp`."""
        gradients = [p.grad for p in self._trained.parameters() if p.grad is not None]
        numbers = [x.detach().clone() for x in (loss, logits, *gradients, *self._trained.buffers())]
        ledger = run.ledger
        tallies = {site: tally for site, tally in ledger.items() if tally.count}
        firsts = [ledger.first(counter) for counter in (*COUNTERS, *LOSSES)]
        passed = dict(run.unrecognised), run.unrecognised.results
        return Left(numbers, (tallies, firsts, passed, ledger.stamped - stamp, run.arithmetic.clock.moment()))

    def _refuse(self, reason: str) -> None:
        """Compute everything as ever from now on, and say why."""
        self._is_refused = True
        self._graphs.clear()
        self._say(f"training steps were not replayed as CUDA graphs: {reason}")

    def _say(self, remark: str) -> None:
        """Have the run say so, once."""
        if remark not in self.simulated.remarks:
            self.simulated.remarks.append(remark)


def _difference(one: Left, other: Left) -> str:
    """Return what a replayed step left that the other did not, or nothing."""
    if len(one.numbers) != len(other.numbers) or not all(map(_are_alike, one.numbers, other.numbers)):
        return "a replayed step had other bits"
    return "" if one.counted == other.counted else "a replayed step had other counts"


def _are_alike(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors have the same bits."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    return torch.equal(x.contiguous().view(-1).view(torch.uint8), y.contiguous().view(-1).view(torch.uint8))
