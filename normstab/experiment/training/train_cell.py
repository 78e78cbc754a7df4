"""From a Cell to its Record: train the network in the cell's arithmetic and write down what happened.

A numerical failure never raises: the run ends early and the record says how. Only bad input, or a disk that
takes no more, raises NormstabError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from normstab.errors import NormstabError
from normstab.experiment.data.datasets import load_dataset
from normstab.experiment.data.images import Dataset
from normstab.experiment.data.sampling import batches, epoch_order
from normstab.experiment.data.tokens import TokenDataset
from normstab.experiment.execution.progress import Progress
from normstab.experiment.network.model_code import code_sha256
from normstab.experiment.network.models import build_model
from normstab.experiment.network.weighted_layers import noise_clocks
from normstab.experiment.records.cell_record import Record, write_record
from normstab.experiment.records.checkpoints import INTERVAL_S, Checkpoints, read_snapshot, write_snapshot
from normstab.experiment.records.history import History
from normstab.experiment.records.machine import environment, settled
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.records.step_log import NoLog, StepLog, copy_log, kept_sha256
from normstab.experiment.scenario.spec import Cell
from normstab.experiment.training.cell_arithmetic import Simulated, simulated
from normstab.experiment.training.corrections import correction_of
from normstab.experiment.training.digest_cell import keep_digests
from normstab.experiment.training.evaluation import count_values
from normstab.experiment.training.optimizers import make_optimizer
from normstab.experiment.training.probes import Probes, probe_interval
from normstab.experiment.training.schedules import Span
from normstab.experiment.training.steps.looks import Looks, steps_between_looks
from normstab.experiment.training.steps.replayed_gradients import Gradients
from normstab.experiment.training.steps.run_endings import end_epoch, finished_record, record_of
from normstab.experiment.training.steps.session_state import UnusableCheckpointError, restore_session, state_of
from normstab.experiment.training.steps.training_session import Session
from normstab.experiment.training.storage import Storage
from normstab.experiment.training.sweep_cell import run_sweep
from normstab.experiment.training.training_ranks import Ranks
from normstab.simulation.loss_scale import LossScaler

__all__ = ["run_cell"]

Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Tell nobody."""


def run_cell(
    cell: Cell,
    directory: Path,
    *,
    threads: int = 1,
    device: str = "cpu",
    report: Report = silent,
    checkpoint_s: float = INTERVAL_S,
    look_every: int | None = None,
) -> Record:
    """Run `cell`, trained or swept, and return its record, which is in `directory` then, beside `steps.jsonl`.

    A checkpoint, written every `checkpoint_s` seconds, is resumed when one is there and of the same machine.
    The records of the cells it depends on are looked for beside `directory`. A swept cell trains nothing.
    At most `look_every` steps go by until the run looks at what the device has found, which it waits for; None: one
    on a CPU and where several processes train a cell, 20 elsewhere. No bit of the record depends on it.
    """
    if cell.code_sha256 and code_sha256(cell.model.name) != cell.code_sha256:
        raise NormstabError(f"model {cell.model.name!r}: its code has changed since the run began; run it again")
    with settled(device, threads, cell.train.seed):
        ranks = Ranks.of(cell)
        if cell.sweep is not None:
            return ranks.of_first(lambda: _swept(cell, directory, threads, device))
        if cell.record is not None:
            keep_digests(cell, directory, device=device)
            if (finished := finished_record(cell, directory)) is not None:
                return finished
        every = steps_between_looks(device, look_every) if ranks.size == 1 else 1
        report = report if ranks.is_first else silent
        return _Running(cell, directory, threads, device, report, checkpoint_s, every, ranks).run()


def _swept(cell: Cell, directory: Path, threads: int, device: str) -> Record:
    """Return the record of a cell that trains nothing, which is in `directory` then."""
    record = run_sweep(cell, threads=threads, device=device)
    write_record(directory, record)
    return record


