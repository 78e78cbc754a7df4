"""Probes: weights and gradient of a step, left by the reference and compared by the cells that share it.

A probe is `probes/STEP.npz` beside the reference's record: every k-th element of the flattened parameters, k the
least that leaves at most 65,536, in float32. Distances are those of these elements.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normstab.errors import RecordError
from normstab.experiment.records.cell_record import Probe
from normstab.experiment.records.files import read_plain_file, write_atomically

__all__ = ["Probes", "probe_interval"]

MOST_ELEMENTS = 2**16
MOST_PROBES = 64


def probe_interval(every: int, steps: int) -> int:
    """Return `every`, or the least multiple of it that gives at most 64 probes in `steps`; 0 is none."""
    return every * max(1, -(-steps // (every * MOST_PROBES))) if every else 0


@dataclass(frozen=True)
class Probes:
    """Where a cell leaves its probes (`own`) and where its reference's are (`reference`), None for neither.

    The reference has left one for every step that is due among its first `reference_steps`.
    """

    interval: int
    own: Path | None
    reference: Path | None
    reference_steps: int = 0

    def is_due(self, step: int) -> bool:
        """Whether `step` is probed."""
        return self.interval > 0 and step % self.interval == 0

    def take(self, step: int, model: nn.Module) -> Probe | None:
        """Leave this step's probe, or return what the comparison with the reference's gives."""
        if self.own is None and self.reference is None:
            return None
        parameters = list(model.parameters())
        weights = _sampled(parameters)
        gradient = _sampled([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        if self.own is not None:
            content = io.BytesIO()
            np.savez(content, weights=weights, gradient=gradient)
            write_atomically(self.own / f"{step}.npz", content.getvalue())
        path = None if self.reference is None else self.reference / f"{step}.npz"
        if path is None or not (step < self.reference_steps or os.path.lexists(path)):
            return None
        weights_ref, gradient_ref = _read(path)
        if weights_ref.shape != weights.shape:
            return None
        return _compared(step, weights, gradient, weights_ref, gradient_ref)


Sample = NDArray[np.float32]


def _read(path: Path) -> tuple[Sample, Sample]:
    """Return the weights and the gradient of a probe; raise RecordError, naming the file, where it does not read."""
    try:
        with np.load(io.BytesIO(read_plain_file(path)), allow_pickle=False) as probe:
            weights, gradient = probe["weights"], probe["gradient"]
        if weights.dtype != np.float32 or weights.ndim != 1 or gradient.shape != weights.shape:
            raise ValueError(f"arrays of {weights.dtype} and shape {weights.shape}")
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        message = f"not a probe of the reference: {error}; run the same command again with --fresh"
        raise RecordError(f"{path}: {message}") from error
    return weights, gradient


def _sampled(tensors: Iterable[Tensor]) -> Sample:
    """Return every k-th element of all of them, end to end."""
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    stride = -(-flat.numel() // MOST_ELEMENTS)
    return np.asarray(flat[::stride].float().cpu().numpy())


def _compared(step: int, weights: Sample, gradient: Sample, weights_ref: Sample, gradient_ref: Sample) -> Probe:
    """Return ||w - w_ref|| / ||w_ref|| and the cosine of the gradients, in float64; NaN where one is undefined."""
    w, w_ref, g, g_ref = (array.astype(np.float64) for array in (weights, weights_ref, gradient, gradient_ref))
    with np.errstate(all="ignore"):
        distance = np.sqrt(np.sum((w - w_ref) ** 2)) / np.sqrt(np.sum(w_ref**2))
        cosine = np.sum(g * g_ref) / np.sqrt(np.sum(g * g) * np.sum(g_ref * g_ref))
    return Probe(step, float(distance), float(cosine))
