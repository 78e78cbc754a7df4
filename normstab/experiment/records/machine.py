"""The machine as a record names it, and torch settled so that equal runs on it give equal bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from normstab.errors import NormstabError
from normstab.experiment.records.cell_record import Environment
from normstab.simulation.full_float32 import full_float32
from normstab.torch_private import switches_free

__all__ = ["environment", "require_device", "settled"]


def require_device(device: str) -> None:
    """Raise NormstabError for a device that is not there."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise NormstabError(f"device {device!r}: torch sees no CUDA device; use --device cpu")


def environment(device: str, threads: int, *, look_every: int = 1) -> Environment:
    """Return what the bits of a record depend on beyond its cell, and how often the run looked at its device."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return Environment(name, threads, torch.backends.cpu.get_cpu_capability(), torch.__version__, look_every)


@contextlib.contextmanager
def settled(device: str, threads: int, seed: int) -> Iterator[None]:
    """Run the body with `threads` threads, torch's generators seeded, and deterministic float32 kernels.

    Everything is as before afterwards. Raises NormstabError for a device that is not there.
    """
    require_device(device)
    on_cuda = device.startswith("cuda")
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark
    with full_float32(), torch.random.fork_rng(devices=[torch.device(device)] if on_cuda else []):
        torch.manual_seed(seed)
        _set(threads, True, False)
        try:
            yield
        finally:
            _set(*before)


def _set(threads: int, deterministic: bool, benchmark: bool) -> None:
    """Set the number of threads, and how cuDNN chooses its kernels."""
    torch.set_num_threads(threads)
    with switches_free():
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
