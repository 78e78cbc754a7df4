"""The state of a training run, as a checkpoint holds it: of several processes all that differs between them."""

from __future__ import annotations

from typing import Any

import torch

from normstab.experiment.records.history import History
from normstab.experiment.training.steps.training_session import Session

__all__ = ["UnusableCheckpointError", "restore_session", "state_of"]


class UnusableCheckpointError(Exception):
    """There is a checkpoint from which this cell cannot go on; it starts again."""


def state_of(session: Session) -> dict[str, Any]:
    """Return everything that a bit-identical resume needs."""
    session.collect()
    return {
        "model": session.model.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "scaler": session.scaler.state_dict(),
        "history": session.history.to_text(),
        "own": session.ranks.gather(
            {
                "random": torch.get_rng_state(),
                "cast": session.simulated.cast_names(session.history.step),
                "scales": session.simulated.scales(),
            }
        ),
    }


def restore_session(session: Session, state: dict[str, Any]) -> None:
    """Go on from a checkpoint's state: what was counted on entering was counted then."""
    session.model.load_state_dict(state["model"])
    session.optimizer.load_state_dict(state["optimizer"])
    session.scaler.load_state_dict(state["scaler"])
    session.history = History.from_text(state["history"])
    session.unrecognised_before = dict(session.history.unrecognised)
    own = state["own"][session.ranks.rank]
    torch.set_rng_state(own["random"].cpu())
    session.simulated.go_on(session.history.step, own["cast"], own["scales"])
