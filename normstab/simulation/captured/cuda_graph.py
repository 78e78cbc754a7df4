"""Where torch's CUDA graphs are asked for: recording a step, and running one as what comes before has to be run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

__all__ = ["aside", "recorded"]


def recorded(step: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """Return what replays `step`, and what it returned: tensors that a replay writes to."""
    graph = torch.cuda.CUDAGraph()
    # On the stream of the steps before: what autograd keeps of those, as a loss that is still held, belongs to it.
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=side_stream(device)):
        outputs = step()
    return graph.replay, outputs


def aside(step: Callable[[], Any], device: torch.device) -> Any:
    """Return what `step` returns, run on another stream as what comes before a capture has to be."""
    if device.type != "cuda":
        return step()
    current, own = torch.cuda.current_stream(device), side_stream(device)
    own.wait_stream(current)
    with torch.cuda.stream(own):
        outputs = step()
    current.wait_stream(own)
    return outputs


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of a device on which steps warm up."""
    return torch.cuda.Stream(device)
