"""What cannot be recorded as a CUDA graph says so, where torch would record what is wrong in every replay."""

from __future__ import annotations

import torch

from normstab.errors import NormstabError

__all__ = ["refuse_captured"]


def refuse_captured(what: str) -> None:
    """Raise NormstabError where a graph is recorded: `what` goes by the step on the host, which no replay advances."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise NormstabError(f"a step with {what} cannot be captured: each replay would go by the same step")