@dataclass
class _Running:
    """One cell on this machine, in one of the processes that train it."""

    cell: Cell
    directory: Path
    threads: int
    device: str
    report: Report
    checkpoint_s: float
    look_every: int
    ranks: Ranks

    def run(self) -> Record:
        """Return the record, of a run from a checkpoint where one can be resumed, else from the start."""
        try:
            return self._run(self._checkpoints())
        except UnusableCheckpointError as problem:
            checkpoints = self._checkpoints()
            if self.ranks.is_first:
                checkpoints.remove()
            return self._run(checkpoints, problem=str(problem))

    def _checkpoints(self) -> Checkpoints:
        """Return the cell's checkpoints on this machine."""
        found = environment(self.device, self.threads)
        return Checkpoints(self.directory, self.cell.id, found, interval_s=self.checkpoint_s)

    def _run(self, checkpoints: Checkpoints, *, problem: str | None = None) -> Record:
        """Train to the end or to the first number that is not finite; `problem`: why it starts again."""
        cell = self.cell
        dataset = load_dataset(cell.dataset, device=self.device)
        model = build_model(cell.model, dataset.task, seed=cell.train.seed, weight_scale=cell.train.weight_scale)
        model.to(self.device).train()
        session = self._session(dataset, model)
        session.wants_checkpoint = lambda: checkpoints.is_due
        self.ranks.seed(cell.train.seed)
        with simulated(session.trained, cell.numerics, optimizer=session.optimizer, seed=cell.train.seed) as around:
            session.simulated = session.gradients.simulated = around
            session.storage.use(around.arithmetic)
            with around.paused():
                keep = self._resume(session, checkpoints, problem) or self._go_on(session)
            with StepLog(self.directory, keep=keep) if self.ranks.is_first else NoLog() as log:
                self._train(session, log, checkpoints)
        return self.ranks.of_first(lambda: self._finish(session, checkpoints))

    def _finish(self, session: Session, checkpoints: Checkpoints) -> Record:
        """Write the record and return it."""
        on = environment(self.device, self.threads, look_every=self.look_every)
        record = record_of(session, self.cell, self.directory, on)
        write_record(self.directory, record)
        checkpoints.remove()
        return record

    def _session(self, dataset: Dataset | TokenDataset, model: torch.nn.Module) -> Session:
        """Return the session at its start, in plain torch so far."""
        train, cell = self.cell.train, self.cell
        images = len(dataset.train_y)
        bounds = batches(images, train.batch)
        self.ranks.check_batches(bounds)
        per_epoch = len(bounds)
        span = Span(per_epoch * train.epochs, per_epoch)
        storage = Storage(model, cell.numerics, seed=train.seed)
        correction = correction_of(train, model, self.directory.parent, span)
        has_factors = correction is not None and correction.has_factors
        with torch.no_grad():
            first = self.ranks.part(torch.arange(min(images, train.batch)))
            values = count_values(model, dataset.train_batch(first)[0])
        trained, scaler = self.ranks.wrapped(model), LossScaler(train.loss_scale, interval=train.loss_scale_interval)
        return Session(
            train=train,
            dataset=dataset,
            model=model,
            optimizer=make_optimizer(model, train.optimizer, per_channel=has_factors, keep=storage.keep),
            scaler=scaler,
            storage=storage,
            probes=self._probes(span),
            simulated=Simulated(),
            history=History(values=values),
            span=span,
            trained=trained,
            gradients=Gradients(trained, scaler, train.label_smoothing),
            ranks=self.ranks,
            correction=correction,
            noise=noise_clocks(model),
            looks=Looks(self.look_every),
        )

    def _probes(self, span: Span) -> Probes:
        """Return where probes are left and found."""
        cell = self.cell
        reference = None if cell.reference_id is None else self.directory.parent / cell.reference_id / "probes"
        own = self.directory / "probes" if cell.is_reference and self.ranks.is_first else None
        steps = 0
        if reference is not None and (reference.parent / "record.json").exists():
            record = read_record(reference.parent)
            steps = record.steps - (record.status == "nonfinite")  # the step that became so is not probed
        return Probes(probe_interval(cell.train.probe_every, span.steps), own, reference, steps)

    def _resume(self, session: Session, checkpoints: Checkpoints, problem: str | None) -> int:
        """Put the session where its checkpoint left it, and return how many steps of the log to keep.

        Raises UnusableCheckpointError where it is no checkpoint of this cell's run: the session is half restored then.
        """
        state, unread = self.ranks.of_first(lambda: checkpoints.read(self.device))
        if state is not None:
            try:
                restore_session(session, state)
                whole = self.ranks.of_first(lambda: kept_sha256(self.directory, session.history.step))
                is_whole = whole == state["log"]
            except Exception as error:  # what was written by another version may lack, or hold, anything
                raise UnusableCheckpointError(
                    f"the checkpoint does not fit: {type(error).__name__}: {error}"
                ) from error
            if not is_whole:
                raise UnusableCheckpointError("the step log is not the one that the checkpoint was made with")
            self._tell(session, f"{self.cell.id}: resumed after step {session.history.step}")
        elif unread is not None:
            raise UnusableCheckpointError(unread)
        elif problem is not None:
            self._tell(session, f"{self.cell.id}: started again from the beginning: {problem}")
        return session.history.step

    def _go_on(self, session: Session) -> int:
        """Put the session where the cell that it is a fork of stopped, and return how many steps its log has."""
        origin = None if self.cell.fork is None else self.cell.fork.of
        if origin is None:
            return 0
        before = self.directory.parent / origin
        restore_session(session, read_snapshot(before, origin, self.device))
        if self.ranks.is_first:
            copy_log(before, self.directory, steps=session.history.step)
        return session.history.step

    def _is_at_stop(self, session: Session) -> bool:
        """Whether the cell is to go no further."""
        fork = self.cell.fork
        return fork is not None and fork.stop is not None and session.history.step >= fork.stop

    def _leave_snapshot(self, session: Session, *, is_whole_epoch: bool) -> None:
        """Leave the state for the cells that go on from here: of an epoch that is not whole, before its evaluation."""
        fork, history = self.cell.fork, session.history
        is_here = is_whole_epoch == (history.step % session.span.steps_per_epoch == 0)
        if fork is not None and fork.leaves_snapshot and self._is_at_stop(session) and is_here:
            with session.simulated.paused():
                state = state_of(session)
                if self.ranks.is_first:
                    write_snapshot(self.directory, self.cell.id, state)

    def _train(self, session: Session, log: StepLog | NoLog, checkpoints: Checkpoints) -> None:
        """Go through the epochs that are left."""
        train, history = self.cell.train, session.history
        images = len(session.dataset.train_y)
        for epoch in range(history.step // session.span.steps_per_epoch, train.epochs):
            order = torch.from_numpy(epoch_order(train.seed, epoch, images))  # on the host: batches wait for nothing
            augmentation = session.dataset.augmentation(train.seed, epoch)
            done = history.step - epoch * session.span.steps_per_epoch
            for start, end in batches(images, train.batch)[done:]:
                session.step(order[start:end], augmentation)
                is_last = self._is_at_stop(session) or history.step % session.span.steps_per_epoch == 0
                saves = not is_last and (session.saves if self.ranks.size > 1 else checkpoints.is_due)
                if is_last or saves:
                    session.look()
                log.extend(session.take_logged())
                if history.nonfinite is not None:
                    break
                self._tell(session)
                if is_last:
                    break
                if saves:
                    self._save(session, log, checkpoints)
            self._leave_snapshot(session, is_whole_epoch=False)
            end_epoch(session)
            self._tell(session)
            self._leave_snapshot(session, is_whole_epoch=True)
            if history.nonfinite is not None or self._is_at_stop(session):
                break
            if self.ranks.of_first(lambda: checkpoints.is_due):
                self._save(session, log, checkpoints)

    def _save(self, session: Session, log: StepLog | NoLog, checkpoints: Checkpoints) -> None:
        """Write a checkpoint, the steps before it first."""
        log.flush()
        with session.simulated.paused():
            state = state_of(session)
            if self.ranks.is_first:
                checkpoints.write({**state, "log": log.sha256})

    def _tell(self, session: Session, note: str | None = None) -> None:
        """Report how far the cell is."""
        history, fork = session.history, self.cell.fork
        stop = None if fork is None else fork.stop
        self.report(
            Progress(
                step=history.step,
                steps=min(session.span.steps, stop or session.span.steps),
                epoch=len(history.epochs),
                loss=history.last_loss,
                accuracy=history.accuracy,
                note=note,
            )
        )
