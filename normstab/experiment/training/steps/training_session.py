"""A training run in progress: one step. Its state, as a checkpoint holds it, is `session_state`.

A step is looked at where it is taken, or later, with others: when, is `looks`. How steps make a run, and a run a
record, is `train_cell`. Everything measured here is measured outside the emulated arithmetic.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from normstab.experiment.data.images import Augmentation, Dataset
from normstab.experiment.data.tokens import TokenDataset
from normstab.experiment.records.cell_record import Nonfinite
from normstab.experiment.records.history import History
from normstab.experiment.records.offences import origin_of_nonfinite
from normstab.experiment.records.step_log import Step
from normstab.experiment.scenario.training_spec import TrainSpec
from normstab.experiment.training.angular_updates import angles_since, weights_now
from normstab.experiment.training.cell_arithmetic import Simulated
from normstab.experiment.training.corrections import Correction
from normstab.experiment.training.optimizers import set_rate
from normstab.experiment.training.probes import Probes
from normstab.experiment.training.schedules import Span, rate_factor
from normstab.experiment.training.steps.looks import Looks, Unread, read
from normstab.experiment.training.steps.replayed_gradients import Gradients
from normstab.experiment.training.steps.return_point import ReturnPoint
from normstab.experiment.training.storage import Storage
from normstab.experiment.training.training_ranks import Ranks
from normstab.numerics.steps.clock import Clock
from normstab.simulation.loss_scale import LossScaler

__all__ = ["Session"]


@dataclass
class Session:
    """Everything of a run that moves, and what moves it.

    `trained` is what the steps run, by `gradients`: the model, or what distributes it over `ranks`. `correction` is
    what replaces weight decay, `noise` the clocks of the norm layers' noise. `unread` are steps that nobody has looked
    at, which began at `start`; `logged` those that were, and are not in the log yet. `wants_checkpoint` asks the first
    process's clock, with what all processes tell each other in every step: `saves` is the answer.
    """

    train: TrainSpec
    dataset: Dataset | TokenDataset
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: LossScaler
    storage: Storage
    probes: Probes
    simulated: Simulated
    history: History
    span: Span
    trained: nn.Module
    gradients: Gradients
    ranks: Ranks
    correction: Correction | None = None
    noise: Sequence[Clock] = ()
    unrecognised_before: dict[str, int] = field(default_factory=dict)
    looks: Looks = field(default_factory=Looks)
    unread: list[Unread] = field(default_factory=list)
    start: ReturnPoint | None = None
    logged: list[Step] = field(default_factory=list)
    wants_checkpoint: Callable[[], bool] = lambda: False
    saves: bool = False

    def step(self, index: Tensor, augmentation: Augmentation | None) -> None:
        """Train on the images or sequences numbered `index`, on the host, of which this process has its part.

        Look now, or with a later step.
        A loss, logit or parameter that is not finite is noted at a look, with the step that it was in. No step is taken
        after such a one.
        """
        if self.gradients.wants_proof:
            self.look()
            if self.history.nonfinite is not None:
                return
            self._prove(index, augmentation)
        if self.looks.span > 1 and not self.probes.is_due(self.history.step):
            if not self.unread:
                self._stay()
            self._step_unread(index, augmentation)
            if len(self.unread) >= self.looks.span:
                self.look()
            return
        self.look()
        if self.history.nonfinite is None:
            self._step_read(index, augmentation)

    def look(self) -> None:
        """Read what the steps since the last look have left; take them again, one by one, where something broke."""
        if not self.unread:
            return
        unread, self.unread = self.unread, []
        with self.simulated.paused():
            found = read(unread)
        if any(is_broken for _, _, is_broken in found):
            self._go_back()
            for taken in unread:
                if self.history.nonfinite is None:
                    self._step_read(taken.index, taken.augmentation)
            return
        first = self.history.step - len(unread)
        for number, (taken, (loss, norm, _)) in enumerate(zip(unread, found, strict=True), first):
            self._log(Step(number, loss, norm, taken.lr, taken.loss_scale), taken.index)
        self.start = None
        self.looks.found_nothing()

    def take_logged(self) -> Iterator[Step]:
        """Yield the steps that were looked at since the last call, in order."""
        logged, self.logged = self.logged, []
        yield from logged

    def _step_read(self, index: Tensor, augmentation: Augmentation | None) -> None:
        """Take a step, and wait for what it finds; in one that is probed, count what additions lose too."""
        history, step, skipped = self.history, self.history.step, self.scaler.skipped_steps
        self.scaler.asks_later = False
        is_due = self.probes.is_due(step)
        with self.simulated.counting_losses() if is_due else contextlib.nullcontext():
            loss, logits, factor = self._gradients(index, augmentation)
            with self.simulated.paused():
                self._look_at(loss, logits, index)
            if history.nonfinite is None:
                self._update(step, factor)
        history.step += 1
        if self.scaler.skipped_steps == skipped:
            self.looks.found_nothing()
        else:
            self.looks.found_something()

    def _step_unread(self, index: Tensor, augmentation: Augmentation | None) -> None:
        """Take a step as if all in it were finite, and leave what it finds on the device."""
        step, scale = self.history.step, self.scaler.scale_factor
        self.scaler.asks_later = True
        loss, logits, factor = self._gradients(index, augmentation)
        with self.simulated.paused():
            norm, gradients_broke = self._unscaled(), self.scaler.take_answer()
            broke = [~loss.isfinite().all(), ~logits.isfinite().all()]
            broke += [] if gradients_broke is None else [gradients_broke]
            if self.train.clip is not None:
                broke.append(~norm.isfinite())
                clip_grads_with_norm_(self.model.parameters(), self.train.clip, norm)
        self._move(step, factor)
        with self.simulated.paused():
            broke.append(~self._largest_parameter().isfinite())
            numbers = torch.stack([loss.detach().double(), norm.double(), torch.stack(broke).any().double()])
        lr = self.optimizer.param_groups[0]["lr"]
        self.unread.append(Unread(numbers, index, augmentation, lr, scale))
        self.history.step += 1

    def _stay(self) -> None:
        """Remember where the run is now: the end of a look, which reads the ledger too."""
        with self.simulated.paused():
            self.collect()
            step = self.history.step
            self.start = ReturnPoint.before(step, self.model, self.optimizer, self.scaler, self.simulated)

    def _go_back(self) -> None:
        """Be where the run was at the last look."""
        assert self.start is not None, "steps that nobody looked at began somewhere"
        with self.simulated.paused(), torch.no_grad():
            self.start.go_back(self.scaler, self.simulated)
        self.history.step, self.start = self.start.step, None
        self.looks.found_something()

    def _gradients(self, index: Tensor, augmentation: Augmentation | None) -> tuple[Tensor, Tensor, float]:
        """Compute the scaled gradients; return the loss, the logits and the schedule's factor."""
        step = self.history.step
        self.begin_step(step)
        with self.simulated.paused():
            x, y = self.dataset.train_batch(self.ranks.part(index), augmentation)
            factor = rate_factor(self.train.schedule, step, self.span)
            set_rate(self.optimizer, self._lr_factor(factor))
            self.optimizer.zero_grad(set_to_none=True)
        loss, logits = self.gradients(x, y, self.train.loss_multiplier * self.ranks.share(self._counts(index)))
        return loss, logits, factor

    def _prove(self, index: Tensor, augmentation: Augmentation | None) -> None:
        """Compute the gradients of the next step both ways, and be where the run was."""
        self._stay()
        assert self.start is not None, "the run has just been remembered"
        self.gradients.prove(self.start, lambda: self._gradients(index, augmentation)[:2])
        self.start = None

    def _counts(self, index: Tensor) -> list[int]:
        """Return how many predictions each process makes of a batch; one process asks nobody."""
        return [] if self.ranks.size == 1 else [self.dataset.predictions(part) for part in self.ranks.parts(index)]

    def _log(self, step: Step, index: Tensor) -> None:
        """Put a step into the history, and where the log is taken from."""
        self.history.add_loss(step.loss, self.dataset.predictions(index))
        self.logged.append(step)

    def begin_step(self, step: int) -> None:
        """Set the step that keys random bits: those of rounding, and those of noise where nothing is simulated."""
        self.simulated.begin_step(step)
        for clock in self.noise:
            clock.set(step)
            clock.share = self.ranks.rank

    def _lr_factor(self, factor: float) -> float:
        """Return the factor on the peak rate: a norm schedule moves the norms and leaves the rate."""
        moves_norms = self.correction is not None and self.correction.moves_norms
        return self.train.lr_multiplier * (1.0 if moves_norms else factor)

    def _unscaled(self) -> Tensor:
        """Unscale the gradients and return their norm."""
        self.scaler.unscale_(self.optimizer)
        return get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def _look_at(self, loss: Tensor, logits: Tensor, index: Tensor) -> None:
        """Unscale, measure and clip the gradients; log the step; note what is not finite."""
        step, scale = self.history.step, self.scaler.scale_factor
        norm = self._unscaled()
        seen = self.ranks.gather((loss.item(), bool(logits.isfinite().all()), self.wants_checkpoint()))
        self.saves = seen[0][2]
        mean = self.ranks.mean([found for found, _, _ in seen], self._counts(index))
        logged = Step(step, mean, norm.item(), self.optimizer.param_groups[0]["lr"], scale)
        self._log(logged, index)
        if not math.isfinite(logged.loss):
            self.fail("loss")
        elif not all(is_finite for _, is_finite, _ in seen):
            self.fail("logit")
        elif self.probes.is_due(step):
            probe = self.probes.take(step, self.model)
            if probe is not None:
                self.history.probes.append(probe)
        if self.train.clip is not None and math.isfinite(logged.gradient_norm):
            clip_grads_with_norm_(self.model.parameters(), self.train.clip, norm)

    def _update(self, step: int, factor: float) -> None:
        """Move the parameters, and count in a step that is probed which of them stayed; note what is not finite."""
        is_due = self.probes.is_due(step)
        with self.simulated.paused():
            parameters = [p.detach() for p in self.model.parameters()]
            before = [p.clone() for p in parameters] if is_due else []
            weights = weights_now(self.model) if is_due else {}
        is_moved = self._move(step, factor)
        with self.simulated.paused():
            if is_moved and is_due:
                self.history.add_angles(angles_since(weights, self.model))
            self.history.updates += sum(p.numel() for p in before)
            self.history.updates_zero += sum(
                int((old == new).sum()) for old, new in zip(before, parameters, strict=False)
            )
            if not math.isfinite(self._largest_parameter().item()):
                self.fail("parameter")

    def _move(self, step: int, factor: float) -> bool:
        """Take the optimizer's step, corrected where something replaces weight decay, and store its result.

        False: the loss scale skipped it.
        """
        if self.correction is not None:
            with self.simulated.paused():
                self.correction.before(self.optimizer, step)
        skipped = self.scaler.skipped_steps
        with contextlib.nullcontext() if self.simulated.rounds_optimizer else self.simulated.paused():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.skipped_steps != skipped:
            return False
        with self.simulated.paused():
            if self.correction is not None:
                self.correction.after(step, factor)
            self.storage.keep_all_(self.optimizer)
        return True

    def _largest_parameter(self) -> Tensor:
        """Return the largest magnitude of all parameters; not finite where one is not."""
        return get_total_norm([p.detach() for p in self.model.parameters()], math.inf)

    def fail(self, what: str) -> None:
        """Note what became non-finite in this step, and where the ledger first saw it."""
        if self.history.nonfinite is None:
            self.collect()
            site = origin_of_nonfinite(self.history.tallies.first)
            self.history.nonfinite = Nonfinite(self.history.step, what, site)

    def collect(self) -> None:
        """Move what the ledger counted, and what was not understood, into the history."""
        if self.simulated.ledger is not None:
            self.history.tallies.collect(self.ranks.joined(self.simulated.ledger))
        passed = Counter(self.unrecognised_before)
        for unrecognised, notes in self.ranks.gather((self.simulated.unrecognised, self.simulated.notes)):
            passed += Counter(unrecognised)
            self.history.notes += [note for note in notes if note not in self.history.notes]
        self.history.unrecognised = dict(sorted(passed.items()))
