"""Torch's float32 is float32 while a simulation or a recording is open: no TF32, bfloat16 or narrower partial sums.

The switches are the process's, not a thread's. So the first that opens turns them off and the last that closes turns
them back, in whatever order they close.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

from normstab.torch_private import switches_free

__all__ = ["full_float32"]

# Where a switch is in torch.backends, its name, and what it is while one is open. A torch that lacks one has no such
# shortcut. The texts are the newer way to say the same; the two are kept in agreement, for torch refuses to read
# the older ones where they differ.
SWITCHES: tuple[tuple[str, str, object], ...] = (
    ("cuda.matmul", "allow_tf32", False),
    ("cudnn", "allow_tf32", False),
    ("cuda.matmul", "allow_fp16_reduced_precision_reduction", False),
    ("cuda.matmul", "allow_bf16_reduced_precision_reduction", False),
    ("cuda.matmul", "allow_fp16_accumulation", False),
    ("", "float32_matmul_precision", "highest"),
    ("cuda.matmul", "fp32_precision", "ieee"),
    ("cudnn.conv", "fp32_precision", "ieee"),
    ("cudnn.rnn", "fp32_precision", "ieee"),
    ("mkldnn.matmul", "fp32_precision", "ieee"),
    ("mkldnn.conv", "fp32_precision", "ieee"),
    ("mkldnn.rnn", "fp32_precision", "ieee"),
)


class _Open:
    """How many are open, and what the switches were before the first."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.count = 0
        self.before: list[object] = []


OPEN = _Open()


@contextmanager
def full_float32() -> Iterator[None]:
    """Turn TF32 and reduced-precision reductions off inside the block; everything is as before after it.

    A switch that someone turns inside the block is turned back too. Source: torch's notes on CUDA semantics,
    "TensorFloat-32 on Ampere devices" and the two sections after it.
    """
    with OPEN.lock:
        if OPEN.count == 0:
            OPEN.before = [_read(*switch[:2]) for switch in SWITCHES]
            _write([wanted for *_, wanted in SWITCHES], OPEN.before)
        OPEN.count += 1
    try:
        yield
    finally:
        with OPEN.lock:
            OPEN.count -= 1
            if OPEN.count == 0:
                _write(OPEN.before, OPEN.before)


def _read(place: str, name: str) -> object:
    """Return the state of a switch; None where this torch has none, or cannot say."""
    try:
        return getattr(_holder(place), name) if place else torch.get_float32_matmul_precision()
    except (AttributeError, RuntimeError):
        return None


def _write(states: list[object], before: list[object]) -> None:
    """Set every switch that had a state before, in order: the later ones say more."""
    with switches_free():
        for (place, name, _), state, known in zip(SWITCHES, states, before, strict=True):
            if known is None or _read(place, name) == state:
                continue
            if place:
                setattr(_holder(place), name, state)
            else:
                torch.set_float32_matmul_precision(str(state))


def _holder(place: str) -> Any:
    """Return what holds the switches of a part of torch.backends."""
    holder: Any = torch.backends
    for part in place.split("."):
        holder = getattr(holder, part)
    return holder
