"""Where torch's CUDA graphs are asked for: recording a step, running one before that, and whether one waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

__all__ = ["aside", "has_room", "recorded", "refusing_waits"]


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


def has_room(device: torch.device) -> bool:
    """Whether a device has as much memory left as was ever taken at a time, for a graph keeps what a step takes."""
    if device.type != "cuda":
        return True
    left, _ = torch.cuda.mem_get_info(device)
    return left >= torch.cuda.max_memory_allocated(device)


@contextmanager
def refusing_waits(device: torch.device) -> Iterator[None]:
    """Raise RuntimeError where something inside waits for the device: to record it would fail, and harm what follows.

    A recording that fails leaves torch's generator of random bits in the middle of it.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of a device on which steps warm up."""
    return torch.cuda.Stream(device)
