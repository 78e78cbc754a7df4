"""A training run in progress: one step, one epoch's end, and its state as a checkpoint holds it.

How steps make a run, and a run a record, is `train`. Everything measured here is measured outside the emulated
arithmetic.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from normstab.experiment.data.images import Augmentation, Dataset
from normstab.experiment.data.tokens import TokenDataset
from normstab.experiment.records.cell_record import EpochRecord, Nonfinite, Predictions
from normstab.experiment.records.history import History
from normstab.experiment.records.offences import origin_of_nonfinite
from normstab.experiment.records.step_log import Step
from normstab.experiment.scenario.training_spec import TrainSpec
from normstab.experiment.training.angular_updates import angles_since, weights_now
from normstab.experiment.training.batch_loss import batch_loss, counted, outputs
from normstab.experiment.training.cell_arithmetic import Simulated
from normstab.experiment.training.corrections import Correction
from normstab.experiment.training.evaluation import evaluate, norm_layer_records, weight_norms
from normstab.experiment.training.optimizers import set_rate
from normstab.experiment.training.probes import Probes
from normstab.experiment.training.schedules import Span, rate_factor
from normstab.experiment.training.sequence_scores import language_record
from normstab.experiment.training.storage import Storage
from normstab.numerics.steps.clock import Clock
from normstab.simulation.loss_scale import LossScaler

__all__ = ["Session"]


@dataclass
class Session:
    """Everything of a run that moves, and what moves it.

    `correction` is what replaces weight decay, `noise` the clocks of the norm layers' noise.
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
    correction: Correction | None = None
    noise: Sequence[Clock] = ()
    unrecognised_before: dict[str, int] = field(default_factory=dict)

    def step(self, index: Tensor, augmentation: Augmentation | None) -> Step:
        """Train on the images or sequences numbered `index`; a loss, logit or parameter that is not finite is noted."""
        history, step = self.history, self.history.step
        self._begin_step(step)
        with self.simulated.paused():
            x, y = self.dataset.train_batch(index, augmentation)
            factor = rate_factor(self.train.schedule, step, self.span)
            set_rate(self.optimizer, self._lr_factor(factor))
            self.optimizer.zero_grad(set_to_none=True)
        logits = outputs(self.model, x)
        loss = batch_loss(logits, y, self.train.label_smoothing)
        self._backward(loss)
        with self.simulated.paused():
            logged = self._look(loss, logits, counted(y))
        if history.nonfinite is None:
            self._update(step, factor)
        history.step += 1
        return logged

    def _begin_step(self, step: int) -> None:
        """Set the step that keys random bits: those of rounding, and those of noise where nothing is simulated."""
        self.simulated.begin_step(step)
        for clock in self.noise:
            clock.set(step)

    def _lr_factor(self, factor: float) -> float:
        """Return the factor on the peak rate: a norm schedule moves the norms and leaves the rate."""
        moves_norms = self.correction is not None and self.correction.moves_norms
        return self.train.lr_multiplier * (1.0 if moves_norms else factor)

    def _backward(self, loss: Tensor) -> None:
        """Differentiate the loss times its multiplier and scale; both reach the gradient unrounded."""
        scaled = self.scaler.scale(loss)
        if self.train.loss_multiplier == 1.0:
            scaled.backward()
            return
        with self.simulated.paused():
            multiplier = torch.full_like(scaled, self.train.loss_multiplier)
        scaled.backward(multiplier)

    def _look(self, loss: Tensor, logits: Tensor, predictions: int) -> Step:
        """Unscale, measure and clip the gradients; note what is not finite; return the log's entry."""
        step, scale = self.history.step, self.scaler.scale_factor
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        logged = Step(step, loss.item(), norm.item(), self.optimizer.param_groups[0]["lr"], scale)
        self.history.add_loss(logged.loss, predictions)
        if not math.isfinite(logged.loss):
            self._fail("loss")
        elif not bool(logits.isfinite().all()):
            self._fail("logit")
        elif self.probes.is_due(step):
            probe = self.probes.take(step, self.model)
            if probe is not None:
                self.history.probes.append(probe)
        if self.train.clip is not None and math.isfinite(logged.gradient_norm):
            clip_grads_with_norm_(self.model.parameters(), self.train.clip, norm)
        return logged

    def _update(self, step: int, factor: float) -> None:
        """Take the optimizer's step, corrected where something replaces weight decay, and store its result."""
        with self.simulated.paused():
            parameters = [p.detach() for p in self.model.parameters()]
            is_due = self.probes.is_due(self.history.step)
            before = [p.clone() for p in parameters] if is_due else []
            weights = weights_now(self.model) if is_due else {}
            if self.correction is not None:
                self.correction.before(self.optimizer, step)
        skipped = self.scaler.skipped_steps
        with contextlib.nullcontext() if self.simulated.rounds_optimizer else self.simulated.paused():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        with self.simulated.paused():
            if self.scaler.skipped_steps == skipped:
                if self.correction is not None:
                    self.correction.after(step, factor)
                self.storage.keep_all_(self.optimizer)
                if is_due:
                    self.history.add_angles(angles_since(weights, self.model))
            self.history.updates += sum(p.numel() for p in before)
            self.history.updates_zero += sum(
                int((old == new).sum()) for old, new in zip(before, parameters, strict=False)
            )
            if not math.isfinite(get_total_norm(parameters, math.inf).item()):
                self._fail("parameter")

    def _fail(self, what: str) -> None:
        """Note what became non-finite in this step, and where the ledger first saw it."""
        if self.history.nonfinite is None:
            self.collect()
            site = origin_of_nonfinite(self.history.tallies.first)
            self.history.nonfinite = Nonfinite(self.history.step, what, site)

    def collect(self) -> None:
        """Move what the ledger counted, and what was not understood, into the history."""
        if self.simulated.ledger is not None:
            self.history.tallies.collect(self.simulated.ledger)
        passed = Counter(self.unrecognised_before) + Counter(self.simulated.unrecognised)
        self.history.unrecognised = dict(sorted(passed.items()))
        self.history.notes += [note for note in self.simulated.notes if note not in self.history.notes]

    def end_epoch(self) -> None:
        """Evaluate the network and add the epoch, whole or broken off, to the history."""
        history = self.history
        with self.simulated.paused():
            if history.nonfinite is not None:
                self.collect()
        self._begin_step(history.step)
        result = evaluate(self.model, self.dataset, self.simulated)
        norms = weight_norms(self.model, self.simulated)
        self._write_sequences(is_finite=result.is_finite)
        with self.simulated.paused():
            if history.nonfinite is None:
                self.collect()
                if not result.is_finite:
                    self._fail_after("logit")
            elif self.simulated.ledger is not None:
                # What a broken network does to the test images is no offence of the run.
                self.simulated.ledger.drain()
            train_loss, updates, updates_zero = history.end_epoch()
            history.epochs.append(
                EpochRecord(
                    accuracy=result.accuracy,
                    test_loss=result.loss,
                    train_loss=train_loss,
                    updates=updates,
                    updates_zero=updates_zero,
                    loss_scale=self.scaler.scale_factor,
                    weight_norms=norms,
                    sites=history.tallies.end_epoch(),
                    angular_update=history.end_angles(),
                )
            )
            history.norm_layers = norm_layer_records(self.model, history.values, history.norm_layers)
            history.predictions = Predictions.of(result.labels, result.predicted)

    def _write_sequences(self, *, is_finite: bool) -> None:
        """Say what a network for tokens is measured by, and let it write by itself after the last epoch."""
        if isinstance(self.dataset, TokenDataset):
            writes = is_finite and self.history.step == self.span.steps and self.history.nonfinite is None
            self.history.language = language_record(self.model, self.dataset, self.simulated, writes=writes)

    def _fail_after(self, what: str) -> None:
        """Note a failure seen on the test images, in the last step taken."""
        self._fail(what)
        found = self.history.nonfinite
        assert found is not None
        self.history.nonfinite = Nonfinite(max(0, self.history.step - 1), found.what, found.site)

    def state(self) -> dict[str, Any]:
        """Return everything that a bit-identical resume needs."""
        self.collect()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history.to_text(),
            "random": torch.get_rng_state(),
            "cast": self.simulated.cast_names(self.history.step),
            "scales": self.simulated.scales(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state: what was counted on entering was counted then."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = History.from_text(state["history"])
        self.unrecognised_before = dict(self.history.unrecognised)
        torch.set_rng_state(state["random"].cpu())
        self.simulated.go_on(self.history.step, state["cast"], state["scales"])
