"""What is said of a training run at the end of an epoch, and of all of it: the record."""

from __future__ import annotations

from pathlib import Path

from normstab.errors import RecordError
from normstab.experiment.data.tokens import TokenDataset
from normstab.experiment.records.cell_record import (
    DataFacts,
    Environment,
    EpochRecord,
    Nonfinite,
    Predictions,
    Record,
)
from normstab.experiment.records.record_reader import read_record
from normstab.experiment.records.step_log import check_log, log_sha256
from normstab.experiment.scenario.spec import Cell
from normstab.experiment.training.evaluation import (
    bounds,
    evaluate,
    norm_layer_records,
    weight_norms,
    weights_sha256,
)
from normstab.experiment.training.sequence_scores import language_record
from normstab.experiment.training.steps.training_session import Session
from normstab.numerics.version import NUMERICS_VERSION

__all__ = ["end_epoch", "finished_record", "record_of"]


def end_epoch(session: Session) -> None:
    """Evaluate the network and add the epoch, whole or broken off, to the history; every step has been looked at."""
    history, model, simulated = session.history, session.model, session.simulated
    with simulated.paused():
        if history.nonfinite is not None:
            session.collect()
    session.begin_step(history.step)
    ranks = session.ranks
    result = ranks.of_first(lambda: evaluate(model, session.dataset, simulated))
    norms = ranks.of_first(lambda: weight_norms(model, simulated))
    _write_sequences(session, is_finite=result.is_finite)
    with simulated.paused():
        if history.nonfinite is None:
            session.collect()
            if not result.is_finite:
                _fail_after(session, "logit")
        elif simulated.ledger is not None:
            # What a broken network does to the test images is no offence of the run.
            simulated.ledger.drain()
        train_loss, updates, updates_zero = history.end_epoch()
        history.epochs.append(
            EpochRecord(
                accuracy=result.accuracy,
                test_loss=result.loss,
                train_loss=train_loss,
                updates=updates,
                updates_zero=updates_zero,
                loss_scale=session.scaler.scale_factor,
                weight_norms=norms,
                sites=history.tallies.end_epoch(),
                angular_update=history.end_angles(),
            )
        )
        history.norm_layers = norm_layer_records(model, history.values, history.norm_layers)
        history.predictions = Predictions.of(result.labels, result.predicted)


def _write_sequences(session: Session, *, is_finite: bool) -> None:
    """Say what a network for tokens is measured by, and let it write by itself after the last epoch."""
    history, dataset = session.history, session.dataset
    if isinstance(dataset, TokenDataset):
        writes = is_finite and history.step == session.span.steps and history.nonfinite is None
        history.language = session.ranks.of_first(
            lambda: language_record(session.model, dataset, session.simulated, writes=writes)
        )


def _fail_after(session: Session, what: str) -> None:
    """Note a failure seen on the test images, in the last step taken."""
    session.fail(what)
    found = session.history.nonfinite
    assert found is not None
    session.history.nonfinite = Nonfinite(max(0, session.history.step - 1), found.what, found.site)


def record_of(session: Session, cell: Cell, directory: Path, environment: Environment) -> Record:
    """Return what happened; the log of its steps is in `directory`."""
    history, dataset = session.history, session.dataset
    return Record(
        id=cell.id,
        cell=cell.to_json(),
        numerics_version=NUMERICS_VERSION,
        data=DataFacts(dataset.name, dataset.sha256, len(dataset.train_y), len(dataset.test_y), dataset.classes),
        environment=environment,
        status="finished" if history.nonfinite is None else "nonfinite",
        nonfinite=history.nonfinite,
        steps=history.step,
        steps_per_epoch=session.span.steps_per_epoch,
        epochs=tuple(history.epochs),
        first=dict(sorted(history.tallies.first.items())),
        first_steps=history.tallies.steps_by_site(),
        predictions=history.predictions,
        probes=tuple(history.probes),
        norm_layers=history.norm_layers,
        unrecognised=history.unrecognised,
        notes=tuple(history.notes),
        weights_sha256=weights_sha256(session.model),
        rho=bounds(session.model),
        steps_sha256=log_sha256(directory),
        language=history.language,
    )


def finished_record(cell: Cell, directory: Path) -> Record | None:
    """Return the whole record that is there already, None where there is none, or one of another cell."""
    try:
        record = read_record(directory)
        check_log(directory, steps=record.steps, sha256=record.steps_sha256)
    except RecordError:
        return None
    return record if record.id == cell.id else None
